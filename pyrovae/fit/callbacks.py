"""What happens between epochs. Callbacks see the training state; their noise never reaches the training."""

import copy
import math
import sys
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pyrovae.errors import ConfigError
from pyrovae.fit.history import History

__all__ = ["Callback", "EarlyStopping", "Progress", "State"]


@dataclass
class State:
    """Training as a callback sees it.

    Attributes:
        model: being trained.
        optimizer: its optimizer.
        epochs: how many are planned.
        steps: updates planned.
        step: updates done.
        epoch: epochs done.
        history: of the epochs done.
        rows: rows seen in this epoch.
        rows_per_epoch: rows in one epoch.
        loss: of the last batch, nats per row.
        stop: set it to a reason to end training after this epoch.
    """

    model: nn.Module
    optimizer: Optimizer
    epochs: int
    steps: int
    rows_per_epoch: int
    step: int = 0
    epoch: int = 0
    rows: int = 0
    loss: float = math.nan
    history: History = field(default_factory=History)
    stop: str | None = None


class Callback:
    """Does nothing at four moments; override those you need.

    Example:
        >>> class Announce(Callback):
        ...     def on_epoch(self, state):
        ...         print(state.epoch, state.loss)
    """

    def on_start(self, state: State) -> None:
        """Before the first update."""

    def on_step(self, state: State) -> None:
        """After every update."""

    def on_epoch(self, state: State) -> None:
        """After every epoch; its row is the last of ``state.history``."""

    def on_end(self, state: State) -> None:
        """After the last epoch, also when training was interrupted or failed."""


class EarlyStopping(Callback):
    """Ends training when the validation loss stops falling, and puts the best weights back in any case.

    Args:
        patience: epochs without improvement that are waited for.
        minimum: a smaller fall, in nats per row, is no improvement.
    """

    def __init__(self, patience: int = 10, minimum: float = 0.0) -> None:
        if patience < 1 or minimum < 0:
            raise ConfigError(f"patience, minimum: expected from 1 and from 0, received {patience!r}, {minimum!r}")
        self.patience, self.minimum = patience, minimum
        self._forget()

    def _forget(self) -> None:
        self.best, self.best_epoch = math.inf, 0
        self.weights: dict[str, Any] | None = None

    def on_start(self, state: State) -> None:
        """Forget what another training left."""
        self._forget()

    def on_epoch(self, state: State) -> None:
        """Keep the weights if they are the best, stop if they have not been for long."""
        loss = state.history.rows[-1].get("validation")
        if loss is None:
            raise ConfigError("EarlyStopping: expected validation data; pass validation=")
        if not math.isfinite(loss):
            state.stop = f"the validation loss is {loss}"
        elif loss < self.best - self.minimum:
            self.best, self.best_epoch = loss, state.epoch
            self.weights = copy.deepcopy(state.model.state_dict())
        elif state.epoch - self.best_epoch >= self.patience:
            state.stop = f"no better than epoch {self.best_epoch} for {self.patience} epochs; its weights are restored"

    def on_end(self, state: State) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            state.model.load_state_dict(self.weights)


class Progress(Callback):
    """A bar on stderr: epoch, loss, rows per second and time left; silent where stderr is no terminal.

    Args:
        enabled: None follows the terminal.
    """

    def __init__(self, enabled: bool | None = None) -> None:  # noqa: FBT001
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bar: Any = None

    def on_start(self, state: State) -> None:
        """Show the bar."""
        if self.enabled:
            self._bar = _bar()
            self._bar.start()
            total = state.epochs * state.rows_per_epoch
            self._task = self._bar.add_task("", total=total, loss=math.nan, rate=0.0, epoch=0, epochs=state.epochs)

    def on_step(self, state: State) -> None:
        """Move it."""
        if self._bar is not None:
            done = state.epoch * state.rows_per_epoch + state.rows
            rate = self._bar.tasks[0].speed or 0.0
            self._bar.update(self._task, completed=done, loss=state.loss, rate=rate, epoch=state.epoch + 1)

    def on_end(self, state: State) -> None:
        """Leave it as it stands."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        progress.BarColumn(),
        progress.TextColumn("loss {task.fields[loss]:.2f}"),
        progress.TextColumn("{task.fields[rate]:,.0f} rows/s"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        refresh_per_second=4,
    )
