"""Few labels, on data whose labels are known: ``python tests/benchmarks/labels.py --data mnist --labels 100 --out F``.

The same number of labels is drawn for every class from the training rows; all other training rows are there without a
label. The error is that of the last weights on the test rows, which nothing was chosen by. Each method beside the
classifier of the same network from labels alone, and beside scikit-learn's label spreading on the vectors themselves.
One JSON line for each finished run; finished runs are skipped.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from pyrovae import data
from pyrovae.evaluation.labels import mean_interval
from pyrovae.labelling import (
    Density,
    GraphSpreading,
    LatentPropagation,
    Neighbourhood,
    Smooth,
    Supervised,
    VariationalM2,
    infer_features,
    sizes_for,
)

METHODS = ("supervised", "spreading", "propagation", "M2", "smooth")


class Task:
    """One draw of labels, and what all methods share: rows, and the VAE that sees no label."""

    def __init__(self, name: str, labels: int, seed: int, steps: int | None) -> None:
        source = data.load(name)
        rows, self.test_y = _vectors(source.train.x), _codes(source.test.y)
        self.features = infer_features(rows)
        self.x, self.test_x = self.features.encode(rows), self.features.encode(_vectors(source.test.x))
        truth = _codes(source.train.y)
        self.classes, self.seed = int(truth.max()) + 1, seed
        self.y = drawn(truth, labels // self.classes, seed)
        self.sizes = sizes_for(len(self.x), self.features, steps=steps)
        self._density: Density | None = None

    @property
    def density(self) -> Density:
        """The VAE of all rows, trained when it is first asked for."""
        self._density = self._density or Density.train(self.x, self.features, self.sizes, self.seed)
        return self._density

    def labeller(self, method: str, alpha: float, reach: float) -> Any:
        """An untrained one of ours, or scikit-learn's."""
        own = self.features, self.classes, self.sizes
        if method == "spreading":
            return GraphSpreading(self.classes, self.seed)
        if method == "supervised":
            return Supervised(*own, seed=self.seed)
        if method == "M2":
            return VariationalM2(*own, alpha=alpha, seed=self.seed)
        return Smooth(*own, self.density, reach=reach, seed=self.seed)

    def error(self, method: str, alpha: float, reach: float) -> float:
        """On the test rows, in per cent."""
        if method == "propagation":  # test rows are in the graph, as any row without a label
            codes = np.concatenate([self.density.codes(self.x), self.density.codes(self.test_x)])
            y = np.concatenate([self.y, np.full(len(self.test_x), -1)])
            probabilities = Neighbourhood(codes, LatentPropagation()).soft_labels(y, self.classes)[len(self.x) :]
        else:
            probabilities = self.labeller(method, alpha, reach).fit(self.x, self.y).probabilities(self.test_x)
        return 100 * float((probabilities.argmax(1) != self.test_y).mean())


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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--steps", type=int, help="updates of a training; by default by the number of rows")
    parser.add_argument("--alpha", type=float, default=50.0, help="of M2")
    parser.add_argument("--reach", type=float, default=0.35, help="of the smooth classifier")
    chosen = parser.parse_args()
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    settings = {"steps": chosen.steps, "alpha": chosen.alpha, "reach": chosen.reach}
    lines = [line for line in lines if all(line[key] == value for key, value in settings.items())]
    done = {(line["data"], line["labels"], line["seed"], line["method"]) for line in lines}
    for labels in chosen.labels:
        for seed in range(chosen.seeds):
            missing = [m for m in chosen.methods if (chosen.data, labels, seed, m) not in done]
            task = Task(chosen.data, labels, seed, chosen.steps) if missing else None
            for method in missing:
                assert task is not None
                began = time.perf_counter()
                error = task.error(method, chosen.alpha, chosen.reach)
                line = {"data": chosen.data, "labels": labels, "seed": seed, "method": method, "error": error}
                lines.append(line | {"seconds": time.perf_counter() - began} | settings)
                with chosen.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
