"""M1+M2 on MNIST with 100 labels: ``python tests/benchmarks/stacked.py --minutes 60 --out F``.

M1 is a VAE of the training images that sees no label. M2 learns from a fresh draw of q(z1|x) for every image in every
pass, and is asked about the means: its classes are summed over in unlabelled rows, ``ELBO + alpha Classification``, as
in the paper, but for batches of 500 rows, a tenth of them labelled, whose ELBOs all weigh the same. Nothing else helps
it: no propagated labels, no smoothness. The curve is of the test rows; nothing was chosen by it. One JSON line for
each draw of labels; finished ones are skipped.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from labels import Rows, drawn
from torch import nn

import pyrovae as pv
from pyrovae.evaluation.labels import mean_interval

ALPHA, SHARE, BATCH, LATENT = 50.0, 0.1, 500, 50
EVERY = 10  # passes between two points of the curve
NET = functools.partial(pv.MLP, hidden=(300,), activation=nn.Softplus)


class Curve(pv.Callback):
    """Errors on the way, and the end when time is up.

    Args:
        error: measures it, in per cent.
        minutes: of training.
    """

    def __init__(self, error: Any, minutes: float) -> None:
        self.error, self.minutes = error, minutes
        self.began, self.points = time.perf_counter(), []

    def on_epoch(self, state: pv.State) -> None:
        """Measure, stop."""
        spent = (time.perf_counter() - self.began) / 60
        if spent >= self.minutes:
            state.stop = f"{self.minutes:g} minutes are over"
        if state.epoch % EVERY == 0 or state.stop:
            self.points.append({"passes": state.epoch, "minutes": round(spent, 2), "error": self.error()})


def codes(vae: pv.VAE, x: np.ndarray, used: np.ndarray) -> np.ndarray:
    """Means and scales of q(z1|x) in the dimensions that tell anything, shape ``(rows, 2, D)``."""
    q = [vae.encode(part) for part in np.array_split(x, 10)]
    return np.concatenate([torch.stack([part.mean, part.stddev], 1).numpy() for part in q])[..., used]


def run(rows: Rows, labels: int, seed: int, minutes: float) -> dict[str, Any]:
    """One draw of labels."""
    began = time.perf_counter()
    density, _ = rows.density(seed)
    x, test = (codes(density.vae, part, density.used) for part in (rows.x, rows.test_x))
    size, y = x.shape[-1], drawn(rows.y, labels // rows.classes, seed)
    before = time.perf_counter() - began
    torch.manual_seed(seed)
    m2 = pv.SemiSupervisedVAE(
        labels=pv.OneHotCategorical(rows.classes),
        prior=pv.StandardNormal(LATENT),
        likelihood=pv.Normal(size, [(LATENT,), (rows.classes,)], NET),
        posterior=pv.Normal(LATENT, [(size,), (rows.classes,)], NET),
        classifier=pv.OneHotCategorical(rows.classes, size, NET),
    )
    curve = Curve(lambda: 100 * float((m2.classify(test[:, 0]).mean.argmax(-1).numpy() != rows.test_y).mean()), minutes)
    pv.fit(
        m2,
        x,
        y,
        objective=pv.ELBO() + pv.Classification(ALPHA),
        optimizer=functools.partial(torch.optim.Adam, lr=1e-3),
        preprocess=pv.DrawNormal(),
        epochs=3000,
        batch_size=BATCH,
        labelled=SHARE,
        seed=seed,
        callbacks=[curve],
        progress=False,
    )
    last = curve.points[-1]
    return {"error": last["error"], "passes": last["passes"], "m1_minutes": before / 60, "curve": curve.points}


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--minutes", type=float, default=60.0, help="of M2; M1 takes two or three")
    parser.add_argument("--held-out", action="store_true", help="test on training rows; take other seeds")
    chosen = parser.parse_args()
    settings = {"data": chosen.data, "labels": chosen.labels, "minutes": chosen.minutes}
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    lines = [line for line in lines if all(line[key] == value for key, value in settings.items())]
    for seed in chosen.seeds:
        if seed in [line["seed"] for line in lines]:
            continue
        rows = Rows(chosen.data, held_out=chosen.held_out)
        line = settings | {"seed": seed, **run(rows, chosen.labels, seed, chosen.minutes)}
        lines.append(line)
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    print("{:.2f} [{:.2f}, {:.2f}] %".format(*mean_interval(np.array([line["error"] for line in lines]))))


if __name__ == "__main__":
    main()
