"""From a table with a few labels to a table with all of them."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pyrovae.conditional import NetBuilder
from pyrovae.data import Table
from pyrovae.errors import ConfigError
from pyrovae.labelling.baselines import GradientBoosting, GraphSpreading, SelfTraining
from pyrovae.labelling.calibration import Abstention
from pyrovae.labelling.comparison import Comparison, compare_labellers, learning_curve
from pyrovae.labelling.density import Density, Neighbourhood
from pyrovae.labelling.features import Features, as_rows, infer_features
from pyrovae.labelling.given import check_leak, class_codes, label_classes, label_values, split_column
from pyrovae.labelling.methods import Labeller, Smooth, Supervised, VariationalM2
from pyrovae.labelling.propagation import LatentPropagation
from pyrovae.labelling.report import described, in_words
from pyrovae.labelling.result import Labelling
from pyrovae.labelling.trained import Calibration, TrainedLabeller
from pyrovae.labelling.training import Sizes, sizes_for
from pyrovae.spec import closest

__all__ = ["METHODS", "candidates", "label"]

METHODS = ("supervised", "gradient-boosting", "self-training", "label-spreading", "m2", "smooth")
"""Names of the methods, the simplest first."""

_FALLBACK = "smooth"  # where nothing could be held out
_MANY = 2000  # labels, from which three folds do


def candidates(
    features: Features,
    classes: int,
    sizes: Sizes,
    density: Density,
    neighbourhood: Neighbourhood | None = None,
    seed: int = 0,
) -> dict[str, list[Labeller]]:
    """Untrained labellers by the names in ``METHODS``, one for each setting that is tried.

    Args:
        features: of the rows.
        classes: how many.
        sizes: of our networks and their training.
        density: a VAE of the rows.
        neighbourhood: of the rows that will be trained on.
        seed: of everything random.
    """
    own = features, classes, sizes
    return {
        "supervised": [Supervised(*own, seed=seed)],
        "gradient-boosting": [GradientBoosting(classes, seed)],
        "self-training": [SelfTraining(classes, seed)],
        "label-spreading": [GraphSpreading(classes, seed)],
        "m2": [VariationalM2(*own, density, neighbourhood, alpha=alpha, seed=seed) for alpha in (10.0, 100.0)],
        "smooth": [Smooth(*own, density, neighbourhood, seed=seed)],
    }


def label(
    table: Any,
    y: Any,
    *,
    coverage: float = 0.95,
    error_rate: float = 0.05,
    confidence: float = 0.95,
    method: str | Sequence[str] = "auto",
    classes: Sequence[Any] | None = None,
    folds: int | None = None,
    seed: int = 0,
    minutes: float | None = None,
    net: NetBuilder | None = None,
    steps: int | None = None,
    asked: int = 100,
    curve: bool = True,
    directory: str | os.PathLike[str] | None = None,
    source: str = "table",
) -> Labelling:
    r"""Label all rows of a table from the few that have a label, and say how far to trust it.

    Methods are compared on labels that are held out in turn, the best one is trained again on all of them. Three are
    ours: the classifier from labels alone (``"supervised"``), M2 (``"m2"``), and a classifier made smooth by all rows,
    after labels have spread in the codes of a VAE (``"smooth"``). Three are scikit-learn's: ``"gradient-boosting"``
    from labels alone, ``"self-training"`` and ``"label-spreading"``. The report says what each is worth, and whether
    rows without a label were of any use.

    The promises (calibration, coverage, error of safe labels) are for rows drawn as the labelled ones were. They come
    from held-out labels, and are applied to a classifier that has learned from a fifth more.

    Args:
        table: DataFrame (numbers and texts, missing cells allowed), array or tensor of vectors or images, or
            :class:`pyrovae.data.Table`, such as that of a folder of images. The caller's is not changed.
        y: labels, texts or whole numbers from 0, with empty, None, NaN or -1 where one is missing; or the name of their
            column; None takes those of a ``Table``.
        coverage: of prediction sets: so many hold the right class.
        error_rate: largest error among rows that are not abstained from.
        confidence: with which that is so.
        method: ``"auto"`` for the best of all, one of the names above, or several to choose from. One that is named is
            taken in any case, and still compared with ``"supervised"``.
        classes: the labels that can occur; None takes those that do. Each needs a label.
        folds: how often labels are held out; None is 5, or 3 from 2,000 labels.
        seed: of everything random.
        minutes: for the comparison: methods that would take longer are left out, which the report says. Without it the
            same seed gives the same labels; with it, on the same machine, if all methods are through.
        net: network of every part; None chooses two layers by the number of features.
        steps: updates of a training; None chooses by the number of rows.
        asked: rows that ``ask_next`` keeps apart from each other.
        curve: whether the report tells the error with a quarter and a half of the labels, which costs two trainings.
            From 40 labels, and if ``minutes`` leaves the time.
        directory: the labeller is saved there.
        source: what the table is called in messages.

    Returns:
        The labels; ``.table()`` is a DataFrame, ``.text`` the report, ``.save_pictures(directory)`` draws it,
        ``.labeller`` labels other tables.

    Raises:
        ConfigError: for arguments that cannot be.
        DataError: for labels or a table from which nothing can be learned, in words; nothing is written then.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(60, 2)) * 0.1 + np.repeat([[-1, 0], [1, 0]], 30, axis=0)
        >>> y = np.full(60, "", dtype=object)
        >>> y[[0, 1, 2, 30, 31, 32]] = ["left"] * 3 + ["right"] * 3
        >>> found = label(x, y, method="supervised", steps=50)
        >>> found.labels[[10, 50]].tolist(), found.table().columns.tolist()
        (['left', 'right'], ['x0', 'x1', 'label', 'probability', 'p_left', 'p_right', 'prediction_set', 'abstain',
        'novelty', 'ask_next'])
    """
    wanted = _methods(method)
    _check(coverage, error_rate, confidence, folds, steps)
    rows = as_rows(table)
    read, given, name = split_column(rows, y if y is not None else getattr(table, "y", None), source)
    values = label_values(given, len(rows), source if name is None else f"{source}, column {name!r}")
    known = label_classes(values, classes, source)
    codes = class_codes(values, known, source)
    check_leak(read, codes, values, source)
    features = infer_features(read, source)
    x = features.encode(read, source)
    sizes = sizes_for(len(x), features, net, steps)
    density = Density.train(x, features, sizes, seed)
    neighbourhood = Neighbourhood(density.codes(x), LatentPropagation())
    methods = candidates(features, len(known), sizes, density, neighbourhood, seed)
    methods = {key: methods[key] for key in METHODS if key in wanted or key == "supervised"}
    folds = (5 if (codes >= 0).sum() < _MANY else 3) if folds is None else folds
    began = time.perf_counter()
    comparison = compare_labellers(methods, x, codes, folds=folds, seed=seed, minutes=minutes)
    chosen, kept = _chosen(comparison, methods, wanted)
    promise = {"coverage": coverage, "error_rate": error_rate, "confidence": confidence}
    files = table.files if isinstance(table, Table) else None
    index = list(rows.index if hasattr(rows, "index") else range(len(rows)) if files is None else files)
    report = {
        "rows": len(x),
        "labelled": int((codes >= 0).sum()),
        "classes": list(known),
        "labels_by_class": np.bincount(codes[codes >= 0], minlength=len(known)).tolist(),
        "method": chosen,
        "saved_method": kept,
        **described(comparison, chosen, known, **promise, index=index),
    }
    left = np.inf if minutes is None else 60 * minutes - (time.perf_counter() - began)
    if curve and chosen in comparison.trials and left > 2 * comparison.trials[chosen].seconds:
        report["learning_curve"] = learning_curve(comparison, chosen, x, codes, seed)
    report["notes"] = _notes(report, features, comparison)

    def trained(which: str) -> TrainedLabeller:
        labeller = comparison.trials[which].labeller if which in comparison.trials else methods[which][0]
        calibration = Calibration()
        if which in comparison.trials:
            calibration = Calibration.fit(comparison.trials[which].probabilities, comparison.y, **promise)
        return TrainedLabeller(features, known, which, labeller.fit(x, codes), calibration, density, report)

    worker = trained(chosen)
    saved = worker if kept == chosen else trained(kept)
    found = replace(worker.labelled(rows, x, codes, name, saved, asked), files=files)
    report["ask_next"] = [_name(index[i]) for i in np.argsort(found.ask) if found.ask[i] > 0][:20]
    report["text"] = in_words(report)
    if directory is not None:
        saved.save(directory)
    return found


def _methods(method: str | Sequence[str]) -> tuple[str, ...]:
    names = METHODS if method == "auto" else (method,) if isinstance(method, str) else tuple(method)
    for name in names:
        if name not in METHODS:
            raise ConfigError(
                f"method: expected 'auto' or some of {', '.join(METHODS)}, received {name!r}{closest(name, METHODS)}"
            )
    if not names:
        raise ConfigError("method: expected 'auto' or names of methods, received none")
    return names


def _check(coverage: float, error_rate: float, confidence: float, folds: int | None, steps: int | None) -> None:
    if not 0 < coverage < 1:
        raise ConfigError(f"coverage: expected a number between 0 and 1, received {coverage!r}")
    Abstention.fewest(error_rate, confidence)
    for name, value, least in (("folds", folds, 2), ("steps", steps, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{name}: expected an int from {least}, or None, received {value!r}")


def _chosen(
    comparison: Comparison, methods: Mapping[str, Sequence[Labeller]], wanted: Sequence[str]
) -> tuple[str, str]:
    """The method that labels, and the one that can be saved."""
    ours = [name for name, labellers in methods.items() if labellers[0].ours]
    fallback = _FALLBACK if _FALLBACK in wanted else wanted[0]
    chosen = comparison.best([name for name in wanted if name in comparison.trials]) or fallback
    if chosen in ours:
        return chosen, chosen
    return chosen, comparison.best([name for name in ours if name in comparison.trials]) or ours[0]


def _notes(report: Mapping[str, Any], features: Features, comparison: Comparison) -> list[str]:
    notes = [f"Column {name!r} is not used: {why}." for name, why in features.left_out.items()]
    single = [c for c, n in zip(report["classes"], report["labels_by_class"], strict=True) if n == 1]
    if single:
        notes.append(
            f"Of {', '.join(map(str, single[:5]))} there is one label, which was never held out: its error is unknown."
        )
    if not len(comparison.y):
        notes.append(
            "No label could be held out: nothing is known about the error, and probabilities are not calibrated."
        )
    return notes


def _name(row: Any) -> Any:
    return row.item() if isinstance(row, np.generic) else row if isinstance(row, (int, str)) else str(row)
