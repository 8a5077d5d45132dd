"""What a model is worth: functions of anything with Pyro programs ``model`` and ``guide``; none sees an optimizer.

Every function runs in evaluation mode without gradients and with its own noise, and puts everything back. Rows go
through in chunks, so memory stays bounded. Everything is in nats per row unless it says otherwise.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.distributions import score
from pyrovae.errors import ConfigError, DataError
from pyrovae.handlers import frozen, run, sample_sites

__all__ = ["ActiveUnits", "ELBOTerms", "LogMarginal", "active_units", "elbo_terms", "log_marginal", "log_weights"]

Rows = Tensor | np.ndarray | Sequence[Any]
PRECISIONS = ("float32", "bf16")
_aten = torch.ops.aten
_PRODUCTS = {  # which arguments are multiplied
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.convolution.default: (0, 1),
}
_WITHOUT_ADDED = {_aten.addmm.default: _aten.mm.default, _aten.baddbmm.default: _aten.bmm.default}


@dataclass(frozen=True)
class ELBOTerms:
    """The evidence lower bound of each row, ``elbo = reconstruction - kl``.

    Attributes:
        elbo: nats, shape ``(rows,)``.
        reconstruction: ``E_q log p(x|z)``, the negative distortion.
        kl: ``E_q log q(z|x) - log p(z)``, the rate.
    """

    elbo: Tensor
    reconstruction: Tensor
    kl: Tensor

    def __str__(self) -> str:
        means = ", ".join(f"{f.name} {getattr(self, f.name).mean():.2f}" for f in fields(self))
        return f"{means} nats per row ({len(self.elbo):,} rows)"


@dataclass(frozen=True)
class LogMarginal:
    """Importance-weighted estimates of log p(x), a stochastic lower bound: state k with the number.

    Attributes:
        values: nats, shape ``(rows,)``.
        standard_errors: of each value through the finite k, by the delta method, shape ``(rows,)``.
        k: draws per row.
        event_size: elements of one x, for bits per dimension.
    """

    values: Tensor
    standard_errors: Tensor
    k: int
    event_size: int

    @property
    def mean(self) -> float:
        """Mean over the rows, nats per row."""
        return self.values.double().mean().item()

    @property
    def standard_error(self) -> float:
        """Of the mean through the finite k: the rows' errors are independent."""
        return self.standard_errors.double().square().sum().sqrt().item() / len(self.values)

    @property
    def row_standard_error(self) -> float:
        """Of the mean as an estimate for rows that were not seen: ``sd(values) / sqrt(rows)``."""
        rows = len(self.values)
        return self.values.double().std().item() / math.sqrt(rows) if rows > 1 else math.nan

    @property
    def bits_per_dim(self) -> float:
        """``-mean / (event_size log 2)``."""
        return -self.mean / (self.event_size * math.log(2))

    def __str__(self) -> str:
        return (
            f"log p(x) = {self.mean:.2f} nats per row, {self.bits_per_dim:.4f} bits per dimension "
            f"(standard error {self.standard_error:.2g} from k = {self.k} draws, "
            f"{self.row_standard_error:.2g} from {len(self.values):,} rows)"
        )


@dataclass(frozen=True)
class ActiveUnits:
    """Which latent dimensions the guide uses.

    Attributes:
        variances: ``Var_x E_q(z|x)[z_d]``, shape of z.
        threshold: a dimension is active above it.
    """

    variances: Tensor
    threshold: float

    @property
    def active(self) -> Tensor:
        """Boolean, shape of z."""
        return self.variances > self.threshold

    @property
    def count(self) -> int:
        """Number of active dimensions."""
        return int(self.active.sum())

    def __str__(self) -> str:
        return f"{self.count} of {self.variances.numel()} latent dimensions active"


def log_weights(model: Any, *data: Tensor | None, k: int = 1) -> Tensor:
    r"""``log w = log p(x, z) - log q(z|x)`` of k draws per row, at scale 1 whatever a handler or plate says.

    One function serves the importance-weighted objectives and log p(x). Gradients flow; nothing is switched off.

    Args:
        model: anything with ``model`` and ``guide`` whose sites stand in one batch plate at dimension -1.
        *data: what both are called with, ``x`` of shape ``(batch, *x)`` first.
        k: draws per row.

    Returns:
        Tensor of shape ``(k, batch)``.

    Raises:
        ConfigError: if a site stands outside the batch plate, for then no weight belongs to a row.

    References:
        Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2016)
    """
    observed, latent, guide = _log_probs(model, *data, k=k)
    return observed + latent - guide


