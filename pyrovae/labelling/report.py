"""What was found out on held-out labels, as plain values and in words."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pyrovae.evaluation.labels import confusion, coverage_curve, expected_calibration_error, reliability
from pyrovae.labelling.calibration import Abstention, ConformalSets, Temperature
from pyrovae.labelling.comparison import Comparison

__all__ = ["cross_fitted", "described", "helped", "in_words"]

_SURE = 0.9  # from which a prediction against a given label is doubted
_POINTS = 50  # of a curve
_ASKED = 10  # rows that the text names


def described(
    comparison: Comparison,
    chosen: str,
    classes: Sequence[Any],
    *,
    coverage: float,
    error_rate: float,
    confidence: float,
    index: Sequence[Any],
) -> dict[str, Any]:
    """Everything the comparison says about methods and about the chosen one.

    Args:
        comparison: of the methods.
        chosen: the method that labels.
        classes: the labels.
        coverage: wanted of prediction sets.
        error_rate: allowed among labels that are not abstained from.
        confidence: of that.
        index: what rows are called.
    """
    methods = {name: _method(comparison, name) for name in comparison.trials}
    report: dict[str, Any] = {"methods": methods, "left_out_methods": dict(comparison.skipped)}
    report["unlabelled"] = helped(comparison)
    if chosen not in comparison.trials:
        return report
    y, folds, raw = comparison.y, comparison.folds, comparison.trials[chosen].probabilities
    calibrated = cross_fitted(raw, y, folds, Temperature.fit)
    sets: Any = cross_fitted(calibrated, y, folds, lambda p, labels: ConformalSets.fit(p, labels, coverage))
    curve = reliability(calibrated, y)
    predicted = calibrated.argmax(1)
    report["calibration"] = {
        "temperature": Temperature.fit(raw, y).value,
        "ece_before": expected_calibration_error(raw, y),
        "ece": curve.error,
        "confidence": curve.confidence.tolist(),
        "accuracy": curve.accuracy.tolist(),
        "count": curve.count.tolist(),
    }
    report["prediction_sets"] = {
        "coverage_wanted": coverage,
        "coverage": float(sets[np.arange(len(y)), y].mean()),
        "mean_size": float(sets.sum(1).mean()),
        "empty": float((~sets.any(1)).mean()),
    }
    report["abstention"] = _abstention(Temperature.fit(raw, y)(raw), y, error_rate, confidence)  # as it is applied
    report["confusion"] = confusion(y, predicted, len(classes)).tolist()
    doubted = np.flatnonzero((predicted != y) & (calibrated.max(1) >= _SURE))
    report["doubtful_labels"] = [
        {
            "row": _plain(index[int(comparison.rows[i])]),
            "given": classes[int(y[i])],
            "predicted": classes[int(predicted[i])],
            "probability": float(calibrated[i].max()),
        }
        for i in doubted[np.argsort(-calibrated[doubted].max(1))]
    ]
    return report


def cross_fitted(
    probabilities: np.ndarray, y: np.ndarray, folds: np.ndarray, fitted: Callable[[np.ndarray, np.ndarray], Any]
) -> np.ndarray:
    """What something fitted to the other folds makes of the probabilities of each fold.

    Args:
        probabilities: of held-out rows.
        y: their classes.
        folds: of each.
        fitted: from probabilities and classes to a function of probabilities.
    """
    if len(np.unique(folds)) < 2:
        return fitted(probabilities, y)(probabilities)
    parts = {f: fitted(probabilities[folds != f], y[folds != f])(probabilities[folds == f]) for f in np.unique(folds)}
    whole = np.empty((len(y), *next(iter(parts.values())).shape[1:]), dtype=next(iter(parts.values())).dtype)
    for f, part in parts.items():
        whole[folds == f] = part
    return whole


def helped(comparison: Comparison) -> dict[str, Any]:
    """Whether rows without a label were of use: the best method with them against the best one without.

    Returns:
        ``helped``: True or False where the interval of the difference says so, None where it does not;
        ``difference`` of the errors with its interval; the two methods; the one to ``prefer``.
    """
    best = {flag: comparison.best(comparison.split(unlabelled=flag)) for flag in (True, False)}
    first, second = best[True], best[False]
    found: dict[str, Any] = {"with": first, "without": second, "prefer": comparison.best(), "helped": None}
    if first is None or second is None:
        return found
    difference, low, high = comparison.difference(first, second)
    clear = np.isfinite(low) and (high < 0 or low > 0)
    return found | {
        "difference": difference,
        "low": None if not np.isfinite(low) else low,
        "high": None if not np.isfinite(high) else high,
        "helped": bool(high < 0) if clear else None,
    }


def in_words(report: Mapping[str, Any]) -> str:
    """The report as text."""
    classes = report["classes"]
    shown = ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")
    lines = [f"{report['labelled']} of {report['rows']} rows have a label, of {len(classes)} classes: {shown}."]
    if report["methods"]:
        lines += [
            "",
            "Error on held-out labels (rough 95 % interval; settings were chosen on the same labels):",
        ]
        width = max(map(len, report["methods"]))
        for name, found in sorted(report["methods"].items(), key=lambda item: item[1]["error"]):
            setting = f", {found['setting']}" if found["setting"] else ""
            lines.append(
                f"  {name:<{width}}  {_percent(found['error'])}  [{_percent(found['low'])}, {_percent(found['high'])}]"
                f"  ({'labels and other rows' if found['uses_unlabelled'] else 'labels alone'}{setting})"
            )
    lines += [f"  {name}: left out, {why}" for name, why in report["left_out_methods"].items()]
    lines += ["", _verdict(report), *_choice(report)]
    if "calibration" in report:
        lines += ["", *_trust(report)]
    if report.get("learning_curve"):
        lines.append(_curve(report["learning_curve"]))
    if report.get("ask_next"):
        lines.append(f"Rows to label next, the most useful first: {', '.join(map(str, report['ask_next'][:_ASKED]))}.")
    return "\n".join([*lines, *report["notes"]])


def _method(comparison: Comparison, name: str) -> dict[str, Any]:
    trial = comparison.trials[name]
    low, high = comparison.interval(name)
    return {
        "error": trial.wrong / len(comparison.y),
        "low": low,
        "high": high,
        "errors_by_split": trial.errors.tolist(),
        "log_loss": trial.log_loss,
        "setting": trial.setting,
        "seconds": trial.seconds,
        "uses_unlabelled": trial.labeller.uses_unlabelled,
    }


def _abstention(calibrated: np.ndarray, y: np.ndarray, error_rate: float, confidence: float) -> dict[str, Any]:
    found = Abstention.fit(calibrated, y, error_rate, confidence)
    shares, errors = coverage_curve(calibrated, y)
    at = np.unique(np.linspace(0, len(shares) - 1, _POINTS).round().astype(int))
    return {
        "error_rate": error_rate,
        "confidence": confidence,
        "labelled_share": found.accepted / len(y),
        "accepted": found.accepted,
        "wrong": found.wrong,
        "bound": found.bound if found.accepted else None,
        "fewest_labels": Abstention.fewest(error_rate, confidence),
        "held_out": len(y),
        "curve": {"coverage": shares[at].tolist(), "error": errors[at].tolist()},
    }


def _verdict(report: Mapping[str, Any]) -> str:
    found = report["unlabelled"]
    if found["with"] is None or found["without"] is None:
        return "Whether rows without a label help was not measured."
    gap = f"{found['with']} against {found['without']}: {100 * found['difference']:+.2f} points of error"
    if found["low"] is not None:
        gap += f", 95 % interval {100 * found['low']:+.2f} to {100 * found['high']:+.2f}"
    if found["helped"] is True:
        return f"Rows without a label helped ({gap})."
    if found["helped"] is False:
        return f"Rows without a label did not help, they did harm ({gap}): prefer {found['without']}."
    if found["difference"] >= 0:
        return f"Rows without a label did not help ({gap}): prefer {found['without']}, which is simpler."
    return f"It is not shown that rows without a label help ({gap}): more labels would tell."


def _choice(report: Mapping[str, Any]) -> list[str]:
    lines = [f"These labels are by {report['method']}."]
    if report["saved_method"] != report["method"]:
        lines.append(
            f"{report['method']} is scikit-learn's and cannot be saved without pickling: what is saved is "
            f"{report['saved_method']}, the best of the others."
        )
    return lines


def _trust(report: Mapping[str, Any]) -> list[str]:
    calibration, sets, safe = report["calibration"], report["prediction_sets"], report["abstention"]
    lines = [
        f"Calibration: temperature {calibration['temperature']:.2f}; expected calibration error "
        f"{calibration['ece']:.3f} ({calibration['ece_before']:.3f} before).",
        f"Prediction sets: {_percent(sets['coverage'])} of held-out labels were in theirs (wanted "
        f"{_percent(sets['coverage_wanted'])}), {sets['mean_size']:.2f} classes on average, "
        f"{_percent(sets['empty'])} empty.",
    ]
    allowed = _percent(safe["error_rate"])
    if safe["accepted"]:
        lines.append(
            f"Abstention: {_percent(safe['labelled_share'])} of held-out rows get a label, {safe['wrong']} of "
            f"{safe['accepted']} wrong: an error of at most {allowed} with {_percent(safe['confidence'])} confidence."
        )
    elif safe["held_out"] < safe["fewest_labels"]:
        lines.append(
            f"Abstention: on all rows. To show an error of at most {allowed}, {safe['fewest_labels']} held-out labels "
            f"are needed at least, and {safe['held_out']} are there."
        )
    else:
        lines.append(f"Abstention: on all rows. No threshold was shown to have an error of at most {allowed}.")
    if report["doubtful_labels"]:
        first = report["doubtful_labels"][0]
        lines.append(
            f"{len(report['doubtful_labels'])} given labels are doubtful, the first at row {first['row']}: given "
            f"{first['given']!r}, predicted {first['predicted']!r} with {first['probability']:.2f}."
        )
    return lines


def _curve(curve: Mapping[str, Any]) -> str:
    *fewer, last = zip(curve["labels"], curve["error"], strict=True)
    told = ", ".join(f"{_percent(error)} with {labels}" for labels, error in fewer)
    line = f"Learning curve: an error of {told}, {_percent(last[1])} with {last[0]} labels"
    if curve["fell"]:
        return f"{line}: more labels helped, and more to come may help again."
    return f"{line}: it is not shown that more labels help."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value if isinstance(value, (int, str)) else str(value)
