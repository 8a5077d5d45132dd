"""What our own methods share: networks sized for the rows, how long they train, and how they are asked."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from pyrovae.conditional import NetBuilder
from pyrovae.families import Normal, OneHotCategorical
from pyrovae.fit import Callback, State
from pyrovae.labelling.features import Features
from pyrovae.models import VAE, SemiSupervisedVAE
from pyrovae.nn import MLP
from pyrovae.priors import StandardNormal

__all__ = ["Lengths", "Sizes", "classified", "flat_then_down", "reproducibly", "sizes_for"]

BATCH = 256
_PAYS = 200  # updates, from which the second or two of making a graph are well spent
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Sizes:
    """How large a model is and how long it trains.

    Args:
        latent: dimensions of z.
        net: of every head.
        steps: updates, about.
        learning_rate: of Adam.
        classifier: another network for q(y|x).
        compile: how updates are run where they are many, as ``fit`` takes it.
        precision: of matrix products, as ``fit`` takes it.
    """

    latent: int
    net: NetBuilder
    steps: int
    learning_rate: float = 1e-3
    classifier: NetBuilder | None = None
    compile: str = "replay"
    precision: str = "float32"

    def epochs(self, rows: int, batch: int) -> int:
        """Passes that make about so many updates."""
        return max(1, round(self.steps / math.ceil(rows / batch)))

    @property
    def level(self) -> str:
        """How updates are run: what ``compile`` says, where a graph pays."""
        return self.compile if self.steps >= _PAYS else "eager"

    def vae(self, features: Features) -> VAE:
        """A VAE of the rows."""
        return VAE(
            StandardNormal(self.latent),
            features.likelihood(self.latent, self.net),
            Normal(self.latent, features.width, features.reader(self.net)),
        )

    def m2(self, features: Features, classes: int) -> SemiSupervisedVAE:
        """A :class:`pyrovae.SemiSupervisedVAE` of the rows and their labels."""
        reader = features.reader(self.net)
        return SemiSupervisedVAE(
            labels=OneHotCategorical(classes),
            prior=StandardNormal(self.latent),
            likelihood=features.likelihood([(self.latent,), (classes,)], self.net),
            posterior=Normal(self.latent, [(features.width,), (classes,)], reader),
            classifier=OneHotCategorical(classes, features.width, features.reader(self.classifier or self.net)),
        )


def sizes_for(rows: int, features: Features, net: NetBuilder | None = None, steps: int | None = None) -> Sizes:
    """Sizes that suit so many rows of so many features: at least 600 updates, at most 3,000, else 15 passes.

    Args:
        rows: of the table.
        features: how they are read.
        net: another network, of every part.
        steps: another number of updates.
    """
    wide = features.width >= 200
    hidden = (400, 400) if wide else (128, 128)
    latent = 32 if wide else min(16, max(2, features.width // 2))
    steps = min(3000, max(600, 15 * math.ceil(rows / BATCH))) if steps is None else steps
    plain = functools.partial(MLP, hidden=hidden)
    normed = functools.partial(MLP, hidden=(600, 600) if wide else hidden, norm=nn.LayerNorm)
    return Sizes(latent, plain, steps, classifier=normed) if net is None else Sizes(latent, net, steps)


def flat_then_down(optimizer: Optimizer, steps: int) -> LRScheduler:
    """The learning rate as it is for half of the training, then along a line to a fiftieth."""
    return LambdaLR(optimizer, lambda step: min(1.0, max(0.02, 2 * (1 - step / steps))))


class Lengths(Callback):
    """Ends training at a share of its length, and measures on the way there.

    Args:
        end: share of the planned updates.
        marks: shares at which something is measured, each at the next end of an epoch.
        measure: called without arguments at the marks.
    """

    def __init__(self, end: float, marks: tuple[float, ...] = (), measure: Callable[[], Any] | None = None) -> None:
        self.end, self.marks, self.measure = end, marks, measure
        self.found: dict[float, Any] = {}

    def on_epoch(self, state: State) -> None:
        """Measure, stop."""
        done = state.step / state.steps
        for mark in self.marks:
            if self.measure is not None and mark not in self.found and done >= mark - 1e-9:
                self.found[mark] = self.measure()
        if done >= self.end - 1e-9 and done < 1:
            state.stop = f"a length of {self.end:g} was chosen"


def classified(model: SemiSupervisedVAE, x: np.ndarray) -> np.ndarray:
    """The classes' probabilities under q(y|x), shape ``(rows, classes)``."""
    parts = [model.classify(x[start : start + _AT_ONCE]).mean for start in range(0, len(x), _AT_ONCE)]
    return torch.cat(parts).double().cpu().numpy()


@contextlib.contextmanager
def reproducibly(seed: int) -> Iterator[None]:
    """A noise stream for initial weights; the global generator is put back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
