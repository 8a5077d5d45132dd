"""Which labels to ask for."""

import numpy as np

__all__ = ["ask_next"]

_CANDIDATES = 20  # for each row that is asked for


def ask_next(
    probabilities: np.ndarray, codes: np.ndarray, labelled: np.ndarray, count: int = 100, neighbours: int = 10
) -> np.ndarray:
    r"""Ranks of the rows whose label would help most: unsure, typical, and unlike each other.

    The score of a row is ``(1 - (p_1 - p_2)) density``, with p_1 and p_2 its two largest probabilities and the density
    one over the mean distance of its code to its neighbours', so that outliers are not asked for. The first ``count``
    rows are then picked one by one by score times distance to the nearest row that is labelled or picked already,
    the others follow by their score.

    Args:
        probabilities: shape ``(rows, classes)``.
        codes: shape ``(rows, D)``.
        labelled: booleans, shape ``(rows,)``.
        count: rows that are kept apart from each other.
        neighbours: of the density.

    Returns:
        Ints from 1, 0 for rows that have a label.

    References:
        An analysis of active learning strategies for sequence labeling tasks (Settles and Craven, 2008), there the
        density; Active learning for convolutional neural networks: a core-set approach (Sener and Savarese, 2018),
        there the distances; Active hidden Markov models for information extraction (Scheffer et al., 2001), there the
        margin
    """
    ranks, open_rows = np.zeros(len(codes), dtype=np.int64), np.flatnonzero(~np.asarray(labelled))
    if not len(open_rows):
        return ranks
    codes = np.asarray(codes, dtype=np.float64)
    two = np.sort(probabilities[open_rows], axis=1)[:, -2:]
    score = (1 - (two[:, 1] - two[:, 0]) + 1e-9) * _density(codes, neighbours)[open_rows]
    order = np.argsort(-score, kind="stable")
    pool = order[: _CANDIDATES * count]
    picked = pool[_apart(score[pool], codes[open_rows[pool]], codes[np.asarray(labelled)], count)]
    rest = order[~np.isin(order, picked)]
    ranks[open_rows[np.concatenate([picked, rest])]] = np.arange(1, len(open_rows) + 1)
    return ranks


def _density(codes: np.ndarray, neighbours: int) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    if len(codes) < 2:
        return np.ones(len(codes))
    near = NearestNeighbors(n_neighbors=min(neighbours, len(codes) - 1)).fit(codes)
    distance = near.kneighbors()[0].mean(1)
    return 1 / (distance + np.median(distance) + 1e-12)  # bounded: copies of one row are not infinitely typical


def _apart(score: np.ndarray, codes: np.ndarray, known: np.ndarray, count: int) -> np.ndarray:
    """Greedily, rows of high score far from all that are known."""
    distance = np.full(len(codes), np.inf)
    for row in known:
        distance = np.minimum(distance, np.linalg.norm(codes - row, axis=1))
    picked: list[int] = []
    for _ in range(min(count, len(codes))):
        worth = score * np.where(np.isinf(distance), 1.0, distance) + 1e-300 * score
        worth[picked] = -1
        picked.append(int(worth.argmax()))
        distance = np.minimum(distance, np.linalg.norm(codes - codes[picked[-1]], axis=1))
    return np.array(picked, dtype=np.int64)