def elbo_terms(
    model: Any,
    x: Rows,
    c: Rows | None = None,
    *,
    k: int = 1,
    seed: int = 0,
    chunk_size: int = 5000,
    precision: str = "float32",
) -> ELBOTerms:
    """The ELBO of each row and its two parts, averaged over k draws from the guide.

    Args:
        model: anything with ``model`` and ``guide``.
        x: rows, shape ``(rows, *x)``.
        c: context of each row, or None.
        k: draws per row.
        seed: of the evaluation's own noise.
        chunk_size: rows times draws scored at once; bounds the memory.
        precision: ``"float32"``, or ``"bf16"`` as in :func:`log_marginal`.

    Raises:
        ConfigError: for a number below 1, an unknown precision, or a site outside the batch plate.
    """
    terms = [
        torch.stack([observed.mean(0), (guide - latent).mean(0)]).cpu()
        for observed, latent, guide in _scored(model, x, c, k, seed, chunk_size, precision)
    ]
    reconstruction, kl = torch.cat(terms, -1)
    return ELBOTerms(reconstruction - kl, reconstruction, kl)


def log_marginal(
    model: Any,
    x: Rows,
    c: Rows | None = None,
    *,
    k: int = 5000,
    seed: int = 0,
    chunk_size: int = 5000,
    precision: str = "float32",
) -> LogMarginal:
    r"""``log p(x) ~ log 1/k sum_i p(x, z_i) / q(z_i|x)``, with its standard error.

    Args:
        model: anything with ``model`` and ``guide``.
        x: rows, shape ``(rows, *x)``.
        c: context of each row, or None.
        k: draws per row; the estimate is a lower bound in expectation that rises with k.
        seed: of the evaluation's own noise.
        chunk_size: rows times draws scored at once; bounds the memory.
        precision: ``"float32"``, or ``"bf16"`` for matrix products and convolutions of a float32 program in bfloat16;
            draws and log-probabilities stay in float32. On MNIST (784-400-50 trained for 4 epochs, 200 test images,
            k = 5000) that moved log p(x) by -0.0001 ± 0.002 nats on average, with a standard deviation of 0.03 nats
            over rows; the noise of k = 5000 draws was 0.4 nats a row.

    Raises:
        ConfigError: for a number below 1, an unknown precision, or a site outside the batch plate.

    References:
        Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2016)
    """
    estimates = [
        torch.stack(_log_mean_exp((observed + latent - guide).double())).cpu()
        for observed, latent, guide in _scored(model, x, c, k, seed, chunk_size, precision)
    ]
    values, errors = torch.cat(estimates, -1)
    return LogMarginal(values, errors, k, as_tensor(model, x[:1]).numel())


def active_units(
    model: Any, x: Rows, c: Rows | None = None, *, site: str = "z", threshold: float = 0.01, chunk_size: int = 5000
) -> ActiveUnits:
    r"""``A_d = Var_x(E_q(z|x)[z_d])``; dimension d is active if it exceeds the threshold.

    Args:
        model: anything with ``model`` and ``guide``.
        x: rows, shape ``(rows, *x)``.
        c: context of each row, or None.
        site: the latent site's name.
        threshold: 0.01 in the paper.
        chunk_size: rows encoded at once.

    References:
        Importance weighted autoencoders (Burda, Grosse and Salakhutdinov, 2016)
    """
    means = []
    with frozen(model, seed=0):
        for batch in chunks(model, chunk_size, x, c):
            sites = dict(sample_sites(run(model, *batch)[1]))
            if site not in sites:
                raise ConfigError(f"site: the guide has no {site!r}; it has {', '.join(sites)}")
            means.append(sites[site]["fn"].mean.double().cpu())
    return ActiveUnits(torch.cat(means).var(0, correction=0), threshold)


def chunks(model: Any, size: int, *data: Rows | None) -> Iterator[tuple[Tensor, ...]]:
    """Rows in order, ``size`` at a time, as tensors of the model's type and device; None is left out.

    Raises:
        DataError: without rows.
    """
    if data[0] is None or len(data[0]) == 0:
        raise DataError("x: expected at least one row, received none")
    for start in range(0, len(data[0]), size):
        yield tuple(as_tensor(model, d[start : start + size]) for d in data if d is not None)


