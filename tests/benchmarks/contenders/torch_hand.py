"""By hand: eager PyTorch, no Pyro, as well as one reasonably writes it. The references of all ratios."""

import math

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax, softplus
from worker import serve

from contenders import programs
from contenders.rows import begin, epoch_of, sampler


def vae(setup, link):
    """One step of a VAE with the KL in closed form; ``setup.fused`` picks Adam's fused kernel."""
    draw = sampler(begin(setup), setup.batch)
    update = _vae_update(setup)
    serve(lambda: update(draw()), link)


def epoch(setup, link):
    """The same for all rows, the short batch too."""
    x = begin(setup)
    update = _vae_update(setup)
    serve(epoch_of(update, x, setup.batch), link)


def iwae(setup, link):
    """k draws of a row in one tensor; the bound is taken row by row."""
    draw = sampler(begin(setup), setup.batch)
    decoder, encoder = programs.vae_networks(setup.columns, setup.hidden, setup.latent)
    k = setup.k

    def loss(x):
        loc, log_scale = encoder(x).chunk(2, -1)
        noise = torch.randn(k, *loc.shape)
        z = loc + log_scale.exp() * noise
        logits = decoder(z)
        nll = (softplus(logits) - x * logits).sum(-1)
        log_weight = 0.5 * (noise**2 - z**2).sum(-1) + log_scale.sum(-1) - nll
        return math.log(k) - log_weight.logsumexp(0).mean()

    update = _updater(loss, [*decoder.parameters(), *encoder.parameters()])
    serve(lambda: update(draw()), link)


def m2(setup, link):
    """All classes of every row in one tensor; ``setup.split`` keeps the image out of the repetition."""
    draw = sampler(begin(setup), setup.batch)
    nets = programs.M2(setup, programs.Split if setup.split else programs.Concatenated)
    labels = torch.eye(programs.CLASSES)[:, None]

    def loss(x):
        log_q = log_softmax(nets.classifier(x), -1).T
        loc, log_scale = nets.encoder(x, labels).chunk(2, -1)
        noise = torch.randn_like(loc)
        z = loc + log_scale.exp() * noise
        logits = nets.decoder(z, labels)
        target = x.expand_as(logits)
        nll = binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        kl = 0.5 * (z**2 - noise**2).sum(-1) - log_scale.sum(-1)
        bound = nll + kl + log_q + math.log(programs.CLASSES)
        return (log_q.exp() * bound).sum() / len(x)

    update = _updater(loss, nets.parameters())
    serve(lambda: update(draw()), link)


def products(setup, link):
    """The matrix products of log p(x) alone, into memory that is there: the floor of ``evaluate``."""
    x = begin(setup)[: setup.evaluated]
    k, chunk = setup.k, setup.chunk
    first, second = torch.randn(setup.latent, setup.hidden), torch.randn(setup.hidden, setup.columns)
    enter, leave = torch.randn(setup.columns, setup.hidden), torch.randn(setup.hidden, 2 * setup.latent)
    z = torch.randn(chunk, setup.latent)
    hidden, logits = torch.empty(chunk, setup.hidden), torch.empty(chunk, setup.columns)

    def unit():
        x.mm(enter).mm(leave)
        for _ in range(math.ceil(len(x) * k / chunk)):
            torch.mm(z, first, out=hidden)
            torch.mm(hidden, second, out=logits)

    serve(unit, link)


def _vae_update(setup):
    decoder, encoder = programs.vae_networks(setup.columns, setup.hidden, setup.latent)

    def loss(x):
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        return (binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl) / len(x)

    return _updater(loss, [*decoder.parameters(), *encoder.parameters()], fused=setup.get("fused", True))


def _updater(loss, parameters, *, fused=True):
    adam = torch.optim.Adam(parameters, lr=1e-3, **({"fused": True} if fused else {}))

    def update(x):
        adam.zero_grad(set_to_none=True)
        value = loss(x)
        value.backward()
        adam.step()
        return value.detach()

    return update
