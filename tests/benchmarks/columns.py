"""Imputation of tables with one likelihood per column: ``python tests/benchmarks/columns.py --out FILE``.

A fifth of the cells is hidden at random. Every method learns from the other cells of the same rows and is asked for the
log density of each hidden cell given the observed cells of its row: nats per cell, in units of one standard deviation
of the column, or of its logarithm where it is positive, so that metres or miles make no difference.

- *columns alone*: a Gaussian for real columns, for the logarithm of positive ones and for log(1 + x) of counts,
  frequencies of classes (each class counted half a time more), a von Mises for angles; all by their observed cells.
- *iterative*: scikit-learn's IterativeImputer(BayesianRidge(), sample_posterior=True) on the same columns: logarithms
  of positive ones and log(1 + x) of counts, classes one-hot (ordered ones by their codes), angles as sine and cosine.
  A density is the average over 20 chains of the last regression's Gaussian, at the chain's own draws of the other
  missing cells; where a column became several, they are regressed once more, on the other columns alone. Whole numbers
  have the mass of [x - 1/2, x + 1/2], the lowest and the highest class all that is beyond; classes have the predicted
  shares between 0.01 and 1, made to sum to one; an angle has the projection of its two Gaussians on the circle.
- *VAE*: one ``Columns`` likelihood inferred from the observed cells, trained on the importance-weighted bound, and
  ``cell_log_prob`` with k = 1000; on the small table k = 5000, and the average of four that differ in their seed. Its
  settings were chosen with ``--tune``, which hides other cells of the table and never looks at those that are hidden
  in earnest.

Errors are the root mean square over numbers in standard deviations of their column, and the accuracy over classes.
Seconds are the processor's, on one thread.

Data: scikit-learn's breast cancer (569 rows, 30 columns), and a made table (2000 rows, 16 columns: 6 real, 3 positive,
2 counts, 1 ordinal, 2 of classes, 1 binary, 1 angle) whose columns depend on 3 factors, some of them not linearly.
"""

import argparse
import functools
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrovae as pv
from pyrovae.evaluation.imputation import cell_log_prob

HIDDEN, CHAINS = 0.2, 20
SETTINGS: dict[str, dict[str, Any]] = {
    "breast-cancer": {
        "latent": 14,
        "decoder": (32,),
        "encoder": (128, 128),
        "epochs": 1000,
        "batch": 64,
        "members": 4,
        "k": 5000,
    },
    "mixed": {
        "latent": 5,
        "decoder": (64,),
        "encoder": (64,),
        "epochs": 100,
        "batch": 128,
        "members": 1,
        "k": 1000,
    },
}
CLASSES = ("binary", "ordinal", "categorical")


