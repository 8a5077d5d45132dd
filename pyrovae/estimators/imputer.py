"""Tables with missing cells, filled."""

import functools
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import TransformerMixin
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data
from torch import Tensor

from pyrovae import recipes
from pyrovae.columns import Columns
from pyrovae.data.preprocess import Preprocess
from pyrovae.errors import ConfigError
from pyrovae.estimators.base import VAEEstimator, seeds, surroundings
from pyrovae.evaluation import impute

__all__ = ["VAEImputer"]

_CLASSES = ("binary", "ordinal", "categorical")
_COMPLETIONS = 100  # among which a class is the most frequent


class VAEImputer(TransformerMixin, VAEEstimator):
    r"""Missing cells given the observed ones, ``p(x_missing|x_observed)`` by importance sampling.

    The model is trained on the observed cells alone, and that is right where the reason why a cell is missing does not
    depend on what it would hold (missing at random). Observed cells come back bit for bit. A constant column is filled
    with its constant; one without any value is dropped, as by scikit-learn's imputers.

    With ``likelihood="columns"`` a DataFrame may hold texts, categories, booleans, counts and numbers: each column gets
    the likelihood that suits it (:meth:`pyrovae.Columns.infer`), and ``transform`` returns a DataFrame.

    Args:
        n_components: latent dimensions.
        sample_posterior: whether ``transform`` fills with a draw instead of the mean (for classes the most frequent
            one); :meth:`sample` gives several, which an analysis of incomplete data needs (multiple imputation).
        hide: share of the observed cells that training hides at random, others in every pass, so that the model learns
            to do without them.
        keep_empty_features: whether a column without any value is filled with 0 instead of dropped.
        likelihood: p(x|z) with independent cells, or ``"columns"``.
        prior: p(z).
        posterior: q(z|x).
        objective: such as ``"elbo"`` or ``"miwae(k=8)"``.
        net: network of likelihood and posterior.
        hidden: widths of its hidden layers.
        standardize: whether columns are put into standard units inside, as in :class:`VAETransformer`.
        epochs: passes over the rows.
        batch_size: rows in a batch.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        n_draws: importance draws per row.
        device: where training runs.
        random_state: int, ``RandomState``, or None for fresh entropy.
        verbose: 1 shows a bar.

    Attributes:
        model_: the fitted :class:`pyrovae.VAE`; it sees rows in units of its own.
        history_: the table of epochs.
        n_features_in_: columns.
        feature_names_in_: their names, if they are texts.

    References:
        MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and Frellsen, 2019)

    Example:
        >>> x = np.array([[1.0, 2.0], [2.0, 4.0], [3.0, np.nan], [np.nan, 8.0]] * 20)
        >>> imputer = VAEImputer(n_components=1, epochs=3, random_state=0).fit(x)
        >>> bool(np.isnan(imputer.transform(x)).any()), imputer.sample(x, 5).shape
        (False, (5, 80, 2))
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        sample_posterior: bool = False,
        hide: float = 0.1,
        keep_empty_features: bool = False,
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
        super().__init__(
            n_components,
            likelihood=likelihood,
            prior=prior,
            posterior=posterior,
            objective=objective,
            net=net,
            hidden=hidden,
            standardize=standardize,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            n_draws=n_draws,
            device=device,
            random_state=random_state,
            verbose=verbose,
        )
        self.sample_posterior, self.hide, self.keep_empty_features = sample_posterior, hide, keep_empty_features

    def fit(self, X: Any, y: Any = None) -> "VAEImputer":
        """Train on the observed cells.

        Args:
            X: rows, shape ``(rows, columns)``, missing cells NaN.
            y: not used.

        Raises:
            ConfigError: for arguments that cannot work, a ValueError.
            DataError: for cells outside the likelihood's support, a ValueError.
        """
        if not (isinstance(self.hide, Real) and 0 <= self.hide < 1):
            raise ConfigError(f"hide: expected a number from 0, below 1, received {self.hide!r}")
        likelihood = self._part("likelihood")
        self._table = (_Mixed if getattr(likelihood, "func", likelihood) is Columns else _Numbers)(self, X)
        return self

    def transform(self, X: Any) -> Any:
        """The rows with their missing cells filled.

        Args:
            X: rows, missing cells NaN.
        """
        check_is_fitted(self)
        if self.sample_posterior:
            return self.sample(X, 1)[0]
        return self._table.filled(self, X)

    def sample(self, X: Any, n_samples: int = 10, random_state: Any = None) -> Any:
        """Independent completions, draws from ``p(x_missing|x_observed)``, shape ``(n_samples, rows, columns)``.

        Args:
            X: rows, missing cells NaN.
            n_samples: completions of every row.
            random_state: None is the estimator's own.

        Returns:
            An array; with ``likelihood="columns"`` a list of DataFrames.
        """
        check_is_fitted(self)
        _, _, seed = seeds(self.random_state if random_state is None else random_state)
        return self._table.drawn(self, X, n_samples, seed)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """The names of the columns that are left.

        Args:
            input_features: names of the columns, where they had none.
        """
        check_is_fitted(self)
        names: Any = _check_feature_names_in(self, input_features)
        return names[self._table.left]

    def _expected(self, rows: Tensor) -> np.ndarray:
        """The means of the missing cells."""
        return self._by_rows(lambda *data, **how: impute(*data, **how, draws=1).mean, rows)

    def _completed(self, rows: Tensor, n: int, seed: int) -> np.ndarray:
        """Completions of rows."""
        with surroundings(torch.float64):
            return impute(self.model_, rows, draws=n, k=self._count("n_draws"), seed=seed).draws.numpy()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class _Numbers:
    """Columns of numbers, all of one kind."""

    def __init__(self, estimator: VAEImputer, x: Any) -> None:
        rows = estimator._rows(x, reset=True, ensure_all_finite="allow-nan")
        there = ~np.isnan(rows)
        self.present = there.any(0)
        if not self.present.any():
            raise ConfigError("X: expected a value in at least one cell, received NaN alone")
        self.left = self.present | estimator.keep_empty_features
        estimator._fit_vae(rows[:, self.present], missing=True, preprocess=Hide(estimator.hide))

    def filled(self, estimator: VAEImputer, x: Any) -> np.ndarray:
        rows = estimator._rows(x, ensure_all_finite="allow-nan")
        return self._outward(estimator, rows, estimator._expected(self._inward(estimator, rows)))

    def drawn(self, estimator: VAEImputer, x: Any, n: int, seed: int) -> np.ndarray:
        rows = estimator._rows(x, ensure_all_finite="allow-nan")
        draws = estimator._completed(self._inward(estimator, rows), n, seed)
        return np.stack([self._outward(estimator, rows, draw) for draw in draws])

    def _inward(self, estimator: VAEImputer, rows: np.ndarray) -> Tensor:
        return estimator._inward(rows[:, self.present])

    def _outward(self, estimator: VAEImputer, rows: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """The caller's rows with what is missing; observed cells stay as they are."""
        with surroundings(torch.float64):
            found = estimator._units.outward(torch.tensor(filled))
        whole = np.where(np.isnan(rows), 0, rows)
        whole[:, self.present] = np.where(np.isnan(rows[:, self.present]), found, rows[:, self.present])
        return whole[:, self.left]


