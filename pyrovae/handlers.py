"""Effects on Pyro programs, each a few lines: what an objective or an evaluation does to a model from outside."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

__all__ = ["frozen", "mode", "run", "sample_sites", "stream", "temper"]


class TemperMessenger(Messenger):
    """Multiplies the scale of latent sites by beta; see :func:`temper`."""

    def __init__(self, beta: float | Tensor, sites: Collection[str] | None) -> None:
        super().__init__()
        self.beta, self.sites = beta, sites

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and (self.sites is None or msg["name"] in self.sites):
            msg["scale"] = self.beta * msg["scale"]


def temper(beta: float | Tensor, sites: Collection[str] | None = None) -> Messenger:
    r"""Weigh the latent sites' log-probabilities: around model and guide together, ``E_q log p(x|z) - beta KL``.

    A program tempered inside gives a wrong log p(x), and one tempered on one side a wrong ELBO; an objective puts this
    around both. Unlike ``pyro.poutine.scale`` it accepts ``beta = 0`` and leaves observed sites alone.

    Args:
        beta: the weight, a number or a scalar tensor, at least 0.
        sites: names of the sites; None for every latent site.

    References:
        beta-VAE: learning basic visual concepts with a constrained variational framework (Higgins et al., 2017)

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     return pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        >>> with temper(0.0):
        ...     trace = poutine.trace(model).get_trace()
        >>> trace.log_prob_sum()
        tensor(0.)
    """
    return TemperMessenger(beta, sites)


def run(model: Any, *data: Tensor | None, particles: int = 1) -> tuple[poutine.Trace, poutine.Trace]:
    """One pass of a model replayed against its guide, with the user's param store left alone.

    Args:
        model: anything with Pyro programs ``model`` and ``guide`` and a batch plate at dimension -1.
        *data: what both programs are called with.
        particles: draws per row, vectorised at dimension -2; 1 adds no dimension.

    Returns:
        The traces of model and guide.
    """
    plate = pyro.plate("particles", particles, dim=-2) if particles > 1 else contextlib.nullcontext()
    with pyro.get_param_store().scope(), plate:
        guide = poutine.trace(model.guide).get_trace(*data)
        return poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(*data), guide


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Any]]:
    """Name and message of every random site; a plate's subsampling is none."""
    for name, site in trace.nodes.items():
        if site.get("type") == "sample" and not poutine.util.site_is_subsample(site):
            yield name, site


@contextlib.contextmanager
def frozen(model: Any, seed: int | None = None) -> Iterator[None]:
    """Evaluation mode, no gradients and, given a seed, a noise stream of its own; everything is put back afterwards.

    Args:
        model: modules among ``model`` and its parts change their mode; plain programs have none.
        seed: None draws from the global generator.
    """
    module = model if isinstance(model, nn.Module) else nn.Module()
    with stream(module, seed, fork=seed is not None), mode(module, training=False), torch.no_grad():
        yield


@contextlib.contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Training or evaluation mode; every part gets its own back afterwards."""
    modes = {part: part.training for part in module.modules()}
    module.train(training)
    try:
        yield
    finally:
        for part, before in modes.items():
            part.training = before


@contextlib.contextmanager
def stream(module: nn.Module, seed: int | None = None, *, fork: bool = True) -> Iterator[None]:
    """The global generators of the module's devices as a stream of their own, put back afterwards.

    Args:
        module: tells the devices.
        seed: where the stream starts; None goes on from here.
        fork: False lets what is drawn be drawn.
    """
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices, enabled=fork):
        if seed is not None:
            torch.manual_seed(seed)
        yield