def breast_cancer() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Thirty measurements of 569 nuclei."""
    from sklearn.datasets import load_breast_cancer

    return load_breast_cancer(as_frame=True).data, {}


def mixed() -> tuple[pd.DataFrame, dict[str, Any]]:
    """Sixteen columns of all kinds that three factors drive."""
    rng = np.random.default_rng(0)
    n = 2000
    z = rng.standard_normal((n, 3))
    noise = lambda scale=1.0: scale * rng.standard_normal(n)  # noqa: E731
    df = pd.DataFrame(
        {
            "real 1": 5 + 2 * z[:, 0] + noise(0.6),
            "real 2": -1 + z[:, 0] - z[:, 1] + noise(0.4),
            "real 3": 20 * np.tanh(1.5 * z[:, 1]) + noise(4),
            "real 4": z[:, 2] ** 2 + noise(0.4),
            "real 5": z[:, 0] * z[:, 1] + noise(0.4),
            "real 6": noise(np.exp(0.7 * z[:, 2])),
            "positive 1": np.exp(1 + 0.8 * z[:, 0] + noise(0.3)),
            "positive 2": np.exp(5 - 0.8 * z[:, 1] + 0.5 * z[:, 2] + noise(0.3)),
            "positive 3": rng.gamma(2.0, np.exp(0.7 * z[:, 2])),
            "count 1": rng.poisson(np.exp(2.5 + 0.7 * z[:, 0])),
            "count 2": rng.poisson(rng.gamma(3.0, np.exp(1.5 + 0.7 * z[:, 2]))),
            "grade": np.digitize(2 * z[:, 1] + noise(), [-2.5, -0.8, 0.8, 2.5]),
            "city": np.array(list("abcdef"))[
                (1.2 * z @ rng.standard_normal((3, 6)) + rng.gumbel(size=(n, 6))).argmax(1)
            ],
            "team": np.array(list("uvw"))[np.digitize(z[:, 2] + noise(0.5), [-0.7, 0.7])],
            "member": rng.random(n) < 1 / (1 + np.exp(-2 * z[:, 1])),
            "wind": np.angle(np.exp(1j * (np.arctan2(z[:, 0], z[:, 1]) + noise(0.4)))),
        }
    )
    return df, {"wind": pv.VonMises}


DATA = {"breast-cancer": breast_cancer, "mixed": mixed}


class Task:
    """One table with hidden cells, in the units in which everything is measured."""

    def __init__(self, name: str, seed: int, *, tune: bool) -> None:
        df, overrides = DATA[name]()
        rng = np.random.default_rng((seed, 1))
        hidden = rng.random(df.shape) < HIDDEN
        if tune:  # what is hidden in earnest is never looked at; other cells are hidden instead
            df, hidden = df.mask(hidden), rng.random(df.shape) < HIDDEN / 2
        self.columns = pv.Columns.infer(df.mask(hidden), overrides=overrides)
        self.kinds, self.truth = self.columns.kinds, self.columns.to_array(df)
        self.x = np.where(hidden, np.nan, self.truth)
        self.hidden = hidden & ~np.isnan(self.truth)

    def log_unit(self, d: int) -> np.ndarray:
        """What is added to a log density of x: the logarithm of the standard deviation, of log x where positive."""
        x, seen = self.truth[:, d], self.x[:, d]
        if self.kinds[d] == "positive":
            return np.log(x) + np.log(np.nanstd(np.log(seen)))
        return np.full(len(x), np.log(np.nanstd(seen)) if self.kinds[d] == "real" else 0.0)

    def summary(self, log_prob: np.ndarray, guess: np.ndarray) -> dict[str, Any]:
        """Nats per hidden cell, errors of numbers in standard deviations, accuracy of classes."""
        nats = np.stack([log_prob[:, d] + self.log_unit(d) for d in range(len(self.kinds))], -1)
        squares, right = [], []
        for d, kind in enumerate(self.kinds):
            h = self.hidden[:, d]
            if kind in CLASSES:
                right.append(guess[h, d] == self.truth[h, d])
            elif kind != "angle":
                squares.append(((guess[h, d] - self.truth[h, d]) / np.nanstd(self.x[:, d])) ** 2)
        kinds = np.array(self.kinds)
        return {
            "nats": nats[self.hidden].mean(),
            "rmse": math.sqrt(np.concatenate(squares).mean()),
            "accuracy": np.concatenate(right).mean() if right else math.nan,
            "by kind": {k: nats[:, kinds == k][self.hidden[:, kinds == k]].mean() for k in sorted(set(self.kinds))},
        }


def vae(task: Task, name: str, seed: int, **changed: Any) -> dict[str, Any]:
    """Ours: the average density of some models that differ in their seed."""
    chosen = SETTINGS[name] | changed
    hidden, log_probs, fills = np.where(task.hidden, task.truth, np.nan), [], []
    for member in range(chosen["members"]):
        model = trained(task, chosen, 100 * seed + member)
        log_prob = cell_log_prob(model, task.x, hidden, k=chosen["k"], chunk_size=20_000)
        log_probs.append(log_prob.nan_to_num(0).numpy())
        fills.append(pv.impute(model, task.x, draws=100, k=1000))
    mean, mode = torch.stack([f.mean for f in fills]).mean(0), torch.cat([f.draws for f in fills]).mode(0).values
    guess = np.where([kind in CLASSES for kind in task.kinds], mode, mean)
    size = torch.stack([f.effective_sample_size for f in fills]).median()
    return task.summary(average(log_probs), guess) | {"effective draws of 1000": size.item()}


def trained(task: Task, chosen: dict[str, Any], seed: int) -> pv.VAE:
    """One VAE of the whole table."""
    decoder, encoder = (
        functools.partial(pv.MLP, hidden=chosen[part], activation=torch.nn.Tanh) for part in ("decoder", "encoder")
    )
    torch.manual_seed(seed)
    p = pv.Columns(task.columns.columns, context=chosen["latent"], net=decoder)
    q = pv.FullNormal(chosen["latent"], context=p.shape, net=p.encoder(encoder))
    model = pv.VAE(pv.StandardNormal(chosen["latent"]), p, q)
    pv.fit(
        model,
        task.x,
        objective=pv.IWAE(k=10),
        optimizer=lambda weights: torch.optim.Adam(weights, 4e-3, fused=True),
        scheduler=CosineAnnealingLR,
        epochs=chosen["epochs"],
        batch_size=chosen["batch"],
        clip=100.0,
        seed=seed,
        progress=False,
    )
    return model


def alone(task: Task, name: str, seed: int) -> dict[str, Any]:
    """Every column by itself."""
    log_prob, guess = np.zeros((2, *task.x.shape))
    for d, kind in enumerate(task.kinds):
        seen, truth = task.x[~np.isnan(task.x[:, d]), d], task.truth[:, d]
        guess[:, d] = seen.mean()
        if kind in CLASSES:
            classes = int(np.nanmax(task.truth[:, d])) + 1
            share = np.bincount(seen.astype(int), minlength=classes) + 0.5
            log_prob[:, d] = np.log(share / share.sum())[np.nan_to_num(truth).astype(int)]
            guess[:, d] = share.argmax()
        elif kind == "angle":
            log_prob[:, d] = stats.vonmises.logpdf(truth, *stats.vonmises.fit(seen, fscale=1)[:2])
        else:
            t = encoded(seen, kind)
            log_prob[:, d] = gaussian(truth, kind, t.mean()[None], t.std()[None])
    return task.summary(log_prob, guess)


def encoded(x: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as a Gaussian may have them."""
    return {"positive": np.log, "count": np.log1p}.get(kind, lambda x: x)(x)


