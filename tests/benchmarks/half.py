"""What training in bfloat16 costs in nats: the same VAE, seeds and batches in both precisions, on all test images.

    python tests/benchmarks/half.py [--epochs 20] [--seeds 2] [--out half.jsonl]

784-400-50 and back, dynamically binarised MNIST, compiled steps; prints -ELBO on the test images, binarised once, by
four draws in float32, for every seed and precision, and appends one line of JSON for each to --out.
"""

import argparse
import functools
import json
from pathlib import Path

import torch

import pyrovae as pv


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = pv.data.load("mnist")
    test = pv.Binarize()(torch.tensor(rows.test.x).flatten(1), torch.Generator().manual_seed(0))
    for seed in range(options.seeds):
        for precision in ("float32", "bf16"):
            line = {"seed": seed, "precision": precision} | train(rows.train.x, test, seed, precision, options.epochs)
            print(json.dumps(line), flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def train(x, test, seed, precision, epochs):
    net = functools.partial(pv.MLP, hidden=(400,), activation=torch.nn.Softplus)
    torch.manual_seed(seed)
    prior, likelihood = pv.StandardNormal(50), pv.Bernoulli(784, context=50, net=net)
    vae = pv.VAE(prior, likelihood, pv.Normal(50, context=784, net=net))
    history = pv.fit(
        vae,
        x.reshape(len(x), -1),
        preprocess=pv.Binarize(),
        epochs=epochs,
        seed=seed,
        compile="compiled",
        precision=precision,
    )
    terms = pv.elbo_terms(vae, test, k=4)
    return {"epochs": epochs, "test": -terms.elbo.mean().item(), "seconds": round(history["seconds"][-1], 1)}


if __name__ == "__main__":
    main()
