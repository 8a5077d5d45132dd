"""Before training: what the guide draws must be something the prior can score."""

import math
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyrovae.distributions.supports import open_unit_interval
from pyrovae.errors import ConfigError
from pyrovae.handlers import frozen, run, sample_sites

__all__ = ["check_sites"]

_BOUNDS = {
    constraints.real: (-math.inf, math.inf),
    constraints.positive: (0.0, math.inf),
    constraints.nonnegative: (0.0, math.inf),
    constraints.unit_interval: (0.0, 1.0),
    open_unit_interval: (0.0, 1.0),
}


def check_sites(model: nn.Module, *batch: Tensor) -> None:
    """Every latent site of the guide has the shape of the model's, and its values lie where the prior has a density.

    KL(q || p) is infinite, or a comparison of densities under different measures, where the support of q is no part
    of that of p: a Normal posterior under a Gamma prior, real vectors under a prior on the sphere.

    Raises:
        ConfigError: naming the site, with both shapes or both supports.
    """
    with frozen(model, seed=0), pyro.validation_enabled(False):
        try:
            traces = run(model, *batch)
        except (ValueError, RuntimeError, TypeError, NotImplementedError):
            return _check_shapes_alone(model, batch)
    prior, guide = (dict(sample_sites(trace)) for trace in traces)
    for name, site in guide.items():
        if name in prior and not prior[name]["is_observed"]:
            _check(name, site["fn"], prior[name]["fn"])
    return None


def _check_shapes_alone(model: Any, batch: tuple[Tensor, ...]) -> None:
    """Programs that do not run together: the prior's own draws say whether a latent's shape is to blame."""
    with torch.no_grad(), pyro.get_param_store().scope(), pyro.validation_enabled(False):
        try:
            guide = dict(sample_sites(pyro.poutine.trace(model.guide).get_trace(*batch)))
            prior = dict(sample_sites(pyro.poutine.trace(model.model).get_trace(*batch)))
        except (ValueError, RuntimeError, TypeError, NotImplementedError):
            return  # scoring the first batch says why
    for name, site in guide.items():
        if name in prior and not prior[name]["is_observed"]:
            _check(name, site["fn"], prior[name]["fn"])


def _check(name: str, posterior: Any, prior: Any) -> None:
    if posterior.event_shape != prior.event_shape:
        raise ConfigError(
            f"site {name!r}: the posterior draws {tuple(posterior.event_shape)}, the prior scores "
            f"{tuple(prior.event_shape)}: give both one shape"
        )
    q, p = _element(posterior.support), _element(prior.support)
    if not _inside(q, p):
        raise ConfigError(
            f"site {name!r}: the posterior's values are {_words(q)}, the prior's density is on {_words(p)}: "
            "take a prior and a posterior of one support"
        )


def _element(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _inside(q: Any, p: Any) -> bool:
    """Whether values of q lie in p, under one measure."""
    if q is p or constraints.is_dependent(q) or constraints.is_dependent(p):
        return True
    inner, outer = _bounds(q), _bounds(p)
    if inner is not None and outer is not None:
        return outer[0] <= inner[0] and inner[1] <= outer[1]
    return inner is outer and repr(q) == repr(p)  # which tells bounds and numbers of classes


def _bounds(support: Any) -> tuple[float, float] | None:
    """Of a real number; None for what is counted, or lies on a surface."""
    if support in _BOUNDS:
        return _BOUNDS[support]
    if isinstance(support, constraints.interval | constraints.half_open_interval):
        return float(support.lower_bound), float(support.upper_bound)
    if isinstance(support, constraints.greater_than | constraints.greater_than_eq):
        return float(support.lower_bound), math.inf
    return None


def _words(support: Any) -> str:
    bounds = _bounds(support)
    if bounds == (-math.inf, math.inf):
        return "real numbers"
    if bounds is not None:
        return f"numbers from {bounds[0]:g}" + ("" if math.isinf(bounds[1]) else f" to {bounds[1]:g}")
    words = {constraints.boolean: "0 or 1", constraints.simplex: "points of the simplex"}
    return words.get(support, str(support).rstrip("()"))