def gaussian(x: np.ndarray, kind: str, mean: np.ndarray, std: np.ndarray, top: float = math.inf) -> np.ndarray:
    """Log density of numbers, or log mass of whole ones, whose encoded values are normal."""
    if kind in ("real", "positive"):
        return stats.norm.logpdf(encoded(x, kind), mean, std) - (np.log(x) if kind == "positive" else 0)
    upper = np.where(x >= top, np.inf, encoded(x + 0.5, kind))
    lower = np.where(x <= 0, -np.inf, encoded(np.maximum(x - 0.5, -0.5), kind))
    a, b = (lower - mean) / std, (upper - mean) / std
    a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)  # in the lower tail nothing cancels
    high, low = stats.norm.logcdf(b), stats.norm.logcdf(a)
    with np.errstate(divide="ignore"):
        return np.maximum(high + np.log1p(-np.exp(np.minimum(low - high, 0))), -50)


def circle(x: np.ndarray, sin: tuple[np.ndarray, np.ndarray], cos: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Log density of an angle whose sine and cosine are independent normals, by quadrature over the radius."""
    r = np.linspace(0, 6, 601)[1:, None]
    log_p = stats.norm.logpdf(r * np.sin(x), *sin) + stats.norm.logpdf(r * np.cos(x), *cos) + np.log(r * 0.01)
    return np.logaddexp.reduce(log_p, 0)


def iterative(task: Task, name: str, seed: int) -> dict[str, Any]:
    """Chained equations: scikit-learn's."""
    made, places = encoded_table(task)
    chains = [chain(made, places, 1000 * seed + i) for i in range(CHAINS)]
    means, stds = np.moveaxis(np.array(chains), 1, 0)  # (chains, rows, made columns)
    log_prob, guess = np.zeros((2, *task.x.shape))
    for d, at in enumerate(places):
        log_prob[:, d], guess[:, d] = foreseen(task, d, means[:, :, at], stds[:, :, at])
    return task.summary(log_prob, guess)


def encoded_table(task: Task) -> tuple[np.ndarray, list[list[int]]]:
    """Columns as a linear regression may have them, and which of them each column of the table became."""
    parts, places = [], []
    for d, kind in enumerate(task.kinds):
        x = task.x[:, d]
        made = [encoded(x, kind)]
        if kind == "categorical":
            made = [np.where(np.isnan(x), np.nan, x == c) for c in range(int(np.nanmax(task.truth[:, d])) + 1)]
        if kind == "angle":
            made = [np.sin(x), np.cos(x)]
        places.append(list(range(len(parts), len(parts) + len(made))))
        parts += made
    return np.stack(parts, -1), places


def chain(made: np.ndarray, places: list[list[int]], seed: int) -> np.ndarray:
    """Means and standard deviations of the last round's regressions of every made column, shape (2, rows, columns)."""
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer
    from sklearn.linear_model import BayesianRidge

    shift, scale = np.nanmean(made, 0), np.nanstd(made, 0)
    imputer = IterativeImputer(BayesianRidge(), sample_posterior=True, max_iter=10, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that draws do not converge is in their nature
        complete = imputer.fit_transform((made - shift) / scale)
    predicted = np.zeros((2, *made.shape))
    for step in imputer.imputation_sequence_[-made.shape[1] :]:
        predicted[:, :, step.feat_idx] = step.estimator.predict(complete[:, step.neighbor_feat_idx], return_std=True)
    for at in (at for at in places if len(at) > 1):  # not from the other parts of the same hidden cell
        others, seen = np.delete(complete, at, 1), ~np.isnan(made[:, at[0]])
        for j in at:
            regression = BayesianRidge().fit(others[seen], complete[seen, j])
            predicted[:, :, j] = regression.predict(others, return_std=True)
    return predicted * scale + np.stack([shift, 0 * shift])[:, None]


def foreseen(task: Task, d: int, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log density of one column's cells and a guess of them, from what each chain predicts of its parts."""
    truth, kind = task.truth[:, d], task.kinds[d]
    if kind == "categorical":
        share = np.clip(mean.mean(0), 0.01, 1)
        share = share / share.sum(-1, keepdims=True)
        return np.log(share[np.arange(len(truth)), np.nan_to_num(truth).astype(int)]), share.argmax(-1)
    if kind == "angle":
        sine, cosine = (zip(mean[:, :, part], std[:, :, part], strict=True) for part in (0, 1))
        return average([circle(truth, *each) for each in zip(sine, cosine, strict=True)]), np.full(len(truth), np.nan)
    mean, std = mean[:, :, 0], std[:, :, 0]
    top = np.nanmax(truth) if kind in CLASSES else math.inf
    log_prob = average([gaussian(truth, kind, m, s, top) for m, s in zip(mean, std, strict=True)])
    if kind in CLASSES:
        return log_prob, np.clip(np.round(mean.mean(0)), 0, top)
    if kind in ("positive", "count"):
        return log_prob, np.exp(mean + std**2 / 2).mean(0) - (kind == "count")
    return log_prob, mean.mean(0)


def average(log_probs: list[np.ndarray]) -> np.ndarray:
    """The logarithm of the mean density."""
    return np.logaddexp.reduce(log_probs, 0) - math.log(len(log_probs))


METHODS = {"columns alone": alone, "iterative": iterative, "VAE": vae}


def table(lines: list[dict[str, Any]]) -> str:
    """Means over seeds with 95 % intervals; against the VAE the intervals are of paired differences."""
    out = ["| data | method | nats per hidden cell | VAE better by | RMSE | accuracy | seconds |", "|---" * 7 + "|"]
    for data in DATA:
        runs = {(line["method"], line["seed"]): line for line in lines if line["data"] == data}
        for method in METHODS:
            found = [line for (m, _), line in sorted(runs.items(), key=str) if m == method]
            if not found:
                continue
            gains = [
                runs["VAE", line["seed"]]["nats"] - line["nats"] for line in found if ("VAE", line["seed"]) in runs
            ]
            cells = [interval([line[key] for line in found]) for key in ("nats", "rmse", "accuracy", "seconds")]
            better = "" if method == "VAE" else interval(gains)
            out.append(f"| {data} | {method} | {cells[0]} | {better} | {' | '.join(cells[1:])} |")
    return "\n".join(out)


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval by Student's t."""
    a = np.array(values, float)
    if not len(a) or np.isnan(a).any():
        return ""
    if len(a) == 1:
        return f"{a[0]:.3f}"
    return f"{a.mean():.3f} ± {stats.t.ppf(0.975, len(a) - 1) * a.std(ddof=1) / math.sqrt(len(a)):.3f}"


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument(
        "--tune", type=json.loads, help="settings of the VAE to try, on other cells: '{\"epochs\": 100}'"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    done = {(line["data"], line["method"], line["seed"]) for line in lines}
    for seed in range(chosen.seeds):
        for data in chosen.data:
            for method in chosen.methods:
                if (data, method, seed) in done:
                    continue
                began = time.process_time()
                extra = chosen.tune if chosen.tune and method == "VAE" else {}
                result = METHODS[method](Task(data, seed, tune=chosen.tune is not None), data, seed, **extra)
                line = {"data": data, "method": method, "seed": seed} | result
                lines.append(line | {"seconds": time.process_time() - began})
                with chosen.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
