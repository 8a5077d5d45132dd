"""Missing cells given the observed ones: draws, moments and log-probabilities under p(x_missing | x_observed)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrovae.distributions.masked import MaskedCells
from pyrovae.errors import ConfigError, DataError
from pyrovae.evaluation.passes import Rows, chunks, row_log_prob
from pyrovae.handlers import frozen, run, sample_sites

__all__ = ["Imputation", "cell_log_prob", "conditional_log_prob", "impute"]


@dataclass(frozen=True)
class Imputation:
    """Rows with their missing cells filled; observed cells are bit for bit what they were.

    Attributes:
        draws: independent completions of every row from p(x_missing | x_observed), shape ``(draws, rows, *x)``.
        mean: of every cell given the observed ones, shape ``(rows, *x)``; NaN where the likelihood has no mean.
        std: its standard deviation, 0 in observed cells.
        effective_sample_size: of the k importance draws of each row, shape ``(rows,)``; where it is near 1, take more.
        k: importance draws per row.
    """

    draws: Tensor
    mean: Tensor
    std: Tensor
    effective_sample_size: Tensor
    k: int

    @property
    def mode(self) -> Tensor:
        """The most frequent value of every cell among the draws, for classes; take a hundred draws or more."""
        return self.draws.mode(0).values

    def __str__(self) -> str:
        lowest = self.effective_sample_size.min()
        return (
            f"{len(self.draws)} completions of {self.draws.shape[1]:,} rows, "
            f"{int((self.std != 0).sum()):,} cells filled (of k = {self.k} importance draws a row "
            f"{self.effective_sample_size.median():.0f} are effective in the median, {lowest:.1f} at least)"
        )


def impute(
    model: Any,
    x: Rows,
    c: Rows | None = None,
    *,
    draws: int = 10,
    k: int = 1000,
    seed: int = 0,
    chunk_size: int = 5000,
) -> Imputation:
    r"""Fill missing cells, NaN, by importance sampling: ``p(x_m|x_o) ~ sum_i w_i p(x_m|x_o, z_i)``.

    With ``z_1, ..., z_k ~ q(z|x_o)`` and ``w_i ~ p(x_o|z_i) p(z_i) / q(z_i|x_o)``, normalised to sum to one, one of the
    z_i is picked by its weight for every completion, and the missing cells are drawn given it. Several completions are
    what an analysis of incomplete data needs (multiple imputation); a single guess is ``mean``.

    Args:
        model: anything with ``model`` and ``guide`` whose data site is a :class:`pyrovae.Masked` likelihood, or
            :class:`pyrovae.Columns`.
        x: rows, shape ``(rows, *x)``, NaN where a cell is missing.
        c: context of each row, or None.
        draws: completions of every row.
        k: importance draws per row.
        seed: of the evaluation's own noise.
        chunk_size: rows times importance draws held at once; bounds the memory.

    Raises:
        ConfigError: for a number below 1, or a likelihood that cannot skip cells.

    References:
        MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and Frellsen, 2019)

    Example:
        >>> import pyrovae as pv
        >>> from pyrovae.missing import Masked, MaskAware
        >>> q = pv.Normal(1, context=2, net=MaskAware)
        >>> vae = pv.VAE(pv.StandardNormal(1), Masked(pv.Normal(2, context=1)), q)
        >>> filled = impute(vae, torch.tensor([[0.5, torch.nan]]), draws=3, k=10)
        >>> filled.draws.shape, filled.draws[:, 0, 0]
        (torch.Size([3, 1, 2]), tensor([0.5000, 0.5000, 0.5000]))
    """
    _check(draws=draws, k=k, chunk_size=chunk_size)
    with frozen(model, seed):
        parts: list[_Completions] = []
        for batch in chunks(model, max(1, chunk_size // k), x, c):
            parts.append(_Completions(batch[0], draws))
            for log_w, likelihood in _passes(model, batch, k, chunk_size):
                parts[-1].add(log_w, likelihood)
    drawn, mean, variance, size = (
        torch.cat([getattr(p, name) for p in parts], dim).cpu()
        for name, dim in (("draws", 1), ("mean", 0), ("variance", 0), ("effective", 0))
    )
    given = _as_given(x)
    missing = given.isnan()
    drawn, mean = (torch.where(missing, t.to(given.dtype), given) for t in (drawn, mean))
    return Imputation(drawn, mean, variance.clamp(min=0).sqrt(), size, k)


def conditional_log_prob(
    model: Any, x: Rows, truth: Rows, c: Rows | None = None, *, k: int = 1000, seed: int = 0, chunk_size: int = 5000
) -> Tensor:
    r"""Estimates of ``log p(x_hidden | x_observed)`` of each row: how well hidden cells are foreseen, together.

    ``log sum_i w_i p(x_hidden|x_o, z_i)`` with the weights of :func:`impute`.

    Args:
        model: as for :func:`impute`.
        x: rows, NaN where a cell is missing or hidden.
        truth: rows, same shape, with the hidden cells; NaN where the truth is not known either. It is not read where
            ``x`` has a value.
        c: context of each row, or None.
        k: importance draws per row.
        seed: of the evaluation's own noise.
        chunk_size: rows times importance draws held at once; bounds the memory.

    Returns:
        Nats per row, shape ``(rows,)``; 0 where nothing is hidden.
    """
    return torch.cat([gain for gain in _foreseen(model, x, truth, c, k, seed, chunk_size, MaskedCells.log_prob)])


def cell_log_prob(
    model: Any, x: Rows, truth: Rows, c: Rows | None = None, *, k: int = 1000, seed: int = 0, chunk_size: int = 5000
) -> Tensor:
    """As :func:`conditional_log_prob`, of each hidden cell by itself: ``log p(x_d | x_observed)``.

    Args:
        model: as for :func:`impute`, with a likelihood whose cells are independent given z.
        x: rows, NaN where a cell is missing or hidden.
        truth: rows, same shape, with the hidden cells; NaN where the truth is not known either.
        c: context of each row, or None.
        k: importance draws per row.
        seed: of the evaluation's own noise.
        chunk_size: rows times importance draws held at once; bounds the memory.

    Returns:
        Nats per cell, shape ``(rows, *x)``; NaN where nothing is hidden.
    """
    parts = torch.cat([gain for gain in _foreseen(model, x, truth, c, k, seed, chunk_size, MaskedCells.cell_log_prob)])
    hidden = _as_given(x).isnan() & ~_as_given(truth).isnan()
    return torch.where(hidden, parts, math.nan)


def _foreseen(
    model: Any, x: Rows, truth: Rows, c: Rows | None, k: int, seed: int, chunk_size: int, log_prob: Any
) -> Iterator[Tensor]:
    """The weighted mean of ``p(x with the hidden cells | z) / p(x | z)``, chunk by chunk, in logarithms."""
    _check(k=k, chunk_size=chunk_size)
    if np.shape(x) != np.shape(truth):
        raise DataError(f"truth: expected the shape of x, {np.shape(x)}, received {np.shape(truth)}")
    rows = max(1, chunk_size // k)
    with frozen(model, seed):
        answers = chunks(model, rows, truth)
        for batch, (hidden,) in zip(chunks(model, rows, x, c), answers, strict=True):
            full = torch.where(batch[0].isnan(), hidden, batch[0])
            terms = [
                (log_w, log_prob(likelihood, full) - log_prob(likelihood, batch[0]))
                for log_w, likelihood in _passes(model, batch, k, chunk_size)
            ]
            log_w, gain = (torch.cat(parts).double() for parts in zip(*terms, strict=True))
            log_w = (log_w - log_w.logsumexp(0)).reshape(*log_w.shape, *[1] * (gain.dim() - log_w.dim()))
            yield (log_w + gain).logsumexp(0).cpu()


def _passes(model: Any, batch: tuple[Tensor, ...], k: int, size: int) -> Iterator[tuple[Tensor, MaskedCells]]:
    """Log-weights ``(draws, rows)`` and the data's distribution given each draw, in passes of at most ``size``."""
    rows = len(batch[0])
    most = max(1, size // rows)
    for done in range(0, k, most):
        draws = min(most, k - done)
        model_trace, guide_trace = run(model, *batch, particles=draws)
        site = next((s for _, s in sample_sites(model_trace) if s["value"] is batch[0]), None)
        if site is None or not isinstance(site["fn"], MaskedCells):
            found = "none" if site is None else type(site["fn"]).__name__
            raise ConfigError(
                f"model: expected a likelihood that skips missing cells, found {found}: wrap it, Masked(...), and train"
            )
        observed, latent = (row_log_prob(model_trace, draws, rows, observed=o) for o in (True, False))
        log_w = observed + latent - row_log_prob(guide_trace, draws, rows, observed=False)
        yield log_w, site["fn"].expand(torch.Size((draws, rows)))


class _Completions:
    """Draws and moments of a few rows, kept up to date as weighted draws of z come in, pass after pass."""

    def __init__(self, x: Tensor, draws: int) -> None:
        self.x = x
        self.draws = x.expand(draws, *x.shape)
        self.log_total = torch.full((len(x),), -math.inf, dtype=torch.float64, device=x.device)
        self.first, self.second = torch.zeros((2, *x.shape), dtype=torch.float64, device=x.device)
        self.squares = torch.zeros_like(self.log_total)

    def add(self, log_w: Tensor, likelihood: MaskedCells) -> None:
        """Every completion is one of the new ones with the probability of their share of all weights."""
        log_w = log_w.double()
        log_new = log_w.logsumexp(0)
        log_total = torch.logaddexp(self.log_total, log_new)
        kept, share = (self.log_total - log_total).exp(), (log_w - log_total).exp()
        new = self._pick(log_w, likelihood.complete(self.x))
        replace = torch.rand(new.shape[:2], device=self.x.device) < (log_new - log_total).exp()
        self.draws = torch.where(self._beside(replace), new, self.draws)
        mean, variance = (m.double() for m in likelihood.moments(self.x))
        weight = self._beside(share)
        self.first = self._beside(kept) * self.first + (weight * mean).sum(0)
        self.second = self._beside(kept) * self.second + (weight * (variance + mean**2)).sum(0)
        self.squares, self.log_total = kept**2 * self.squares + share.square().sum(0), log_total

    @property
    def mean(self) -> Tensor:
        return self.first

    @property
    def variance(self) -> Tensor:
        return torch.where(self.x.isnan(), self.second - self.first**2, 0.0)

    @property
    def effective(self) -> Tensor:
        return 1 / self.squares

    def _pick(self, log_w: Tensor, candidates: Tensor) -> Tensor:
        """One candidate for every completion and row, by its weight."""
        index = torch.multinomial(log_w.softmax(0).T, len(self.draws), replacement=True).T
        return candidates.gather(0, self._beside(index).expand(-1, -1, *self.x.shape[1:]))

    def _beside(self, rows: Tensor) -> Tensor:
        """A tensor ``(..., rows)`` that broadcasts with ``(..., rows, *x)``."""
        return rows.reshape(*rows.shape, *[1] * (self.x.dim() - 1))


def _as_given(rows: Rows) -> Tensor:
    """On the host, in the caller's own floating type."""
    tensor = rows.detach().cpu() if isinstance(rows, Tensor) else torch.tensor(np.asarray(rows))
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _check(**numbers: int) -> None:
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name}: expected an int from 1, received {value!r}")
