"""The models as a user of Pyro writes them: plain modules, ``pyro.module``, plates; and the networks of everybody.

The networks are made in one order from one seed, so contenders begin with the same weights as ``pyrovae.VAE``.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

CLASSES = 10


def vae_networks(columns, hidden, latent):
    """Decoder and encoder of Pyro's example, the encoder's two heads as one matrix."""
    decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, columns))
    encoder = nn.Sequential(nn.Linear(columns, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
    return decoder, encoder


class VAE(nn.Module):
    """Pyro's example, with logits."""

    def __init__(self, setup):
        super().__init__()
        self.latent = setup.latent
        self.decoder, self.encoder = vae_networks(setup.columns, setup.hidden, setup.latent)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc, scale = x.new_zeros(len(x), self.latent), x.new_ones(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Concatenated(nn.Linear):
    """``W [x; y]``, each of the parts repeated to the shape of both: what everybody writes."""

    def __init__(self, sizes, out):
        super().__init__(sum(sizes), out)

    def forward(self, *parts):
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return super().forward(torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], -1))


class Split(nn.Module):
    """``W_x x + W_y y``, the same function: two matrices, and ``W_x x`` is computed once for all y."""

    def __init__(self, sizes, out):
        super().__init__()
        whole = nn.Linear(sum(sizes), out)  # so that the function is that of Concatenated from the same seed
        self.weights = nn.ParameterList(part.clone() for part in whole.weight.detach().split(sizes, 1))
        self.bias = whole.bias

    def forward(self, x, y):
        first, second = self.weights
        return nn.functional.linear(x, first, self.bias) + nn.functional.linear(y, second)


class Joined(nn.Module):
    """A network of two inputs with a first layer of either kind."""

    def __init__(self, first, sizes, hidden, out):
        super().__init__()
        self.first = first(sizes, hidden)
        self.rest = nn.Sequential(nn.Softplus(), nn.Linear(hidden, out))

    def forward(self, x, y):
        return self.rest(self.first(x, y))


class M2(nn.Module):
    """Semi-supervised M2 on rows without labels: q(y|x) q(z|x, y), y enumerated."""

    def __init__(self, setup, first=Concatenated):
        super().__init__()
        columns, hidden, latent = setup.columns, setup.hidden, setup.latent
        self.latent = latent
        self.classifier = nn.Sequential(nn.Linear(columns, hidden), nn.Softplus(), nn.Linear(hidden, CLASSES))
        self.encoder = Joined(first, [columns, CLASSES], hidden, 2 * latent)
        self.decoder = Joined(first, [latent, CLASSES], hidden, columns)

    def model(self, x):
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(len(x), CLASSES)))
            loc, scale = x.new_zeros(len(x), self.latent), x.new_ones(len(x), self.latent)
            z = pyro.sample("z", dist.Normal(loc, scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z, y)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            logits = self.classifier(x)
            y = pyro.sample("y", dist.OneHotCategorical(logits=logits), infer={"enumerate": "parallel"})
            loc, log_scale = self.encoder(x, y).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
