"""One training step, three ways, in one process and alternately: by hand, by ``pyrovae.fit``'s loop, by ``SVI.step``.

    python tests/benchmarks/step.py [--batch 128] [--blocks 30] [--out results.jsonl]

The network is 784-400-50 with ReLU on random binary rows; times are medians over blocks of ten steps, ratios are taken
block by block against the hand-written loop. One line of JSON per contender is appended to --out.
"""

import argparse
import itertools
import json
import statistics
import time

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyrovae as pv

COLUMNS, LATENT, HIDDEN = 784, 50, 400


def new_vae():
    torch.manual_seed(0)
    q = pv.Normal(LATENT, context=COLUMNS)
    return pv.VAE(pv.StandardNormal(LATENT), pv.Bernoulli(COLUMNS, context=LATENT), q)


def by_hand(x):
    """The loop everybody writes: no Pyro, a fused optimizer."""
    encoder = nn.Sequential(nn.Linear(COLUMNS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, COLUMNS))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    while True:
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc**2 + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        loss = (binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") + kl) / len(x)
        adam.zero_grad()
        loss.backward()
        adam.step()
        yield


def by_fit(x):
    """The loop of ``fit``, gradient norm, guard and gathering included."""

    class Pause(pv.Callback):
        def on_step(self, state):
            clock.append(time.perf_counter())

    clock = []
    vae = new_vae()
    while True:
        clock.clear()
        pv.fit(vae, x.repeat(11, 1), epochs=1, batch_size=len(x), callbacks=[Pause()], progress=False)
        for before, after in itertools.pairwise(clock):
            yield after - before


def by_svi(x):
    """As Pyro's tutorials write it."""
    vae = new_vae()
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    while True:
        svi.step(x)
        yield


def block(steps, size=10):
    """Seconds per step over one block; a contender that times itself says how long each took."""
    start = time.perf_counter()
    told = [next(steps) for _ in range(size)]
    return statistics.mean(told) if told[0] is not None else (time.perf_counter() - start) / size


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=128)
    options.add_argument("--blocks", type=int, default=30)
    options.add_argument("--out")
    options = options.parse_args()
    x = (torch.rand(options.batch, COLUMNS) > 0.5).float()
    contenders = {"by hand": by_hand(x), "pyrovae.fit": by_fit(x), "SVI.step": by_svi(x)}
    times = {name: [] for name in contenders}
    for number in range(options.blocks + 2):
        for name, steps in contenders.items():
            seconds = block(steps)
            if number >= 2:
                times[name].append(seconds)
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["by hand"], strict=True))
        row = {"batch": options.batch, "step": name, "ms": 1e3 * statistics.median(seconds), "ratio": ratio}
        print(f"{name:12} {row['ms']:7.2f} ms   {ratio:5.2f} x by hand")
        if options.out:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"torch": torch.__version__, "threads": torch.get_num_threads()}) + "\n")


if __name__ == "__main__":
    main()
