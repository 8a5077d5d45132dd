"""Before training: model, guide and data fit together. Before every update: loss and gradient are finite."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyrovae.data import Table, check_cells
from pyrovae.data.gate import Missing
from pyrovae.data.preprocess import Preprocess
from pyrovae.distributions import score
from pyrovae.distributions.masked import MaskedCells, OrMissing
from pyrovae.errors import ConfigError, PyrovaeError, ResourceError, TrainingDiverged
from pyrovae.fit.sites import check_sites
from pyrovae.handlers import frozen, run, sample_sites
from pyrovae.objectives import reported

__all__ = ["check_data", "check_program", "diverged"]

_READ = (
    "the likelihood skips them, but the posterior is not finite where it reads them: give it net=MaskAware; or drop "
    "the rows (or the columns) or fill the cells"
)


def check_program(model: nn.Module, objective: Any, batch: Sequence[Tensor]) -> None:
    """Score one batch with Pyro's validation on and its warnings as errors; training itself then goes without both.

    Raises:
        ConfigError: for a prior and a posterior that do not fit; else in Pyro's own words, which name the site.
        ResourceError: if the batch does not fit into memory.
    """
    check_sites(model, *batch)
    with frozen(model, seed=0), pyro.validation_enabled(True), warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?is).*(found .* in (model|guide)|mean.field|enumerat)")
        try:
            with torch.enable_grad():  # enumeration insists on something to differentiate
                loss = reported(objective(model, *batch))
        except PyrovaeError:
            raise
        except (ValueError, RuntimeError, TypeError, NotImplementedError, UserWarning) as error:
            if "alloc" in str(error).lower():
                raise ResourceError(
                    "out of memory while scoring the first batch; a smaller batch needs less"
                ) from error
            raise ConfigError(f"the model cannot score its first batch: {_one_line(error)}") from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        received = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(f"objective: expected a scalar loss, received {received}")


def check_data(
    model: Any, table: Table, preprocess: Preprocess, batch: Sequence[Tensor], missing: Missing = Missing.CELLS
) -> None:
    """Every cell is a number and, once preprocessed, in the support of the likelihood.

    A cell may be missing (NaN) if the likelihood skips such cells and the guide is finite on a row without any other.

    Args:
        model: with Pyro programs ``model`` and ``guide``.
        table: the rows.
        preprocess: from stored rows to the model's.
        batch: the first of training.
        missing: what rows may lack if the model can use them; training rows need a value in every column.

    Raises:
        DataError: naming the first bad row and column.
    """
    noise = torch.Generator().manual_seed(0)
    site = _data_site(model, batch)
    support = None if site is None else site["fn"].support
    skipped = isinstance(support, OrMissing)
    ready = skipped and _finite_without_cells(model, batch)
    advice: dict[str, Any] = {"advice": _READ} if skipped else {}
    check_cells(
        table.x,
        support.base if skipped else support,
        source=table.source,
        columns=table.columns,
        rows=table.rows,
        transform=lambda piece: preprocess(piece, noise),
        missing=missing if ready else Missing.REFUSED,
        **advice,
    )


def _data_site(model: Any, batch: Sequence[Tensor]) -> Any:
    """The site that observes x, if there is one and the programs run."""
    with frozen(model, seed=0), pyro.validation_enabled(False):
        try:
            trace, _ = run(model, *batch)
        except (ValueError, RuntimeError, TypeError):
            return None  # check_program says why
    return next((site for _, site in sample_sites(trace) if site["value"] is batch[0]), None)


def _finite_without_cells(model: Any, batch: Sequence[Tensor]) -> bool:
    """Whether draws and log-probabilities stay finite for a row whose cells are all missing."""
    x, *rest = (tensor[:1] for tensor in batch)
    with frozen(model, seed=0), pyro.validation_enabled(False):
        try:
            traces = run(model, torch.full_like(x, torch.nan), *rest)
        except (ValueError, RuntimeError, TypeError):
            return False
        sites = [site for trace in traces for _, site in sample_sites(trace)]
        return all(bool(score(site["fn"], site["value"]).isfinite().all()) for site in sites)


def diverged(
    model: nn.Module,
    batch: Sequence[Tensor],
    loss: float,
    norm: float,
    step: int,
    epoch: int,
    rates: Sequence[float],
    critics: nn.Module,
) -> TrainingDiverged:
    """The error for an update that was not made: where the first number went bad, and what to try."""
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient norm is {norm} (loss {loss:.4g})"
    where = (
        _first_bad_site(model, batch)
        or _first_bad_gradient(model, "")
        or _first_bad_gradient(critics, "critic ")
        or "the first bad number could not be located"
    )
    rate = ", ".join(f"{r:g}" for r in sorted(set(rates)))
    return TrainingDiverged(
        f"training diverged at step {step} (epoch {epoch}): {what}; {where}; learning rate {rate}. The update was not "
        "made, the weights are finite: lower the learning rate, clip gradients, or look for extreme values in the data"
    )


def _first_bad_site(model: Any, batch: Sequence[Tensor]) -> str | None:
    with torch.random.fork_rng(devices=[]), torch.no_grad(), pyro.validation_enabled(False):
        try:
            traces = run(model, *batch)
        except (ValueError, RuntimeError) as error:
            return f"the programs fail: {_one_line(error)}"
        for trace in (traces[1], traces[0]):
            for name, site in sample_sites(trace):
                log_prob = site["fn"].log_prob(site["value"])
                value = None if isinstance(site["fn"], MaskedCells) else _first_bad(site["value"], "value")
                place = value or _first_bad(log_prob, "log-probability")
                if place is not None:
                    return f"first at site {name!r}: {place}"
    return None


def _first_bad(tensor: Tensor, what: str) -> str | None:
    bad = (~tensor.isfinite()).nonzero()
    if len(bad) == 0:
        return None
    index = tuple(bad[0].tolist())
    return f"{what} {tensor[index].item()} at row {index[0]} of the batch" + (
        f", element {index[1:]}" if index[1:] else ""
    )


def _first_bad_gradient(module: nn.Module, of: str) -> str | None:
    for name, parameter in module.named_parameters():
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            return f"first in the gradient of {of}{name!r}"
    return None


def _one_line(error: BaseException) -> str:
    """The message, without the shapes of every site that Pyro adds to it: a traceback still shows them."""
    return " ".join(str(error).partition("Trace Shapes:")[0].split())[:500]
