"""What the estimators share: flat arguments, seeds, training, and surroundings that are put back."""

import abc
import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyrovae import recipes
from pyrovae.config import instance, part
from pyrovae.data.preprocess import Preprocess
from pyrovae.errors import ConfigError, PyrovaeError
from pyrovae.estimators.noise import SharedNoise
from pyrovae.estimators.units import Units, cell_support
from pyrovae.evaluation import log_marginal
from pyrovae.fit import fit
from pyrovae.models import Model
from pyrovae.priors import ExemplarPrior

__all__ = ["VAEEstimator", "pieces", "seeds", "surroundings"]

_AT_ONCE = 10_000  # rows times draws in one pass
_FEWEST = 5  # rows, whatever the draws


class VAEEstimator(BaseEstimator, abc.ABC):
    """Abstract: an estimator over a VAE of tables.

    Parts are named as on the command line (``pyrovae parts`` lists them), such as ``prior="mixture(components=5)"``;
    classes and partials of them serve as well. Training is in float32, and what is asked of the fitted model is
    computed in float64: so a row's answer does not depend on the rows beside it. The global random generators, Pyro's
    param store and validation switch, and the default floating type are the same before and after every call.

    Attributes:
        model_: the fitted :class:`pyrovae.Model`, in float64, in evaluation mode; it sees rows in units of its own.
        history_: the table of epochs.
        n_features_in_: columns.
        feature_names_in_: their names, if they are texts.
    """

    model_: Model

    def __init__(
        self,
        n_components: int = 2,
        *,
        likelihood: Any = "normal(scale=learned-scale)",
        prior: Any = "standard-normal",
        posterior: Any = "normal",
        objective: Any = "elbo",
        net: Any = "gated-mlp",
        hidden: tuple[int, ...] = (100,),
        standardize: bool = True,
        epochs: int = 200,
        batch_size: int = 64,
        learning_rate: float = 3e-3,
        n_draws: int = 100,
        device: str = "cpu",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_components, self.likelihood, self.prior, self.posterior = n_components, likelihood, prior, posterior
        self.objective, self.net, self.hidden, self.standardize = objective, net, hidden, standardize
        self.epochs, self.batch_size, self.learning_rate, self.n_draws = epochs, batch_size, learning_rate, n_draws
        self.device, self.random_state, self.verbose = device, random_state, verbose

    def _rows(self, x: Any, *, reset: bool = False, **checks: Any) -> np.ndarray:
        """A caller's table as an array of float64 or float32."""
        if not reset:
            check_is_fitted(self)
        least = {"ensure_min_samples": 2} if reset else {}
        dtypes: Any = [np.float64, np.float32]
        rows: Any = validate_data(self, x, dtype=dtypes, reset=reset, **least, **checks)
        return rows

    def _parts(self) -> dict[str, Any]:
        """The parts that recipes call."""
        named = {role: self._part(role) for role in ("likelihood", "prior", "posterior", "net")}
        known = inspect.signature(named["net"]).parameters
        if "hidden" in known and "hidden" not in getattr(named["net"], "keywords", {}):
            named["net"] = functools.partial(named["net"], hidden=tuple(self.hidden))
        return named

    def _part(self, role: str) -> Any:
        given = getattr(self, role)
        with _in_python():
            return given if callable(given) else part(given, role)

    def _count(self, name: str) -> int:
        """An argument that is a number from 1, of Python's type."""
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ConfigError(f"{name}: expected an int from 1, received {value!r}")
        return int(value)

    def _objective(self, rows: int) -> Any:
        with _in_python():
            given = self.objective
            return (
                given if callable(given) else instance(given, "objective", shape=self._count("n_components"), rows=rows)
            )

    def _fit_vae(self, x: np.ndarray, *, missing: bool = False, preprocess: Preprocess | None = None) -> None:
        """Fit a VAE of rows in units of its own."""
        parts = self._parts()
        rows = self._measured(x, parts["likelihood"])
        made_of_rows = getattr(parts["prior"], "func", parts["prior"]) is ExemplarPrior
        build = functools.partial(
            recipes.vae,
            self._units.width,
            latent=self._count("n_components"),
            exemplars=rows if made_of_rows else None,
            missing=missing,
            **parts,
        )
        self._train(build, rows.numpy(), preprocess=preprocess)

    def _measured(self, x: np.ndarray, likelihood: Any) -> Tensor:
        """Find the units of training rows; the rows in these units."""
        with _in_words():
            support = cell_support(likelihood, x.shape[1]) if self.standardize else None
        self._units = Units.of(x, support)
        return self._inward(x)

    def _inward(self, x: np.ndarray) -> Tensor:
        """Rows as the fitted model sees them."""
        with surroundings(torch.float64):
            return self._units.inward(x)

    def _log_density(self, x: np.ndarray) -> np.ndarray:
        """Estimates of log p(x) in the caller's units."""
        values = self._by_rows(lambda *data, **how: log_marginal(*data, **how, compile="eager").values, self._inward(x))
        return values + self._units.log_jacobian

    def _train(
        self,
        build: Callable[[], Model],
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        preprocess: Preprocess | None = None,
    ) -> None:
        """Build and fit a model; it stays behind in float64, on the host."""
        if not (isinstance(self.learning_rate, Real) and 0 < self.learning_rate < np.inf):
            raise ConfigError(f"learning_rate: expected a positive number, received {self.learning_rate!r}")
        start, order, self._noise = seeds(self.random_state)
        with surroundings(torch.float32, start):
            with _in_words():
                model = build()
            self.history_ = fit(
                model,
                x,
                y,
                objective=self._objective(len(x)),
                optimizer=functools.partial(torch.optim.Adam, lr=self.learning_rate),
                scheduler=CosineAnnealingLR,
                epochs=self._count("epochs"),
                batch_size=self._count("batch_size"),
                preprocess=preprocess,
                seed=order,
                device=self.device,
                progress=bool(self.verbose),
            )
        self.model_ = model.cpu().double().eval()

    def _by_rows(self, measure: Callable[..., Tensor], x: Tensor) -> np.ndarray:
        """``measure(model, rows, k=, seed=, chunk_size=)`` of pieces of the rows, each with the same noise."""
        k = self._count("n_draws")
        size = max(_FEWEST, _AT_ONCE // k)
        parts = []
        with surroundings(torch.float64):
            for piece in x.split(size):
                with SharedNoise(len(piece), k, self._noise):
                    parts.append(measure(self.model_, piece, k=k, seed=self._noise, chunk_size=size * k))
        return torch.cat(parts).numpy()


@contextlib.contextmanager
def surroundings(dtype: torch.dtype, seed: int = 0) -> Iterator[None]:
    """A default floating type and a noise stream; the caller's own are back afterwards.

    Args:
        dtype: the default.
        seed: of the host's noise.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
    finally:
        torch.set_default_dtype(before)


def pieces(x: Tensor) -> tuple[Tensor, ...]:
    """Rows, a bounded number at a time."""
    return x.split(_AT_ONCE)


def seeds(random_state: Any) -> tuple[int, ...]:
    """Three seeds, of initial weights, of training and of evaluation.

    None is fresh entropy of the operating system: numpy's global generator is neither read nor moved.

    Args:
        random_state: int, ``RandomState`` or None.
    """
    entropy = np.random.SeedSequence().generate_state(1)[0] if random_state is None else random_state
    return tuple(int(seed) for seed in check_random_state(entropy).randint(2**31 - 1, size=3))


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Arguments that a part refuses in PyTorch's or Python's words."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, PyrovaeError) else ConfigError(f"the parts do not fit: {error}") from error


@contextlib.contextmanager
def _in_python() -> Iterator[None]:
    """Messages that name an option of the command line name the argument instead."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(re.sub(r"--(?=[a-z])", "", str(error))) from None
