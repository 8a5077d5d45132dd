"""The one training loop. It knows programs, objectives and optimizers; of papers it knows nothing."""

import functools
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from pyrovae import runs
from pyrovae.compiled import Step, kept_heap
from pyrovae.data import Table
from pyrovae.data.preprocess import Identity, Preprocess
from pyrovae.data.rows import ArrayBatches, Batches, as_array, batches, generator
from pyrovae.errors import ConfigError
from pyrovae.fit.callbacks import Callback, Progress, State
from pyrovae.fit.guard import check_data, check_program, diverged
from pyrovae.fit.history import History
from pyrovae.handlers import frozen, mode, stream
from pyrovae.objectives import ELBO, reported
from pyrovae.objectives.objective import Weighted, claimed, networks
from pyrovae.spec import describe

__all__ = ["fit"]

_ORDER, _NOISE, _VALIDATION = range(3)  # one stream per purpose
_LAZY = (DataLoader, Dataset)


def fit(
    model: nn.Module,
    x: Any,
    y: Any = None,
    *,
    objective: Callable[..., Tensor] | None = None,
    optimizer: Optimizer | Callable[..., Optimizer] | None = None,
    scheduler: LRScheduler | Callable[..., LRScheduler] | None = None,
    epochs: int = 10,
    batch_size: int = 128,
    validation: Any = None,
    preprocess: Preprocess | None = None,
    weights: Any = None,
    labelled: float | None = None,
    clip: float | None = None,
    callbacks: Sequence[Callback] = (),
    seed: int = 0,
    device: str | torch.device | None = None,
    compile: str = "auto",
    precision: str = "float32",
    directory: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> History:
    """Optimise a model and its guide by stochastic variational inference, in place.

    The param store, the random generators, Pyro's validation switch and the caller's arrays are the same before and
    after. Order, training noise, preprocessing and validation draw from streams of their own, so that the same seed
    gives the same weights bit for bit, with validation, callbacks and the progress bar on or off.

    Args:
        model: a :class:`pyrovae.Model`, or any module with Pyro programs ``model`` and ``guide`` over its parameters.
        x: rows ``(rows, *shape)``: array, tensor, memory-mapped ``.npy``, :class:`pyrovae.data.Table`, ``Dataset`` or
            ``DataLoader``. Integers stay as they are stored and are converted batch by batch.
        y: second argument of both programs, one entry per row: a context, or labels, -1 or NaN where they are missing.
        objective: called as ``objective(model, *batch)``, a loss in nats per row; None is ``ELBO()``. Networks that it
            brings with it, such as a critic, are trained along.
        optimizer: a torch optimizer over the model's parameters and the objective's, or a function of them; None is
            Adam at 1e-3.
        scheduler: a torch scheduler of that optimizer, or a function ``(optimizer, steps) -> scheduler``, such as
            ``torch.optim.lr_scheduler.CosineAnnealingLR``; stepped after every update, ``ReduceLROnPlateau`` after
            every epoch with the validation loss.
        epochs: passes over the data.
        batch_size: rows in a batch; the last of a pass may be shorter. A DataLoader keeps its own.
        validation: as ``x``, or a pair ``(x, y)``; the objective's final form is measured on it after every epoch.
        preprocess: declared step from stored rows to the model's, such as ``Binarize()``.
        weights: one for each row of x, from 0, such as inverse sampling probabilities; the objective is then called
            with ``weights=`` and says what they do. A row's weight goes with it into its batch; validation has none.
        labelled: share of each batch that rows with a label make up, such as 0.5; a pass is then one over the rows
            without, and the others come as often as that takes. None leaves the share to chance.
        clip: largest gradient norm over all parameters together.
        callbacks: :class:`Callback` objects, such as ``EarlyStopping()``.
        seed: of everything random here; the model's initial weights are drawn before.
        device: moves the model there; None leaves it where it is.
        compile: ``"compiled"``, ``"replay"`` or ``"eager"``, or ``"auto"`` by the expected length of the run; the same
            numbers at every level, see :func:`pyrovae.compile_step`.
        precision: ``"float32"``, or ``"bf16"`` for matrix products and convolutions in bfloat16, which pays on
            processors with instructions for it.
        directory: a run is written there: metrics after every epoch, model, weights and manifest at the end.
        progress: the bar on stderr; None shows it on a terminal.

    Returns:
        The table of epochs.

    Raises:
        ConfigError: for arguments or programs that cannot work, before training.
        DataError: for data outside the likelihood's support, before training; of a loader only the first batch is
            looked at, as a ConfigError.
        TrainingDiverged: before an update with a loss or gradient that is not finite.
        ResourceError: if ``directory`` cannot be written, before training.

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(4, context=2), pv.Normal(2, context=4))
        >>> history = pv.fit(vae, torch.ones(64, 4), epochs=2)
        >>> history.columns
        ['epoch', 'step', 'loss', 'lr', 'gradient_norm', 'seconds', 'rows_per_second']
    """
    _check_numbers(epochs=epochs, batch_size=batch_size, clip=clip, seed=seed)
    step = Identity() if preprocess is None else preprocess
    tables = _tables(x=x, validation=validation[0] if isinstance(validation, tuple) else validation)
    x = tables["x"].x if "x" in tables else x
    if device is not None:
        model.to(device)
    objective = ELBO() if objective is None else objective
    data = batches(x, y, batch_size=batch_size, preprocess=step, seed=(seed, _ORDER), labelled=labelled)
    loss: Any = objective if weights is None else _weigh(data, weights, objective)
    held_out = None if validation is None else _validation(validation, max(batch_size, 500), step, seed)
    optimizer = _optimizer(model, objective, optimizer)
    critics = nn.ModuleList(networks(objective)).to(*_place(model))
    first, checked = _first(model, data), objective
    if weights is not None:
        *first, last = first
        checked = functools.partial(objective, weights=last)
    for table in tables.values():
        check_data(model, table, step, first)
    with mode(critics, training=False):
        check_program(model, checked, first)
    # after everything that can be refused, so that nothing refused leaves a directory behind
    details = {} if directory is None else {"seed": seed, "preprocess": describe(step)} | _data_details(x)
    steps = epochs * data.steps
    captured = Step(model, loss, optimizer, level=compile, precision=precision, clip=clip, steps=steps, guard=True)
    path = None if directory is None else runs.claim(directory)
    schedule = scheduler if scheduler is None or isinstance(scheduler, LRScheduler) else scheduler(optimizer, steps)
    state = State(model, optimizer, epochs, steps, data.rows)
    bar = Progress(progress)
    loop = _Loop(state, captured, objective, data, held_out, schedule, path, critics, weighted=weights is not None)
    try:
        loop.run([*callbacks, *([bar] if bar.enabled else [])], seed)
    except BaseException as error:
        state.stop = f"{type(error).__name__} at step {state.step}"
        raise
    finally:
        state.history.stopped = state.stop
        if path is not None:  # also of a training that was interrupted: the weights are those of its last good step
            runs.save(path, model)
            details |= {"epochs": state.epoch, "steps": state.step, "stopped": state.stop}
            runs.seal(path, details | {"compile": captured.level, "precision": precision})
    return state.history


class _Loop:
    """One training: state, and what an epoch and a step do to it."""

    def __init__(
        self,
        state: State,
        step: Step,
        objective: Callable[..., Tensor],
        data: Batches,
        validation: Batches | None,
        scheduler: LRScheduler | None,
        directory: Path | None,
        critics: nn.Module,
        *,
        weighted: bool,
    ) -> None:
        self.state, self.step, self.objective, self.data, self.validation = state, step, objective, data, validation
        self.scheduler, self.directory, self.critics, self.weighted = scheduler, directory, critics, weighted

    def run(self, callbacks: Sequence[Callback], seed: int) -> None:
        self.callbacks = callbacks
        # only callbacks that act on steps are called there, each in a copy of the noise stream
        self.steppers = [c for c in callbacks if type(c).on_step is not Callback.on_step]
        with ExitStack() as stack:
            stack.enter_context(kept_heap())
            stack.enter_context(pyro.validation_enabled(False))
            stack.enter_context(warnings.catch_warnings())
            # frozen parameters are meant, and the guard says more about a loss that is not finite
            warnings.filterwarnings("ignore", message=".*(not registered in the param store|Encountered (NaN|\\+?inf))")
            stack.enter_context(mode(self.state.model, training=True))
            stack.enter_context(mode(self.critics, training=True))
            stack.enter_context(stream(self.state.model, generator(seed, _NOISE).initial_seed()))
            self._call("on_start", callbacks)
            try:
                self._epochs()
            finally:
                self._call("on_end", callbacks)

    def _epochs(self) -> None:
        state, start = self.state, time.perf_counter()
        for number in range(state.epochs):
            state.rows, began = 0, time.perf_counter()
            loss, norm = self._pass(number)
            rate = state.rows / (time.perf_counter() - began)
            state.epoch = number + 1
            row: dict[str, Any] = {"epoch": state.epoch, "step": state.step, "loss": loss}
            if self.validation is not None:
                row["validation"] = self._validate(self.validation)
            if isinstance(self.scheduler, ReduceLROnPlateau):
                self.scheduler.step(row.get("validation", loss))
            row |= {"lr": state.optimizer.param_groups[0]["lr"], "gradient_norm": norm}
            row |= {"seconds": time.perf_counter() - start, "rows_per_second": rate}
            state.history.append(row)
            if self.directory is not None:
                runs.log(self.directory, row)
            state.rows = 0
            self._call("on_epoch", self.callbacks)
            if state.stop is not None:
                break

    def _pass(self, number: int) -> tuple[float, float]:
        """One pass: the mean loss over its rows, whatever the batches' sizes, and the mean gradient norm."""
        total, norms, place = 0.0, 0.0, _place(self.state.model)
        for batch in self.data.epoch(number):
            loss, norm = self._update([_to(tensor, *place) for tensor in batch])
            rows = len(batch[0])
            total, norms = total + loss * rows, norms + norm
            self.state.rows += rows
            self.state.loss = loss
            if self.steppers:
                self._call("on_step", self.steppers)
        return total / self.state.rows, norms / self.data.steps

    def _update(self, batch: Sequence[Tensor]) -> tuple[float, float]:
        state, step, before = self.state, self.step, torch.get_rng_state()
        t = state.step / state.steps
        loss = step(*batch, t=t).item()
        norm = math.nan if step.norm is None else step.norm.item()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            torch.set_rng_state(before)
            step.assign(*batch, t=t)
            torch.set_rng_state(before)
            rates = [group["lr"] for group in state.optimizer.param_groups]
            rows = batch[:-1] if self.weighted else batch
            raise diverged(state.model, rows, loss, norm, state.step, state.epoch, rates, self.critics)
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        state.step += 1
        return loss, norm

    def _validate(self, data: Batches) -> float:
        """The objective's final form on the validation rows, with the same noise after every epoch."""
        model, total, place = self.state.model, 0.0, _place(self.state.model)
        with frozen(model, seed=_VALIDATION), mode(self.critics, training=False):
            for batch in data.epoch(0):
                loss = reported(self.objective(model, *(_to(tensor, *place) for tensor in batch)))
                total += loss.item() * len(batch[0])
        return total / data.rows

    def _call(self, moment: str, callbacks: Sequence[Callback]) -> None:
        if callbacks:
            with stream(self.state.model):
                for callback in callbacks:
                    getattr(callback, moment)(self.state)


def _check_numbers(*, epochs: int, batch_size: int, clip: float | None, seed: int) -> None:
    for name, value, low in (("epochs", epochs, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ConfigError(f"{name}: expected an int from {low}, received {value!r}")
    if clip is not None and not clip > 0:
        raise ConfigError(f"clip: expected a positive number or None, received {clip!r}")


def _weigh(data: Batches, weights: Any, objective: Any) -> Weighted:
    """Let every batch end with the weights of its rows, and the objective take them.

    Raises:
        ConfigError: for weights that are not one finite number from 0 for each row, or an objective that takes none.
    """
    if not isinstance(data, ArrayBatches):
        raise ConfigError(
            "weights: expected x as an array, whose rows they belong to; a loader has an order of its own"
        )
    try:
        given = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
        values = np.array(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"weights: expected numbers, received {type(weights).__name__}") from None
    rows = len(data.sources[0])
    if values.shape != (rows,):
        raise ConfigError(f"weights: expected one for each of {rows} rows, received the shape {values.shape}")
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        raise ConfigError(f"weights: expected finite numbers from 0, received {values[bad][0]} for row {bad.argmax()}")
    if not values.any():
        raise ConfigError("weights: expected a positive one, received zeros alone")
    data.sources.append(values)
    return Weighted(objective)


def _optimizer(model: nn.Module, objective: Any, optimizer: Optimizer | Callable[..., Optimizer] | None) -> Optimizer:
    """One over what is to be trained: the model, and what the objective claims for losses of its own."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(
            "model: expected parameters to train, found none; pyro.param alone is not a module's parameter"
        )
    own = {id(p) for p in parameters}
    more = [p for ps in claimed(objective, model).values() for p in ps if p.requires_grad and id(p) not in own]
    parameters += list({id(p): p for p in more}.values())
    if optimizer is None:
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return torch.optim.Adam(parameters, lr=1e-3, fused=fused)
    if not isinstance(optimizer, Optimizer):
        optimizer = optimizer(parameters)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held & own:
        raise ConfigError("optimizer: expected one over the model's parameters, received one that holds none of them")
    if more and not held & {id(p) for p in more}:
        raise ConfigError(
            "optimizer: expected one that holds the parameters of the objective's critic too, received one over the "
            "model's alone; give a function of the parameters, such as functools.partial(torch.optim.Adam, lr=1e-3)"
        )
    return optimizer


def _data_details(x: Any) -> dict[str, Any]:
    """What a run says about the rows it was trained on."""
    if isinstance(x, _LAZY):
        return {}
    rows = as_array(x)
    return {"data": runs.fingerprint([rows]), "schema": {"shape": list(rows.shape[1:])}}


def _validation(validation: Any, batch_size: int, preprocess: Preprocess, seed: int) -> Batches:
    x, y = validation if isinstance(validation, tuple) else (validation, None)
    x = x.x if isinstance(x, Table) else x
    return batches(x, y, batch_size=batch_size, preprocess=preprocess, seed=(seed, _VALIDATION), shuffle=False)


def _tables(**given: Any) -> dict[str, Table]:
    """What can be looked at before training, with its name for messages: not what a loader has still to fetch."""
    return {n: _table(rows, n) for n, rows in given.items() if rows is not None and not isinstance(rows, _LAZY)}


def _table(rows: Any, name: str) -> Table:
    array: Any = rows if isinstance(rows, Table) else as_array(rows)  # a tensor serves as well as an array
    return array if isinstance(array, Table) else Table(array, source=name)


def _first(model: nn.Module, data: Batches) -> tuple[Tensor, ...]:
    with stream(model):  # a DataLoader draws from the global generator
        return tuple(_to(tensor, *_place(model)) for tensor in next(data.epoch(0)))


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    like = next(model.parameters())
    return like.device, like.dtype


def _to(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Floating tensors in the model's type, integers as they are, all on its device."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
