"""Labels that spread from neighbour to neighbour."""

from typing import Any

import numpy as np

from pyrovae.errors import ConfigError, DataError

__all__ = ["LatentPropagation"]


class LatentPropagation:
    r"""Soft labels by ``F <- alpha S F + (1 - alpha) F_0`` on the graph of nearest neighbours of codes.

    ``S = D^{-1/2} (W + W^T) D^{-1/2}`` with W the nearest neighbours of every row by Euclidean distance, F_0 the
    one-hot labels. In the limit ``F = (1 - alpha) (I - alpha S)^{-1} F_0``. F is then divided by the sums of its
    columns, so that a class with many labels does not win by their number, and by those of its rows. Labelled rows keep
    their label; a row that no label reaches has equal probabilities.

    It assumes that neighbours are of one class, which holds far better for codes of a VAE than for pixels.

    Args:
        neighbours: of every row.
        alpha: between 0 and 1, how far labels spread.
        iterations: of the recursion; what is left out is less than ``alpha ** iterations``.

    References:
        Learning with local and global consistency (Zhou, Bousquet, Lal, Weston and Schölkopf, 2004)

    Example:
        >>> codes = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
        >>> soft = LatentPropagation(neighbours=2)(codes, np.array([0, -1, -1, -1, -1, 1]))
        >>> soft.argmax(1)
        array([0, 0, 0, 1, 1, 1])
    """

    def __init__(self, neighbours: int = 10, alpha: float = 0.99, iterations: int = 100) -> None:
        if neighbours < 1 or iterations < 1 or not 0 < alpha < 1:
            raise ConfigError(
                "neighbours, alpha, iterations: expected a positive int, a number between 0 and 1 and a positive int, "
                f"received {neighbours!r}, {alpha!r}, {iterations!r}"
            )
        self.neighbours, self.alpha, self.iterations = neighbours, alpha, iterations

    def __call__(self, codes: Any, y: Any, classes: int | None = None) -> np.ndarray:
        """Soft labels, shape ``(rows, classes)``.

        Args:
            codes: shape ``(rows, D)``.
            y: ints, negative where a label is missing, shape ``(rows,)``.
            classes: how many; None takes the largest label for the last class.
        """
        return self.spread(self.graph(codes), y, classes)

    def graph(self, codes: Any) -> Any:
        """The sparse matrix S, which depends on no label.

        Args:
            codes: shape ``(rows, D)``.
        """
        from scipy.sparse import diags_array
        from sklearn.neighbors import NearestNeighbors

        codes = np.asarray(codes)
        if codes.ndim != 2 or len(codes) < 2:
            raise DataError(f"codes: expected shape (rows, D) of at least two rows, received {codes.shape}")
        near = NearestNeighbors(n_neighbors=min(self.neighbours, len(codes) - 1)).fit(codes)
        graph = near.kneighbors_graph()  # of the rows themselves: no row is its own neighbour
        graph = graph + graph.T
        scale = diags_array(np.asarray(graph.sum(1)).ravel() ** -0.5)
        return (scale @ graph @ scale).tocsr()

    def spread(self, graph: Any, y: Any, classes: int | None = None) -> np.ndarray:
        """Soft labels on a graph, shape ``(rows, classes)``.

        Args:
            graph: S, as :meth:`graph` gives it.
            y: ints, negative where a label is missing.
            classes: how many; None takes the largest label for the last class.
        """
        y = np.asarray(y)
        given = y >= 0
        if y.shape != (graph.shape[0],) or not given.any():
            raise DataError(
                f"y: expected {graph.shape[0]} ints of which one at least is a label, received {y.shape} with "
                f"{int(given.sum())} labels"
            )
        known = np.eye(int(y.max()) + 1 if classes is None else classes)[np.where(given, y, 0)] * given[:, None]
        soft = known.copy()
        for _ in range(self.iterations):
            soft = self.alpha * (graph @ soft) + (1 - self.alpha) * known
        return np.where(given[:, None], known, _rows_to_one(_columns_to_one(soft)))


def _columns_to_one(soft: np.ndarray) -> np.ndarray:
    total = soft.sum(0)
    return soft / np.where(total > 0, total, 1)


def _rows_to_one(soft: np.ndarray) -> np.ndarray:
    total = soft.sum(1, keepdims=True)
    return np.where(total > 0, soft / np.where(total > 0, total, 1), 1 / soft.shape[1])
