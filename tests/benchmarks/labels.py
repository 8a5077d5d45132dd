"""Few labels, on data whose labels are known: ``python tests/benchmarks/labels.py --data mnist --labels 100 --out F``.

The same number of labels is drawn for every class from the training rows; all other training rows are there without a
label. The error is that of the last weights on the test rows, which nothing was chosen by: settings were chosen with
``--held-out``, where a sixth of the training rows stands for the test rows and draws are others. Each method beside the
classifier of the same network from labels alone, and beside labels that spread among the vectors themselves: by
scikit-learn (``spreading``, for small data) and as they do among codes (``pixels``).
``calibration`` keeps a fifth of the labels from the smooth classifier, for a temperature and a conformal threshold.
One JSON line for each finished run; finished runs are skipped.
"""

import argparse
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae import data
from pyrovae.evaluation.labels import expected_calibration_error, mean_interval
from pyrovae.labelling import (
    ConformalSets,
    Density,
    GraphSpreading,
    LatentPropagation,
    Neighbourhood,
    Smooth,
    Supervised,
    Temperature,
    VariationalM2,
    infer_features,
    label_folds,
    sizes_for,
)

METHODS = ("supervised", "spreading", "pixels", "propagation", "M2", "smooth", "calibration")
STEPS = {"supervised": 1500, "propagation": 5000, "M2": 1170, "smooth": 5000, "calibration": 2500}  # of 60,000 rows
ALPHA, REACH = 50.0, 0.35
COVERAGE = 0.95


class Rows:
    """What all draws share: rows to learn from, rows to be tested on, and a VAE that sees no label for each seed."""

    def __init__(self, name: str, *, held_out: bool, length: float = 1.0) -> None:
        source, self.length = data.load(name), length
        x, y = _vectors(source.train.x), _codes(source.train.y)
        own = len(x) - len(x) // 6
        self.features = infer_features(x)
        self.large = len(x) > 10_000
        self.y, self.x = (y[:own], self.features.encode(x[:own])) if held_out else (y, self.features.encode(x))
        test = (x[own:], y[own:]) if held_out else (_vectors(source.test.x), _codes(source.test.y))
        self.test_x, self.test_y = self.features.encode(test[0]), test[1]
        self.classes = int(y.max()) + 1
        self.density, self.everywhere = functools.cache(self._density), functools.cache(self._everywhere)
        self.pixels = functools.cache(self._pixels)

    def sizes(self, method: str) -> Any:
        """The library's own for small data; on large data the products of M2, which takes longest, are in bfloat16."""
        if not self.large:
            return sizes_for(len(self.x), self.features)
        sizes = sizes_for(len(self.x), self.features, steps=round(self.length * STEPS[method]))
        return dataclasses.replace(sizes, compile="auto", precision="bf16") if method == "M2" else sizes

    def _density(self, seed: int) -> tuple[Density, Neighbourhood]:
        density = Density.train(self.x, self.features, self.sizes("propagation"), seed)
        return density, Neighbourhood(density.codes(self.x), LatentPropagation())

    def _everywhere(self, seed: int) -> Neighbourhood:
        """Test rows are in the graph, as any row without a label."""
        density, near = self.density(seed)
        return Neighbourhood(np.concatenate([near.codes, density.codes(self.test_x)]), near.propagation)

    def _pixels(self) -> Neighbourhood:
        """The same without a VAE."""
        return Neighbourhood(np.concatenate([self.x, self.test_x]), LatentPropagation())


