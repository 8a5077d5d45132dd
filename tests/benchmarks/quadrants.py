"""MNIST with one, two or three quadrants given: ``python tests/benchmarks/quadrants.py --out FILE``.

The quadrants are those of Pyro's tutorial on conditional VAEs: given are the bottom left, the left half, or all but the
bottom right; the other pixels are to be predicted, and only they are scored, in nats per image. The context is grey.

- *NN*: ``p(x|c)`` without a latent, independent pixels.
- *CVAE*: ``p(z|c)``, ``p(x|z, c)``, ``q(z|x, c)``, trained on the ELBO.
- *CVAE, hybrid*: the same, trained on ``alpha ELBO + (1 - alpha) GSNN``.

Every network has two hidden layers of 500, z has 200 dimensions. Trained on fresh binarisations of 50,000 training
images, stopped by the 10,000 others, which also chose all settings (``--tune`` measures on them and never loads the
test images).

Measures, on the 10,000 test images, the last two of a VAE on every fifth of them; seconds are the processor's:

- *tutorial*: what Pyro's tutorial calls the conditional log-likelihood by Monte Carlo: minus the ELBO with the
  recognition network, the cross-entropy taken with grey pixels. It is no log-likelihood of anything, and is there for
  the comparison.
- *ELBO*, *sampling*, *importance*: of pixels binarised once; minus the ELBO, and minus log p(x|c) by k draws from the
  prior and from the recognition network. Both estimate one quantity, which is the lower of them or less.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.nn import pyro_method
from torch import Tensor
from torch.distributions import kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrovae as pv
from pyrovae.evaluation import log_marginal_by_sampling
from pyrovae.models import Model
from pyrovae.objectives import GSNN

HIDDEN, LATENT = (500, 500), 200
SETTINGS: dict[str, dict[str, Any]] = {
    "NN": {"epochs": 20, "lr": 1e-3},
    "CVAE": {"epochs": 25, "lr": 1e-3},
    "CVAE, hybrid": {"epochs": 25, "lr": 1e-3, "alpha": 0.9},
}
COLUMNS = ("tutorial", "ELBO", "sampling", "importance")
PYRO = {1: (100.4, 71.8), 2: (61.9, 51.0), 3: (25.4, 24.2)}  # NN and CVAE of the tutorial, the column "tutorial"


class Regression(Model):
    """p(x|c) without a latent."""

    def __init__(self, likelihood: pv.Conditional) -> None:
        super().__init__()
        self.likelihood = likelihood

    @pyro_method
    def model(self, x: Tensor | None = None, c: Tensor | None = None, *, n: int = 1) -> Tensor:
        """Independent pixels."""
        with pyro.plate("batch", n if x is None else len(x)):
            return pyro.sample("x", self.likelihood(c), obs=x)

    @pyro_method
    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """Nothing to infer."""

    def encode(self, x: Any, c: Any = None) -> Any:
        """There is no code."""
        raise NotImplementedError

    def decode(self, z: Any, c: Any = None) -> Any:
        """There is no code."""
        raise NotImplementedError


def given(quadrants: int) -> Tensor:
    """Which pixels are the context, shape ``(784,)``."""
    mask = torch.zeros(28, 28, dtype=torch.bool)
    mask[14:, :14] = True
    if quadrants == 2:
        mask[:, :14] = True
    if quadrants == 3:
        mask[:14] = True
    return mask.flatten()


def split(images: Any, quadrants: int) -> tuple[Tensor, Tensor]:
    """Pixels to predict, 8 bits, and the context in [0, 1]."""
    rows, mask = torch.tensor(images).flatten(1), given(quadrants)
    return rows[:, ~mask].contiguous(), rows[:, mask] / 255


def built(method: str, x: int, c: int) -> Model:
    """A model for so many pixels to predict and given."""
    net = functools.partial(pv.MLP, hidden=HIDDEN)
    if method == "NN":
        return Regression(pv.Bernoulli(x, context=c, net=net))
    return pv.VAE(
        prior=pv.Normal(LATENT, context=c, net=net),
        likelihood=pv.Bernoulli(x, context=[(LATENT,), (c,)], net=net),
        posterior=pv.Normal(LATENT, context=[(x,), (c,)], net=net),
    )


def trained(method: str, x: Tensor, c: Tensor, held: int, seed: int, **chosen: Any) -> tuple[Model, int]:
    """The model at its best epoch on the held-out rows, and that epoch."""
    torch.manual_seed(seed)
    model = built(method, x.shape[1], c.shape[1])
    estimator = TraceMeanField_ELBO(max_plate_nesting=1)  # the KL in closed form
    objective = pv.ELBO(pv.Warmup(over=0.2), estimator)
    if "alpha" in chosen:
        objective = chosen["alpha"] * objective + (1 - chosen["alpha"]) * GSNN()  # the hybrid, with a warm-up
    binary = pv.Binarize()(x[-held:], torch.Generator().manual_seed(1))
    stopping = pv.EarlyStopping(patience=chosen.get("patience", 4))
    pv.fit(
        model,
        x[:-held],
        c[:-held],
        objective=objective,
        optimizer=functools.partial(torch.optim.Adam, lr=chosen["lr"]),
        scheduler=CosineAnnealingLR,
        epochs=chosen["epochs"],
        batch_size=chosen.get("batch", 256),
        validation=(binary, c[-held:]),
        preprocess=pv.Binarize(),  # which leaves alone what is binary already
        callbacks=[stopping],
        seed=seed,
        precision="bf16",
    )
    return model, stopping.best_epoch


@torch.no_grad()
def tutorial(model: Any, grey: Tensor, c: Tensor) -> float:
    """Cross-entropy of grey pixels, and the KL in closed form; one draw of z a row."""
    torch.manual_seed(0)
    if not isinstance(model, pv.VAE):
        logits, rate = model.likelihood.params(c), torch.zeros(())
    else:
        q = model.posterior(grey, c)
        logits, rate = model.likelihood.params(q.rsample(), c), kl_divergence(q, model.prior(c)).mean()
    return (binary_cross_entropy_with_logits(logits, grey, reduction="none").sum(-1).mean() + rate).item()


def measured(model: Model, x: Tensor, c: Tensor, k: int, rows: int) -> dict[str, float]:
    """Nats per image; the two estimates by so many rows and draws."""
    model.eval()
    binary = pv.Binarize()(x, torch.Generator().manual_seed(2))
    found = {"tutorial": tutorial(model, x / 255, c), "ELBO": -pv.elbo_terms(model, binary, c).elbo.mean().item()}
    draws, every = (k, max(1, len(x) // rows)) if isinstance(model, pv.VAE) else (1, 1)
    estimates = {"sampling": log_marginal_by_sampling, "importance": pv.log_marginal}
    for name, estimate in estimates.items():
        log_p = estimate(model, binary[::every], c[::every], k=draws, precision="bf16")
        found |= {name: -log_p.mean, f"{name}, error of the mean": log_p.row_standard_error}
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """One row for each number of quadrants and method."""
    out = [f"| quadrants given | method | {' | '.join(COLUMNS)} | epoch | seconds |", "|---" * (len(COLUMNS) + 4) + "|"]
    for quadrants, (nn, cvae) in PYRO.items():
        out += [
            f"| {quadrants} | Pyro's tutorial, NN | {nn} | | | | | |",
            f"| {quadrants} | Pyro's tutorial, CVAE | {cvae} | | | | | |",
        ]
        for line in lines:
            if line["quadrants"] == quadrants:
                cells = " | ".join(f"{line[name]:.2f}" for name in COLUMNS)
                out.append(f"| {quadrants} | {line['method']} | {cells} | {line['epoch']} | {line['seconds']:.0f} |")
    return "\n".join(out)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--quadrants", nargs="+", type=int, default=[1, 2, 3], choices=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--k", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=2000, help="for the estimates of log p(x|c)")
    parser.add_argument("--tune", type=json.loads, help="settings to try, measured on held-out training images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    key = ("quadrants", "method", "seed", "tune")
    done = {json.dumps([line[name] for name in key]) for line in lines}
    data = pv.data.load("mnist")
    for quadrants in options.quadrants:
        x, c = split(data.train.x, quadrants)
        for method in options.methods:
            which = dict(zip(key, (quadrants, method, options.seed, options.tune), strict=True))
            if json.dumps(list(which.values())) in done:
                continue
            began = time.process_time()
            model, epoch = trained(method, x, c, 10_000, options.seed, **SETTINGS[method] | (options.tune or {}))
            seconds = time.process_time() - began
            rows = (x[-10_000:], c[-10_000:]) if options.tune is not None else split(data.test.x, quadrants)
            line = which | measured(model, *rows, options.k, options.rows) | {"epoch": epoch, "seconds": seconds}
            lines.append(line | {"seconds with measures": time.process_time() - began})
            with options.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(json.dumps(lines[-1]), flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
