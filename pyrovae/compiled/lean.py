"""Pyro's ``Trace_ELBO`` without trace objects: the same numbers, bit for bit, in less time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pyro
import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.infer.util import torch_item
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.plate_messenger import PlateMessenger
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.objectives import ELBO

__all__ = ["lean"]


def lean(objective: Any, model: Any) -> Any:
    """The objective with a leaner estimator where there is one that gives the same numbers; else the objective."""
    if type(objective) is not ELBO:
        return objective
    estimator = objective.estimator_for(model)
    if type(estimator) is not Trace_ELBO or estimator.num_particles != 1:
        return objective
    return ELBO(objective.beta, _LeanELBO(estimator), objective.sites)


class _Sites(Messenger):
    """Keeps what a log-probability needs of every site, and gives the sites of the model the guide's values."""

    def __init__(self, guide: dict[str, Any]) -> None:
        super().__init__()
        self.guide, self.kept = guide, {}

    def _pyro_sample(self, msg: Any) -> None:
        drawn = self.guide.get(msg["name"])
        if drawn is not None and not msg["is_observed"]:
            msg["value"], msg["infer"], msg["done"] = drawn["value"], drawn["infer"], True

    def _pyro_post_sample(self, msg: Any) -> None:
        self.kept[msg["name"]] = msg.copy()


class _LeanELBO:
    """``Trace_ELBO.differentiable_loss``; a guide that needs score functions gets Pyro's own, from the same draws."""

    def __init__(self, estimator: Trace_ELBO) -> None:
        self.estimator = estimator

    def differentiable_loss(self, model: Any, guide: Any, *data: Any) -> Tensor:
        with _shortcuts():
            with _Sites({}) as drawn:
                guide(*data)
            with _Sites(drawn.kept) as scored:
                model(*data)
        # in Pyro's order, site by site, so that gradients are added up in the same order too
        logs = [scale_and_mask(_log_prob(s), s["scale"], s["mask"]).sum() for s in _random(scored)]
        parts = [s["fn"].score_parts(s["value"]).scale_and_mask(s["scale"], s["mask"]) for s in _random(drawn)]
        if not all(is_identically_zero(p.score_function) for p in parts):
            return self._by_traces(scored, drawn)
        loss: Any = sum(log.item() for log in logs)
        surrogate: Any = sum(logs[1:], start=logs[0]) if logs else 0
        for log_prob, _, entropy in parts:
            total = log_prob.sum()
            loss -= total.item()
            if not is_identically_zero(entropy):
                surrogate = surrogate - (total if entropy is log_prob else entropy.sum())
        return -loss + (torch_item(surrogate) - surrogate)

    def _by_traces(self, scored: _Sites, drawn: _Sites) -> Tensor:
        model_trace, guide_trace = _trace(scored), _trace(drawn)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        loss, surrogate = self.estimator._differentiable_loss_particle(model_trace, guide_trace)
        return loss + (surrogate - torch_item(surrogate))  # pyright: ignore[reportOperatorIssue]


@contextlib.contextmanager
def _shortcuts() -> Iterator[None]:
    """Pyro without what takes much of a small step and changes no number; afterwards it is as it was.

    Modules are not entered into a param store that is thrown away; plates of all rows ask no handler which rows; and
    distributions that have the shape of their plates are not expanded to it.
    """
    replaced = {
        (pyro, "module"): lambda name, nn_module, *_, **__: nn_module,
        (SubsampleMessenger, "_subsample"): staticmethod(_subsample),
        (BroadcastMessenger, "_pyro_sample"): staticmethod(_broadcast),
    }
    before = {(owner, name): vars(owner)[name] for owner, name in replaced}
    try:
        for (owner, name), value in replaced.items():
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name), value in before.items():
            setattr(owner, name, value)


_pyro_subsample, _pyro_broadcast = SubsampleMessenger._subsample, BroadcastMessenger._pyro_sample


def _subsample(name: str, size: Any = None, subsample_size: Any = None, *rest: Any) -> Any:
    """What a plate works with: its size, that of its subsample, and the rows in it."""
    every = type(size) is int and (subsample_size is None or subsample_size == size)
    chosen = any(r is not None for r in rest) or not all(isinstance(m, (_Sites, PlateMessenger)) for m in _PYRO_STACK)
    if every and not chosen:
        return size, size, torch.arange(size)
    return _pyro_subsample(name, size, subsample_size, *rest)


def _broadcast(msg: Any) -> None:
    """Expand the distribution of a site to the shape of the plates around it."""
    shape = getattr(msg["fn"], "batch_shape", ())
    frames = [f for f in msg["cond_indep_stack"] if f.dim is not None]
    if not all(shape[f.dim : f.dim + 1 or None] == (f.size,) for f in frames):
        _pyro_broadcast(msg)


def _random(sites: _Sites) -> list[Any]:
    return [site for site in sites.kept.values() if not site_is_subsample(site)]


def _log_prob(site: Any) -> Tensor:
    return site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])


def _trace(sites: _Sites) -> Trace:
    trace = Trace()
    for site in _random(sites):
        trace.add_node(site["name"], **site)
    return trace