class Draw:
    """One draw of labels.

    Args:
        rows: of the data.
        labels: how many.
        seed: of the draw and of all training.
    """

    def __init__(self, rows: Rows, labels: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.y = drawn(rows.y, labels // rows.classes, seed)

    def measure(self, method: str) -> dict[str, float]:
        """The error on the test rows in per cent, and what else there is to tell."""
        if method == "calibration":
            return self._calibration()
        if method in ("propagation", "pixels"):
            near = self.rows.pixels() if method == "pixels" else self.rows.everywhere(self.seed)
            y = np.concatenate([self.y, np.full(len(self.rows.test_x), -1)])
            p = near.soft_labels(y, self.rows.classes)[len(self.y) :]
        else:
            p = self._labeller(method).fit(self.rows.x, self.y).probabilities(self.rows.test_x)
        return {"error": self._error(p)}

    def _labeller(self, method: str) -> Any:
        """An untrained one of ours, or scikit-learn's."""
        if method == "spreading":
            return GraphSpreading(self.rows.classes, self.seed)
        own = self.rows.features, self.rows.classes, self.rows.sizes(method)
        if method == "supervised":
            return Supervised(*own, seed=self.seed)
        if method == "M2":
            return VariationalM2(*own, *self.rows.density(self.seed), alpha=ALPHA, seed=self.seed)
        return Smooth(*own, *self.rows.density(self.seed), reach=REACH, seed=self.seed)

    def _calibration(self) -> dict[str, float]:
        held = label_folds(self.y, 5, self.seed) == 0
        smooth = self._labeller("calibration").fit(self.rows.x, np.where(held, -1, self.y))
        own, test = smooth.probabilities(self.rows.x[held]), smooth.probabilities(self.rows.test_x)
        temperature = Temperature.fit(own, self.y[held])
        calibrated = temperature(test)
        sets = ConformalSets.fit(temperature(own), self.y[held], COVERAGE)(calibrated)
        return {
            "error": self._error(test),
            "ece_before": expected_calibration_error(test, self.rows.test_y),
            "ece": expected_calibration_error(calibrated, self.rows.test_y),
            "coverage": float(sets[np.arange(len(sets)), self.rows.test_y].mean()),
            "set_size": float(sets.sum(1).mean()),
        }

    def _error(self, p: np.ndarray) -> float:
        return 100 * float((p.argmax(1) != self.rows.test_y).mean())


def drawn(truth: np.ndarray, each: int, seed: int) -> np.ndarray:
    """So many labels of each class, -1 elsewhere."""
    rng, y = np.random.default_rng(seed), np.full(len(truth), -1)
    for k in range(int(truth.max()) + 1):
        y[rng.choice(np.flatnonzero(truth == k), each, replace=False)] = k
    return y


def _vectors(x: Any) -> np.ndarray:
    return np.asarray(x).reshape(len(x), -1)


def _codes(y: Any) -> np.ndarray:
    return np.asarray(y).astype(np.int64)


def table(lines: list[dict[str, Any]]) -> str:
    """Mean error over draws with its 95 % interval."""
    out = ["| data | labels | " + " | ".join(METHODS) + " |", "|---" * (2 + len(METHODS)) + "|"]
    for name, labels in sorted({(line["data"], line["labels"]) for line in lines}):
        cells = []
        for method in METHODS:
            key = (name, labels, method)
            found = [line["error"] for line in lines if (line["data"], line["labels"], line["method"]) == key]
            if len(found) > 1:
                cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*mean_interval(np.array(found))))
            else:
                cells.append("".join(f"{error:.2f}" for error in found))
        out.append(f"| {name} | {labels} | " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--labels", type=int, nargs="+", default=[50])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--methods", nargs="+", default=list(METHODS[:-1]), choices=METHODS)
    parser.add_argument("--length", type=float, default=1.0, help="of training, as a share of STEPS")
    parser.add_argument("--held-out", action="store_true", help="test on training rows; take other seeds")
    chosen = parser.parse_args()
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    done = {(line["data"], line["labels"], line["seed"], line["method"]) for line in lines}
    rows = None
    for seed in chosen.seeds:
        for labels in chosen.labels:
            for method in chosen.methods:
                if (chosen.data, labels, seed, method) in done:
                    continue
                rows = rows or Rows(chosen.data, held_out=chosen.held_out, length=chosen.length)
                began = time.perf_counter()
                line = {"data": chosen.data, "labels": labels, "seed": seed, "method": method}
                line |= Draw(rows, labels, seed).measure(method)
                lines.append(line | {"seconds": time.perf_counter() - began})
                with chosen.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
