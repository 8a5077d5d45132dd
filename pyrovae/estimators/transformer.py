"""Rows to latent features and back."""

from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from pyrovae.distributions import center
from pyrovae.errors import DataError
from pyrovae.estimators.base import VAEEstimator, pieces, seeds, surroundings

__all__ = ["VAETransformer"]


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, VAEEstimator):
    r"""Latent features of rows, ``E_q(z|x) z``, their way back, and the density log p(x).

    The argument ``n_components`` is the number of latent dimensions. Columns of any scale will do: they are
    standardised inside, and everything that comes back is in the caller's units.

    Args:
        n_components: latent dimensions.
        likelihood: p(x|z), such as ``"normal(scale=learned-scale)"``, ``"bernoulli"``, ``"poisson"``; ``"normal"``,
            whose scale depends on z, is a better density, and its features tell less of the mean.
        prior: p(z), such as ``"standard-normal"``, ``"mixture(components=5)"``, ``"vamp(components=50)"``.
        posterior: q(z|x), such as ``"normal"``, ``"full-normal"``.
        objective: such as ``"elbo"``, ``"elbo(beta=4)"``, ``"iwae(k=8)"``, ``"elbo(beta=0) + 10 * mmd"``.
        net: network of likelihood and posterior.
        hidden: widths of its hidden layers.
        standardize: whether columns are put into standard units inside; has an effect where the likelihood's support is
            the real line, or the positive numbers, which are then divided by their mean.
        epochs: passes over the rows.
        batch_size: rows in a batch.
        learning_rate: of Adam at the start; it falls to 0 along a cosine.
        n_draws: importance draws per row of ``score_samples``.
        device: where training runs.
        random_state: int, ``RandomState``, or None for fresh entropy.
        verbose: 1 shows a bar.

    Attributes:
        model_: the fitted :class:`pyrovae.VAE`; it sees rows in units of its own.
        history_: the table of epochs.
        n_features_in_: columns.
        feature_names_in_: their names, if they are texts.

    References:
        Auto-encoding variational Bayes (Kingma and Welling, 2014)

    Example:
        >>> from sklearn.datasets import load_wine
        >>> x = load_wine().data
        >>> vae = VAETransformer(n_components=3, epochs=2, random_state=0).fit(x)
        >>> vae.transform(x).shape, vae.inverse_transform(vae.transform(x)).shape, vae.sample(5).shape
        ((178, 3), (178, 13), (5, 13))
        >>> vae.get_feature_names_out()
        array(['vaetransformer0', 'vaetransformer1', 'vaetransformer2'], dtype=object)
    """

    def fit(self, X: Any, y: Any = None) -> "VAETransformer":
        """Train.

        Args:
            X: rows, shape ``(rows, columns)``.
            y: not used.

        Raises:
            ConfigError: for arguments that cannot work, a ValueError.
            DataError: for cells outside the likelihood's support, a ValueError.
        """
        x = self._rows(X, reset=True)
        self._fit_vae(x)
        self._n_features_out = self._count("n_components")
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The means of q(z|x), shape ``(rows, n_components)``.

        Args:
            X: rows.
        """
        x = self._rows(X)
        with surroundings(torch.float64):
            z = torch.cat([self.model_.encode(piece).mean for piece in pieces(self._inward(x))])
        return z.numpy().astype(x.dtype)

    def inverse_transform(self, Z: Any) -> np.ndarray:
        """The means of p(x|z) in the caller's units, or modes where the likelihood has no mean.

        Args:
            Z: latent features, shape ``(rows, n_components)``.
        """
        check_is_fitted(self)
        dtypes: Any = [np.float64, np.float32]
        z = check_array(Z, dtype=dtypes, input_name="Z")
        if z.shape[1] != self._n_features_out:
            raise DataError(f"Z: expected {self._n_features_out} columns, received {z.shape[1]}")
        with surroundings(torch.float64):
            rows = torch.cat([center(self.model_.decode(piece)) for piece in pieces(torch.tensor(z).double())])
            return self._units.outward(rows).astype(z.dtype)

    def score_samples(self, X: Any) -> np.ndarray:
        """Importance-weighted estimates of log p(x), nats per row: a log density of X in its own units.

        All rows are scored with the same noise. Constant columns have no density and are left out.

        Args:
            X: rows.
        """
        return self._log_density(self._rows(X))

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of ``score_samples``, nats per row.

        Args:
            X: rows.
            y: not used.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws from p(x) in the caller's units, noise of the likelihood included, shape ``(n_samples, columns)``.

        Args:
            n_samples: rows.
            random_state: None is the estimator's own.
        """
        check_is_fitted(self)
        seed, *_ = seeds(self.random_state if random_state is None else random_state)
        with surroundings(torch.float64, seed):
            return self._units.outward(self.model_.sample(n_samples))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags
