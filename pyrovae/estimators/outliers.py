"""Rows that the others do not foresee."""

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import OutlierMixin

from pyrovae.errors import ConfigError
from pyrovae.estimators.base import VAEEstimator
from pyrovae.evaluation import elbo_terms

__all__ = ["VAEOutlierDetector"]


class VAEOutlierDetector(OutlierMixin, VAEEstimator):
    r"""Outliers are rows of low density: log p(x), or the reconstruction probability ``E_q log p(x|z)``.

    Args:
        n_components: latent dimensions.
        method: ``"log_prob"``, importance-weighted estimates of log p(x), or ``"reconstruction"``, which leaves out how
            unusual z is.
        contamination: share of the training rows that are taken for outliers, above 0, at most 0.5.
        likelihood: p(x|z); ``"normal"``, whose scale depends on z, is the better density,
            ``"normal(scale=learned-scale)"`` is calmer.
        prior: p(z).
        posterior: q(z|x).
        objective: such as ``"elbo"``.
        net: network of likelihood and posterior.
        hidden: widths of its hidden layers.
        standardize: whether columns are put into standard units inside, as in :class:`VAETransformer`.
        epochs: passes over the rows.
        batch_size: rows in a batch.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        n_draws: draws of z per row for a score.
        device: where training runs.
        random_state: int, ``RandomState``, or None for fresh entropy.
        verbose: 1 shows a bar.

    Attributes:
        offset_: the score below which a row is an outlier, ``decision_function = score_samples - offset_``.
        model_: the fitted :class:`pyrovae.VAE`; it sees rows in units of its own.
        history_: the table of epochs.
        n_features_in_: columns.
        feature_names_in_: their names, if they are texts.

    References:
        Variational autoencoder based anomaly detection using reconstruction probability (An and Cho, 2015)

    Example:
        >>> x = np.random.default_rng(0).normal(size=(200, 3))
        >>> detector = VAEOutlierDetector(epochs=5, contamination=0.05, random_state=0).fit(x)
        >>> int((detector.predict(x) == -1).sum()), detector.predict([[50.0, -50.0, 50.0]])
        (10, array([-1]))
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        method: str = "log_prob",
        contamination: float = 0.1,
        likelihood: Any = "normal",
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
        self.method, self.contamination = method, contamination

    def fit(self, X: Any, y: Any = None) -> "VAEOutlierDetector":
        """Train, and place the threshold by the training rows' own scores.

        Args:
            X: rows, shape ``(rows, columns)``, a few outliers perhaps among them.
            y: not used.

        Raises:
            ConfigError: for arguments that cannot work, a ValueError.
            DataError: for cells outside the likelihood's support, a ValueError.
        """
        if self.method not in ("log_prob", "reconstruction"):
            raise ConfigError(f"method: expected 'log_prob' or 'reconstruction', received {self.method!r}")
        if not (isinstance(self.contamination, Real) and 0 < self.contamination <= 0.5):
            raise ConfigError(f"contamination: expected a number above 0, at most 0.5, received {self.contamination!r}")
        x = self._rows(X, reset=True)
        self._fit_vae(x)
        self.offset_ = float(np.percentile(self._scores(x), 100 * self.contamination))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """The score of each row, nats in units of X; the lower, the more of an outlier.

        Args:
            X: rows.
        """
        return self._scores(self._rows(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples - offset_``, negative for outliers.

        Args:
            X: rows.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """1 for ordinary rows, -1 for outliers.

        Args:
            X: rows.
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _scores(self, x: np.ndarray) -> np.ndarray:
        if self.method == "log_prob":
            return self._log_density(x)
        values = self._by_rows(
            lambda *data, **how: elbo_terms(*data, **how, compile="eager").reconstruction, self._inward(x)
        )
        return values + self._units.log_jacobian
