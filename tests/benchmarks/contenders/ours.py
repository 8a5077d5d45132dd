"""pyrovae: ``compile_step`` on its own VAE and on plain Pyro programs, ``fit`` and ``log_marginal``."""

import functools

import torch
from pyro.infer import TraceEnum_ELBO
from torch.nn import Softplus
from worker import serve

import pyrovae as pv
from contenders import programs
from contenders.rows import begin, load, sampler


def vae(setup, link):
    """One step at ``setup.level`` and ``setup.precision``, of the library's VAE or of ``setup.program == "own"``."""
    draw = sampler(begin(setup), setup.batch)
    step = _step(setup, _vae(setup), pv.ELBO())
    _serve(lambda: step(draw()), link)


def iwae(setup, link):
    """One step of IWAE, all draws at once."""
    draw = sampler(begin(setup), setup.batch)
    step = _step(setup, _vae(setup), pv.IWAE(k=setup.k))
    _serve(lambda: step(draw()), link)


def m2(setup, link):
    """One step of the enumerated program that ``SVI`` trains; with ``setup.split`` its first layers are split."""
    draw = sampler(begin(setup), setup.batch)
    nets = programs.M2(setup, pv.nn.SplitLinear if setup.split else programs.Concatenated)
    step = _step(setup, nets, pv.ELBO(estimator=TraceEnum_ELBO(max_plate_nesting=1)))
    _serve(lambda: step(draw()), link)


def epoch(setup, link):
    """``fit`` itself, stopped between epochs; what it compiles belongs to the first one."""
    x = begin(setup)

    class Lap(pv.Callback):
        def on_epoch(self, state):
            if state.epoch > 1:  # the second one captures the shorter last batch, which has come again
                link.lap()

    pv.fit(
        _vae(setup),
        x,
        epochs=100_000,
        batch_size=setup.batch,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3, fused=True),
        callbacks=[Lap()],
        progress=False,
        compile=setup.level,
        precision=setup.precision,
    )


def data(setup, link):
    """Gathering alone, of the rows ``setup.stored``; with ``setup.binarize``, a draw for every value."""
    x = begin(setup)
    if setup.stored != "float32":
        x = load(setup, setup.stored)
    preprocess = pv.Binarize() if setup.binarize else None
    source = pv.data.rows.batches(x, batch_size=setup.batch, preprocess=preprocess)

    def endless():
        number = 0
        while True:
            yield from source.epoch(number)
            number += 1

    serve(functools.partial(next, endless()), link)


def evaluate(setup, link):
    """``log_marginal`` with k draws a row."""
    x = begin(setup)[: setup.evaluated]
    vae, precision = _vae(setup), setup.precision
    _serve(lambda: pv.log_marginal(vae, x, k=setup.k, chunk_size=setup.chunk, precision=precision), link)


def _vae(setup):
    if setup.get("program") == "own":
        return programs.VAE(setup)
    columns, latent = setup.columns, setup.latent
    net = functools.partial(pv.MLP, hidden=(setup.hidden,), activation=Softplus)
    likelihood = pv.Bernoulli(columns, context=latent, net=net)
    return pv.VAE(pv.StandardNormal(latent), likelihood, pv.Normal(latent, context=columns, net=net))


def _step(setup, nets, objective):
    adam = torch.optim.Adam(nets.parameters(), lr=1e-3, fused=True)
    return pv.compile_step(nets.model, nets.guide, objective, adam, level=setup.level, precision=setup.precision)


def _serve(unit, link):
    """As everybody, with the allocator's setting that ``fit`` switches on for its loop."""
    with pv.compiled.kept_heap():
        serve(unit, link)
