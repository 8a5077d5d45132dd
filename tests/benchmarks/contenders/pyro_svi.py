"""Pyro as its tutorials use it: ``SVI.step``, validation on, one optimizer of Pyro's."""

import warnings

import pyro
import torch
from pyro.infer import SVI, JitTrace_ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.importance import vectorized_importance_weights
from worker import serve

from contenders import programs
from contenders.rows import begin, epoch_of, sampler


def vae(setup, link):
    """``Trace_ELBO``, or ``JitTrace_ELBO`` with ``setup.jit``."""
    draw = sampler(begin(setup), setup.batch)
    if setup.get("jit"):
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
    update = _updater(programs.VAE(setup), JitTrace_ELBO() if setup.get("jit") else Trace_ELBO())
    serve(lambda: update(draw()), link)


def epoch(setup, link):
    """The same over all rows, indexed as a tensor."""
    x = begin(setup)
    update = _updater(programs.VAE(setup), Trace_ELBO())
    serve(epoch_of(update, x, setup.batch), link)


def iwae(setup, link):
    """``RenyiELBO`` at alpha 0, all particles at once."""
    draw = sampler(begin(setup), setup.batch)
    bound = RenyiELBO(alpha=0, num_particles=setup.k, vectorize_particles=True, max_plate_nesting=1)
    update = _updater(programs.VAE(setup), bound)
    serve(lambda: update(draw()), link)


def m2(setup, link):
    """``TraceEnum_ELBO`` over the ten classes in parallel; ``setup.split`` as in the loop by hand."""
    draw = sampler(begin(setup), setup.batch)
    nets = programs.M2(setup, programs.Split if setup.split else programs.Concatenated)
    update = _updater(nets, TraceEnum_ELBO(max_plate_nesting=1))
    serve(lambda: update(draw()), link)


def evaluate(setup, link):
    """``vectorized_importance_weights``, as many rows at once as the others score."""
    x = begin(setup)[: setup.evaluated]
    vae = programs.VAE(setup)
    rows = max(1, setup.chunk // setup.k)

    @torch.no_grad()
    def unit():
        for batch in x.split(rows):
            # It keeps the plate's rows apart and leaves the mean over the draws to its caller.
            weights, _, _ = vectorized_importance_weights(
                vae.model, vae.guide, batch, num_samples=setup.k, max_plate_nesting=1, normalized=False
            )
            weights.logsumexp(0)

    serve(unit, link)


def _updater(nets, elbo):
    svi = SVI(nets.model, nets.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    return lambda x: svi.step(x) / len(x)
