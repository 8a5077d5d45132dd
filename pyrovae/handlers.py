"""Effects on Pyro programs, each a few lines: what an objective or an evaluation does to a model from outside."""

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = [
    "detached",
    "frozen",
    "mode",
    "particle_plate",
    "reach",
    "recorded",
    "run",
    "sample_sites",
    "statistics_kept",
    "stream",
    "temper",
    "unguided",
    "weigh",
]


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


class WeighMessenger(Messenger):
    """Multiplies the scale of sites in the batch plate by the rows' weights; see :func:`weigh`."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def _pyro_sample(self, msg: Any) -> None:
        if any(plate.dim == -1 for plate in msg["cond_indep_stack"]):
            one = not isinstance(msg["scale"], Tensor) and msg["scale"] == 1
            msg["scale"] = self.weights if one else self.weights * msg["scale"]


def weigh(weights: Tensor) -> Messenger:
    """Weigh rows: every site in the plate at dimension -1 counts ``weights[i]`` times in row i, 0 times too.

    Sites outside that plate belong to no row and keep their scale.

    Args:
        weights: shape ``(batch,)``, from 0.

    Example:
        >>> import pyro.distributions as dist
        >>> def model():
        ...     with pyro.plate("batch", 2):
        ...         return pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.zeros(2))
        >>> with weigh(torch.tensor([0.0, 2.0])):
        ...     trace = poutine.trace(model).get_trace()
        >>> trace.log_prob_sum()
        tensor(-1.8379)
    """
    return WeighMessenger(weights)


def run(model: Any, *data: Tensor | None, particles: int = 1) -> tuple[poutine.Trace, poutine.Trace]:
    """One pass of a model replayed against its guide, with the user's param store left alone.

    Args:
        model: anything with Pyro programs ``model`` and ``guide`` and a batch plate at dimension -1.
        *data: what both programs are called with.
        particles: draws per row, vectorised at dimension -2; 1 adds no dimension.

    Returns:
        The traces of model and guide.
    """
    with pyro.get_param_store().scope(), particle_plate(particles):
        guide = poutine.trace(model.guide).get_trace(*data)
        return poutine.trace(poutine.replay(model.model, trace=guide)).get_trace(*data), guide


def reach(program: Any, site: str, *data: Tensor | None, replay: poutine.Trace | None = None) -> poutine.Trace:
    """One pass of a program up to a site, whose distribution is known then; nothing after it is run.

    Args:
        program: any.
        site: its name; it is drawn, not scored.
        *data: what the program is called with.
        replay: a trace, whose draws are taken over.

    Returns:
        The trace; that of the whole program if it has no such site.

    Example:
        >>> import pyro.distributions as dist
        >>> def guide(x):
        ...     y = pyro.sample("y", dist.Bernoulli(logits=x))
        ...     raise AssertionError
        >>> reach(guide, "y", torch.zeros(3)).nodes["y"]["fn"].mean
        tensor([0.5000, 0.5000, 0.5000])
    """
    program = program if replay is None else poutine.replay(program, trace=replay)
    with pyro.get_param_store().scope(), poutine.trace() as tracer, contextlib.suppress(_Reached), _Until(site):
        program(*data)
    return tracer.trace


class _Reached(Exception):
    """A site was reached."""


class _Until(Messenger):
    """Stops a program at a site."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] == self.site:  # the trace around this has it already
            raise _Reached


def unguided(program: Any, *data: Tensor | None, particles: int = 1) -> poutine.Trace:
    """One pass of a model by itself: latents are draws of the prior, whatever the data are.

    Args:
        program: the generative one of a model, with a batch plate at dimension -1.
        *data: what it is called with.
        particles: as in :func:`run`.
    """
    with pyro.get_param_store().scope(), particle_plate(particles):
        return poutine.trace(program).get_trace(*data)


def particle_plate(particles: int) -> Any:
    """The plate of draws at dimension -2; none for one draw."""
    return pyro.plate("particles", particles, dim=-2) if particles > 1 else contextlib.nullcontext()


@contextlib.contextmanager
def recorded(noise: list[Any]) -> Iterator[None]:
    """Whatever a program draws besides its sample sites, dropout masks above all, is appended to ``noise``."""
    recorder = _Recorded(noise)
    with recorder, _Unrecorded(recorder):
        yield


@contextlib.contextmanager
def detached(model: Any, noise: Iterable[Any] = ()) -> Iterator[None]:
    """A second run of a program with parameters that get no gradient; what depends on other tensors keeps its own.

    Leaves that require gradients enter every function detached, so that it does not matter where a program keeps
    them. Running statistics of normalisation layers are not updated: the first run on the batch did that.

    Args:
        model: modules among ``model`` and its parts have the running statistics.
        noise: what the first run drew besides its sample sites, see :func:`recorded`; it is drawn again.

    Example:
        >>> layer, z = nn.Linear(1, 1), torch.ones(1, requires_grad=True) * 2
        >>> with detached(layer):
        ...     y = layer(z)
        >>> torch.autograd.grad(y, [*layer.parameters()], retain_graph=True, allow_unused=True)
        (None, None)
        >>> bool(torch.autograd.grad(y, z)[0] == layer.weight)
        True
    """
    with statistics_kept(model), _Detached(), _Played(iter(noise)):
        yield


_QUESTIONS = {getattr(Tensor, name).__get__ for name in ("requires_grad", "is_leaf", "grad")}


class _Detached(TorchFunctionMode):
    """Leaves that require gradients enter every function without."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _QUESTIONS:
            args, kwargs = tree_map(_without_gradient, (args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _without_gradient(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) and value.requires_grad and value.is_leaf else value


class _Recorded(TorchDispatchMode):
    """Keeps the results of everything that draws from a generator, while it is on."""

    def __init__(self, noise: list[Any]) -> None:
        super().__init__()
        self.noise, self.on = noise, True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.on and _draws(func):
            self.noise.append(tree_map(torch.clone, result))  # somebody may go on to change it in place
        return result


class _Unrecorded(Messenger):
    """Turns a recorder off where a sample site draws: a second run is given the site's value."""

    def __init__(self, recorder: _Recorded) -> None:
        super().__init__()
        self.recorder = recorder

    def _pyro_sample(self, msg: Any) -> None:
        self.recorder.on = False

    def _pyro_post_sample(self, msg: Any) -> None:
        self.recorder.on = True


class _Played(TorchDispatchMode):
    """Gives the results of a record instead of drawing, as long as there are any."""

    def __init__(self, noise: Iterator[Any]) -> None:
        super().__init__()
        self.noise = noise

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = next(self.noise, None) if _draws(func) else None
        if result is None:
            return func(*args, **(kwargs or {}))
        return args[0].copy_(result) if func._schema.is_mutable else result


def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@contextlib.contextmanager
def statistics_kept(model: Any) -> Iterator[None]:
    """Normalisation layers write their running statistics into copies, which are forgotten."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase)] if isinstance(model, nn.Module) else []
    before = [(norm, dict(norm._buffers)) for norm in norms]
    for norm, buffers in before:
        norm._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in before:
            norm._buffers.update(buffers)


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