def as_tensor(model: Any, rows: Rows) -> Tensor:
    """An array, list or tensor as a tensor of the model's floating type, on its device."""
    parameter = next(iter(model.parameters()), None) if isinstance(model, nn.Module) else None
    like = torch.empty(0) if parameter is None else parameter
    tensor = rows if isinstance(rows, Tensor) else torch.tensor(np.asarray(rows))
    return tensor.to(device=like.device, dtype=like.dtype)


def _scored(
    model: Any, x: Rows, c: Rows | None, k: int, seed: int, chunk_size: int, precision: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The three log-probabilities, each ``(k, rows)``, of chunks of rows in as many passes as the chunk size asks.

    Pyro's validation reads every parameter of every draw, which costs as much as scoring. With several draws it sees
    one of every row beforehand, and the others only where a result is not a number.
    """
    if k < 1 or chunk_size < 1:
        raise ConfigError(f"k and chunk_size: expected positive ints, received {k!r} and {chunk_size!r}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, received {precision!r}")
    log_probs = functools.partial(_log_probs, precision=precision)
    if k > 1 and dist.is_validation_enabled():
        with frozen(model, seed):
            for batch in chunks(model, chunk_size, x, c):
                log_probs(model, *batch, k=1)
        log_probs = functools.partial(_unvalidated, log_probs)
    with frozen(model, seed):
        for batch in chunks(model, max(1, chunk_size // k), x, c):
            passes = [log_probs(model, *batch, k=min(chunk_size, k - done)) for done in range(0, k, chunk_size)]
            observed, latent, guide = (torch.cat(draws) for draws in zip(*passes, strict=True))
            yield observed, latent, guide


def _unvalidated(log_probs: Callable[..., tuple[Tensor, ...]], *args: Any, k: int) -> tuple[Tensor, ...]:
    """What ``log_probs`` gives without validation."""
    with pyro.validation_enabled(False):
        result = log_probs(*args, k=k)
    if any(part.isnan().any() for part in result):
        log_probs(*args, k=k)  # for the error that says which parameter it is
    return result


def _log_probs(model: Any, *data: Tensor | None, k: int, precision: str = "float32") -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x|z), log p(z) and log q(z|x), each of shape ``(k, batch)``."""
    with _half_products() if precision == "bf16" else contextlib.nullcontext():
        model_trace, guide_trace = run(model, *data, particles=k)
    batch = len(data[0])  # pyright: ignore[reportArgumentType]
    return (
        _row_log_prob(model_trace, k, batch, observed=True),
        _row_log_prob(model_trace, k, batch, observed=False),
        _row_log_prob(guide_trace, k, batch, observed=False),
    )


@contextlib.contextmanager
def _half_products() -> Iterator[None]:
    """Inference mode would show linear layers instead of their products."""
    with torch.inference_mode(mode=False), torch.no_grad(), _HalfProducts():
        yield


class _HalfProducts(TorchDispatchMode):
    """Products of float32 tensors in bfloat16: factors rounded, results once more; what is added stays in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = _PRODUCTS.get(func)
        if factors is None or kwargs or args[factors[0]].dtype is not torch.float32:
            return func(*args, **(kwargs or {}))
        args = [a.bfloat16() if i in factors else a for i, a in enumerate(args)]
        if func in _WITHOUT_ADDED:
            return _WITHOUT_ADDED[func](*args[1:]).float().add_(args[0])
        if func is not _aten.convolution.default or args[2] is None:
            return func(*args).float()
        bias, args[2] = args[2], None
        result = func(*args).float()
        return result.add_(bias.view(-1, *[1] * (result.dim() - 2)))


def _row_log_prob(trace: poutine.Trace, k: int, batch: int, *, observed: bool) -> Tensor:
    total: Any = 0.0
    for name, site in sample_sites(trace):
        if site["is_observed"] != observed:
            continue
        if not any(plate.dim == -1 for plate in site["cond_indep_stack"]):
            raise ConfigError(f"site {name!r}: expected inside a plate over the batch at dimension -1, found outside")
        log_prob = score(site["fn"], site["value"], *site["args"], **site["kwargs"])
        total = total + scale_and_mask(log_prob, mask=site["mask"])
    return torch.as_tensor(total).expand(k, batch)


def _log_mean_exp(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean weight and, by the delta method, its standard error: sd(w) / (mean(w) sqrt(k))."""
    k = len(log_w)
    value = log_w.logsumexp(0) - math.log(k)
    relative = (log_w - value).exp()
    error = relative.std(0) / math.sqrt(k) if k > 1 else torch.full_like(value, math.nan)
    return value, error
