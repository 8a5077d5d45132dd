"""Priors times posteriors on dynamically binarised MNIST, one budget: ``python tests/benchmarks/catalogue.py --out F``.

Every pair is trained from the same seed for the same number of passes over the same batches, with networks of one
size, and measured on the same binarisation of all test images. One JSON line for each finished run; finished runs are
skipped.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyrovae as pv
from pyrovae import data

LATENT, SHAPE = 40, (1, 28, 28)
NET = functools.partial(pv.GatedMLP, hidden=(300, 300))
PRIORS = {
    "standard": lambda q: pv.StandardNormal(LATENT),
    "mixture": lambda q: pv.Mixture(LATENT, components=300),
    "VampPrior": lambda q: pv.VampPrior(encoder(q), components=300, bounds=(0.0, 1.0)),
    "RealNVP": lambda q: pv.Flow(LATENT, transform=pv.RealNVP, layers=4),
}
POSTERIORS = {
    "diagonal": pv.Normal,
    "IAF": functools.partial(pv.Flow, transform=functools.partial(pv.IAF, hidden=(320,)), layers=2),
    "Sylvester": functools.partial(pv.Flow, transform=functools.partial(pv.Sylvester, columns=16), layers=4),
}


def encoder(q: pv.Conditional) -> pv.Conditional:
    """What the VampPrior mixes: the posterior, or, where that is a flow, a diagonal Gaussian with a network of its own.

    A flow's density at the code of another image would be needed for every pair of image and component: 40 passes one
    after the other for IAF, none at all for Sylvester, which has no inverse.
    """
    return q if isinstance(q, pv.Normal) else pv.Normal(LATENT, context=SHAPE, net=NET)


def train(prior: str, posterior: str, seed: int, epochs: int, k: int, rows: int) -> dict[str, Any]:
    """One run, from the seed to the figures."""
    source = data.load("mnist")
    torch.manual_seed(seed)
    q = POSTERIORS[posterior](LATENT, context=SHAPE, net=NET)
    vae = pv.VAE(PRIORS[prior](q), pv.Bernoulli(SHAPE, context=LATENT, net=NET), q)
    began = time.perf_counter()
    pv.fit(
        vae,
        source.train,
        objective=pv.ELBO(beta=pv.Warmup(over=0.5)),
        optimizer=lambda parameters: torch.optim.Adam(parameters, 2e-3, fused=True),
        scheduler=CosineAnnealingLR,
        epochs=epochs,
        batch_size=128,
        preprocess=pv.Binarize(),
        clip=100.0,  # far above an ordinary gradient: it is there for a flow's first steps
        seed=seed,
    )
    seconds = time.perf_counter() - began
    noise = torch.Generator().manual_seed(777)
    x = pv.Binarize()(torch.tensor(source.test.x[:rows]), noise)
    terms, marginal = pv.elbo_terms(vae, x), pv.log_marginal(vae, x, k=k)
    return {
        "nll": -marginal.mean,
        "nll_error": marginal.row_standard_error,
        "values": [round(v, 3) for v in marginal.values.tolist()],
        "negative_elbo": -terms.elbo.mean().item(),
        "rate": terms.kl.mean().item(),
        "active": pv.active_units(vae, x).count,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "seconds": seconds,
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Means over seeds; the difference from the first row is paired by test image."""
    head = ["prior", "posterior", "−log p(x)", "against the first row", "−ELBO", "rate", "active", "seconds"]
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    seeds = sorted({line["seed"] for line in lines})
    runs = {(line["prior"], line["posterior"], line["seed"]): line for line in lines}
    for prior in PRIORS:
        for posterior in POSTERIORS:
            found = [runs[key] for seed in seeds if (key := (prior, posterior, seed)) in runs]
            if not found:
                continue
            gains = [
                torch.tensor(a["values"]) - torch.tensor(b["values"])
                for a in found
                if (b := runs.get(("standard", "diagonal", a["seed"]))) is not None
            ]
            gain = torch.stack(gains).mean(0) if gains else torch.zeros(2)
            error = gain.std().item() / math.sqrt(len(gain))
            mean = {
                key: sum(run[key] for run in found) / len(found)
                for key, value in found[0].items()
                if isinstance(value, (int, float))
            }
            out.append(
                f"| {prior} | {posterior} | {mean['nll']:.2f} | {-gain.mean().item():+.2f} ± {error:.2f} | "
                f"{mean['negative_elbo']:.2f} | {mean['rate']:.2f} | {mean['active']:.0f} | {mean['seconds']:.0f} |"
            )
    return "\n".join(out)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--k", type=int, default=200, help="importance draws per test image")
    parser.add_argument("--rows", type=int, default=10_000, help="test images")
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=list(PRIORS))
    parser.add_argument("--posteriors", nargs="+", default=list(POSTERIORS), choices=list(POSTERIORS))
    chosen = parser.parse_args()
    budget = {"epochs": chosen.epochs, "k": chosen.k, "rows": chosen.rows}
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    lines = [line for line in lines if all(line[key] == value for key, value in budget.items())]
    done = {(line["prior"], line["posterior"], line["seed"]) for line in lines}
    for seed in range(chosen.seeds):
        for prior in chosen.priors:
            for posterior in chosen.posteriors:
                if (prior, posterior, seed) in done:
                    continue
                result = train(prior, posterior, seed, chosen.epochs, chosen.k, chosen.rows)
                lines.append({"prior": prior, "posterior": posterior, "seed": seed} | budget | result)
                with chosen.out.open("a") as file:
                    file.write(json.dumps(lines[-1]) + "\n")
                took = f"{result['nll']:.2f} in {result['seconds']:.0f} s"
                print(f"{prior}, {posterior}, seed {seed}: {took}", flush=True)
    print(table(lines))


if __name__ == "__main__":
    main()