class _Mixed:
    """Columns of a DataFrame, each of its own kind."""

    def __init__(self, estimator: VAEImputer, x: Any) -> None:
        frame = self._frame(estimator, x, reset=True)
        self.columns = Columns.infer(frame)
        self.left = np.ones(frame.shape[1], dtype=bool)
        parts = estimator._parts() | {"likelihood": functools.partial(Columns, columns=self.columns.columns)}
        build = functools.partial(recipes.vae, frame.shape[1], latent=estimator._count("n_components"), **parts)
        estimator._train(build, self.columns.to_array(frame), preprocess=Hide(estimator.hide))

    def filled(self, estimator: VAEImputer, x: Any) -> Any:
        frame = self._frame(estimator, x)
        rows = torch.tensor(self.columns.to_array(frame))
        found = estimator._expected(rows)
        classes = [kind in _CLASSES for kind in self.columns.kinds]
        if any(classes):
            draws = torch.tensor(estimator._completed(rows, _COMPLETIONS, estimator._noise))
            found[:, classes] = draws.mode(0).values[:, classes].numpy()
        return self._outward(frame, found)

    def drawn(self, estimator: VAEImputer, x: Any, n: int, seed: int) -> list[Any]:
        frame = self._frame(estimator, x)
        rows = torch.tensor(self.columns.to_array(frame))
        return [self._outward(frame, draw) for draw in estimator._completed(rows, n, seed)]

    def _outward(self, frame: Any, found: np.ndarray) -> Any:
        """The caller's table with what is missing."""
        return self.columns.to_frame(found).set_axis(frame.index)

    def _frame(self, estimator: VAEImputer, x: Any, *, reset: bool = False) -> Any:
        import pandas as pd

        given: Any = x
        frame: Any = x if isinstance(x, pd.DataFrame) else pd.DataFrame(np.asarray(x)).rename(columns=str)
        validate_data(estimator, given, reset=reset, skip_check_array=True)
        return frame


class Hide(Preprocess):
    """Random cells are missing, others each time.

    Args:
        share: of the cells.

    Example:
        >>> bool(Hide(0.5)(torch.zeros(100)).isnan().any())
        True
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The rows, NaN in other cells too."""
        drawn = torch.rand(x.shape, generator=generator, device="cpu" if generator is None else generator.device)
        return torch.where(drawn.to(x.device) < self.share, torch.nan, x.to(torch.get_default_dtype()))
