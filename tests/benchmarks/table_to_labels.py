"""From a CSV with few labels to one with all: ``python tests/benchmarks/table_to_labels.py --out F``.

Makes a table of 10,000 rows, 20 columns and 4 classes, 200 of them labelled, runs ``pyrovae label`` on it as a user
would, and compares what comes out with the 9,800 labels that were held back. Prints the report and one JSON line.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import make_classification

ROWS, COLUMNS, LABELS = 10_000, 20, 200
NAMES = np.array(["red", "green", "blue", "grey"])


def make(file: Path, seed: int) -> np.ndarray:
    """Write the table; its true labels come back."""
    how = {"n_informative": 8, "n_redundant": 2, "n_classes": len(NAMES), "class_sep": 1.5}
    x, y = make_classification(ROWS, COLUMNS, random_state=seed, **how)
    known = np.random.default_rng(seed).choice(ROWS, LABELS, replace=False)
    table = pd.DataFrame(x.round(4), columns=[f"f{i}" for i in range(COLUMNS)])
    table["kind"] = ""
    table.loc[known, "kind"] = NAMES[y[known]]
    table.to_csv(file, index=False)
    return NAMES[y]


def measure(seed: int) -> dict[str, Any]:
    """Time, error and coverage of one table."""
    with TemporaryDirectory() as folder:
        here = Path(folder)
        truth = make(here / "table.csv", seed)
        began = time.perf_counter()
        arguments = ["label", "table.csv", "--label-column", "kind", "--out", "labelled.csv"]
        subprocess.run([sys.executable, "-m", "pyrovae", *arguments], cwd=here, check=True)
        seconds = time.perf_counter() - began
        given = pd.read_csv(here / "table.csv", keep_default_na=False)["kind"]
        found = pd.read_csv(here / "labelled.csv", keep_default_na=False)
    hidden = (given == "").to_numpy()
    held = [true in told.split("|") for true, told in zip(truth, found["prediction_set"], strict=True)]
    return {
        "seed": seed,
        "seconds": seconds,
        "error": float((found["label"] != truth)[hidden].mean()),
        "coverage": float(np.array(held)[hidden].mean()),
        "left_open": float((found["abstain"].astype(str) == "True")[hidden].mean()),
    }


def main() -> None:
    """Measure, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each table")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    chosen = parser.parse_args()
    for seed in chosen.seeds:
        line = json.dumps(measure(seed))
        with chosen.out.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
