"""Rows in, log-probabilities out: in chunks, by the program itself or by its graph."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor, nn

from pyrovae.distributions import score, whole
from pyrovae.errors import ConfigError, DataError
from pyrovae.graphs import (
    LEVELS,
    PRECISIONS,
    CompilerFailed,
    Function,
    Refused,
    compiler,
    cuda_devices,
    half_products,
    kept,
    warn_if_emulated,
)
from pyrovae.handlers import frozen, run, sample_sites, unguided

__all__ = ["Rows", "as_tensor", "chunks", "log_probs", "prior_log_prob", "row_log_prob", "scored"]

Rows = Tensor | np.ndarray | Sequence[Any]
_ROWS = 5  # of a full chunk, where there are more draws than that leaves room for
_SECONDS_CAPTURE, _SECONDS_COMPILE = 3.0, 20.0  # of matrix products from which a graph, and compiling it, pay


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


def scored(
    score: Callable[..., tuple[Tensor, ...]],
    model: Any,
    x: Rows,
    c: Rows | None,
    k: int,
    seed: int,
    chunk_size: int,
    precision: str,
    compile: str,
) -> Iterator[tuple[Tensor, ...]]:
    """What ``score`` gives, each ``(k, rows)``, of chunks of rows in as many passes as the chunk size asks.

    Pyro's validation reads every parameter of every draw, which costs as much as scoring. With several draws it sees
    one of every row beforehand, and the others only where a result is not a number.
    """
    if k < 1 or chunk_size < 1:
        raise ConfigError(f"k and chunk_size: expected positive ints, received {k!r} and {chunk_size!r}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, received {precision!r}")
    if compile not in LEVELS:
        raise ConfigError(f"compile: expected one of {', '.join(LEVELS)}, received {compile!r}")
    if precision == "bf16":
        warn_if_emulated(model.parameters() if isinstance(model, nn.Module) else ())
    draws = min(k, max(1, chunk_size // _ROWS))  # of one row in one pass: several rows share their noise-free parts
    score_batch = functools.partial(score, model, precision=precision)
    if k > 1 and dist.is_validation_enabled():
        with frozen(model, seed):
            for batch in chunks(model, chunk_size, x, c):
                score_batch(*batch, k=1)
    score_pass = _Pass(score_batch, model, draws, _level(compile, model, len(x) * k))
    with frozen(model, seed):
        for batch in chunks(model, max(1, chunk_size // draws), x, c):
            passes = [score_pass(*batch, k=min(draws, k - done)) for done in range(0, k, draws)]
            yield tuple(torch.cat(parts) for parts in zip(*passes, strict=True))


def _level(wanted: str, model: Any, samples: int) -> str:
    """How passes are run: a choice by numbers alone, the same in every evaluation of this size."""
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    compilable = bool(parameters) and compiler(parameters[0].device) is not None
    if wanted == "compiled" and not compilable:
        raise ConfigError("compile: 'compiled' needs a module and a C++ compiler; 'replay' needs none")
    if wanted != "auto":
        return wanted
    seconds = 2 * samples * sum(p.numel() for p in parameters) / 2e11  # of matrix products, roughly
    if compilable and seconds > _SECONDS_COMPILE:
        return "compiled"
    return "replay" if seconds > _SECONDS_CAPTURE else "eager"


class _Pass:
    """The log-probabilities of a batch, by the program or by its graph: most batches are of one kind.

    Without Pyro's validation, except where a result is not a number: for the error that says which parameter it is.
    """

    def __init__(self, log_probs: Callable[..., tuple[Tensor, ...]], model: Any, draws: int, level: str) -> None:
        self.log_probs, self.draws, self.level = log_probs, draws, level
        module = model if isinstance(model, nn.Module) else nn.Module()
        self.tensors = [*module.parameters(), *module.buffers()]
        self.graph: Function | None = None
        self.shapes: list[torch.Size] = []

    def __call__(self, *batch: Tensor, k: int) -> tuple[Tensor, ...]:
        if self.draws == 1:
            return self.log_probs(*batch, k=k)
        with pyro.validation_enabled(False):
            if self.graph is None and self.level != "eager":
                self._capture(batch, k)
            fits = self.graph is not None and k == self.draws and [b.shape for b in batch] == self.shapes
            result = self.graph(*batch) if fits and self.graph is not None else None
            result = self.log_probs(*batch, k=k) if result is None else tuple(result)
        if any(part.isnan().any() for part in result):
            self.log_probs(*batch, k=k)
        return result

    def _capture(self, batch: tuple[Tensor, ...], k: int) -> None:
        """A graph that agrees with the program on this batch, or none."""
        self.shapes = [b.shape for b in batch]
        devices = cuda_devices([*self.tensors, *batch])
        try:
            with whole() if self.level == "compiled" else contextlib.nullcontext():
                graph = Function(lambda *data: self.log_probs(*data, k=k), self.tensors or [torch.zeros(())], batch)
            if self.level == "compiled":
                try:
                    graph.compile(batch)
                except CompilerFailed as error:
                    warnings.warn(f"inductor failed, captured passes are replayed instead: {error}", stacklevel=2)
            with kept((), devices):
                expected = self.log_probs(*batch, k=k)
            with kept((), devices):
                received = graph(*batch)
        except Refused:
            self.level = "eager"
            return
        if received is None or all(map(_close, expected, received)):
            self.graph = graph
        else:
            self.level = "eager"


def _close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-2)


def log_probs(model: Any, *data: Tensor | None, k: int, precision: str = "float32") -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x|z), log p(z) and log q(z|x), each of shape ``(k, batch)``."""
    with half_products() if precision == "bf16" else contextlib.nullcontext():
        model_trace, guide_trace = run(model, *data, particles=k)
    batch = len(data[0])  # pyright: ignore[reportArgumentType]
    return (
        row_log_prob(model_trace, k, batch, observed=True),
        row_log_prob(model_trace, k, batch, observed=False),
        row_log_prob(guide_trace, k, batch, observed=False),
    )


def prior_log_prob(model: Any, *data: Tensor | None, k: int, precision: str = "float32") -> tuple[Tensor]:
    """Log p(x|z) of draws from the prior, shape ``(k, batch)``."""
    with half_products() if precision == "bf16" else contextlib.nullcontext():
        trace = unguided(model.model, *data, particles=k)
    return (row_log_prob(trace, k, len(data[0]), observed=True),)  # pyright: ignore[reportArgumentType]


def row_log_prob(trace: poutine.Trace, k: int, batch: int, *, observed: bool) -> Tensor:
    """The sum over a trace's observed or latent sites, at scale 1, for every draw and row: shape ``(k, batch)``.

    Raises:
        ConfigError: for a site outside the batch plate, which belongs to no row.
    """
    total: Any = 0.0
    for name, site in sample_sites(trace):
        if site["is_observed"] != observed:
            continue
        if not any(plate.dim == -1 for plate in site["cond_indep_stack"]):
            raise ConfigError(f"site {name!r}: expected inside a plate over the batch at dimension -1, found outside")
        log_prob = score(site["fn"], site["value"], *site["args"], **site["kwargs"])
        total = total + scale_and_mask(log_prob, mask=site["mask"])
    return torch.as_tensor(total).expand(k, batch)
