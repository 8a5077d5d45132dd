"""Pyro's example scripts ``vae.py`` and ``ss_vae_M2.py`` as they stand, stopped from outside between units.

What they import and this benchmark has no use for (visdom, torchvision, plots) is replaced by modules of a few lines.
The scripts keep everything of their own: loaders, grey values, probabilities instead of logits, Pyro's default Adam.
"""

import argparse
import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import torch

from contenders.rows import begin

M2 = {
    "num_epochs": 100_000,
    "aux_loss": True,
    "aux_loss_multiplier": 46,
    "enum_discrete": "parallel",
    "sup_num": 3000,
    "z_dim": 50,
    "hidden_layers": [500],
    "learning_rate": 0.00042,
    "beta_1": 0.95,
    "seed": 0,
    "logfile": None,
    "visualize": False,
    "cuda": False,
    "jit": False,
}


def vae(setup, link):
    """``vae.py``; a unit is an epoch. The batch size is ours, the script's own is 256."""
    script = _script(setup, "vae")
    loaders = script.setup_data_loaders

    class Gate:
        """The training loader; the script waits in it when an epoch is over."""

        def __init__(self, loader):
            self.loader, self.dataset = loader, loader.dataset

        def __len__(self):
            return len(self.loader)

        def __iter__(self):
            link.resume()
            yield from self.loader
            link.lap()
            link.pause()  # the test rows are no part of an epoch of training

    def gated(*args, **options):
        train, test = loaders(*args, **options | {"batch_size": setup.batch})
        return Gate(train), test

    script.setup_data_loaders = gated
    script.plot_llk = lambda *args: None
    options = {"num_epochs": 100_000, "test_frequency": 10**9, "learning_rate": 1e-3, "tsne_iter": -1}
    options |= {"cuda": False, "jit": setup.get("jit", False), "visdom_flag": False}
    script.main(argparse.Namespace(**options))


def m2(setup, link):
    """``ss_vae_M2.py`` with the options it documents; a unit is a batch, its share of labelled batches included."""
    script = _script(setup, "ss_vae_M2")
    run = script.run_inference_for_epoch

    class Counted:
        """The last loss of a batch."""

        def __init__(self, svi):
            self.svi = svi

        def step(self, *data):
            value = self.svi.step(*data)
            link.lap()
            return value

    def timed(loaders, losses, interval):
        link.resume()
        result = run(loaders, [*losses[:-1], Counted(losses[-1])], interval)
        link.pause()  # so is the accuracy
        return result

    script.run_inference_for_epoch = timed
    script.main(argparse.Namespace(**M2, batch_size=setup.batch))


def _script(setup, name):
    """The script as a module, ready to be called by its ``main``."""
    begin(setup)
    folder = Path(setup.examples) / "examples" / "vae"
    if not (folder / f"{name}.py").is_file():
        raise SystemExit(f"no examples/vae/{name}.py in the folder of --pyro-examples")
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    _stub("visdom", Visdom=None)
    transforms = _stub("torchvision.transforms")
    datasets = _stub("torchvision.datasets", MNIST=_mnist(setup))
    _stub("torchvision", datasets=datasets, transforms=transforms)
    sys.path.insert(0, str(folder))
    return importlib.import_module(name)


def _stub(name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def _mnist(setup):
    """What the scripts use of torchvision's data set. Their test rows, which nothing here times, are training rows."""

    class MNIST:
        mirrors: ClassVar[list[str]] = []

        def __init__(self, root, train=True, transform=None, target_transform=None, download=False):
            rows = setup.rows if train else 1000
            x, y = (np.load(Path(setup.data) / f"{part}.npy")[:rows] for part in ("grey", "labels"))
            self.data = torch.from_numpy(x).reshape(-1, 28, 28)
            self.targets = torch.from_numpy(y).long()

        def __len__(self):
            return len(self.data)

    return MNIST
