"""What is compared with what."""

from dataclasses import dataclass, field
from typing import Any

LEVELS = ("compiled", "replay", "eager")
PIXELS = {"columns": 784, "hidden": 400, "latent": 50}


@dataclass(frozen=True)
class Contender:
    """Who runs, and in what environment.

    Attributes:
        name: in the tables.
        factory: module and function in ``contenders``.
        options: more entries of its setup.
        peer: name of the environment it needs, None for this one.
        fresh: a new process every time; its time is the one from the process's start to the end of its first unit.
        cache: of compiled code on disk, ``"empty"`` or ``"warm"``, for fresh processes.
        code: Python code to run instead of a factory.
        batches: batch sizes it takes part at; None for all of the job.
    """

    name: str
    factory: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    peer: str | None = None
    fresh: bool = False
    cache: str | None = None
    code: str | None = None
    batches: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Job:
    """One table; the first contender is the reference of its ratios.

    Attributes:
        title: above the table.
        contenders: in the order of the table.
        shapes: setup entries everybody shares.
        unit: what one time is of.
        batch: its only batch size; None takes those of the command line.
        blocks: at most so many, where a unit is long.
        memory: whether to measure the extra memory of one unit.
        tolerance: relative, within which the losses after one update from the same weights have to agree.
    """

    title: str
    contenders: tuple[Contender, ...]
    shapes: dict[str, Any]
    unit: str = "step"
    batch: int | None = None
    blocks: int | None = None
    memory: bool = False
    tolerance: float | None = None


def ours(factory: str, level: str, precision: str = "float32", note: str = "", **options: Any) -> Contender:
    """pyrovae at a level of compilation."""
    name = f"pyrovae {level}" + (", bf16" if precision == "bf16" else "") + (f", {note}" if note else "")
    batches = options.pop("batches", None)
    return Contender(name, f"ours.{factory}", {"level": level, "precision": precision} | options, batches=batches)


def _vae(**options: Any) -> tuple[Contender, ...]:
    return (
        Contender("by hand, fused Adam", "torch_hand.vae"),
        Contender("by hand, default Adam", "torch_hand.vae", {"fused": False}),
        Contender("SVI.step", "pyro_svi.vae"),
        Contender("SVI.step, JitTrace_ELBO", "pyro_svi.vae", {"jit": True}),
        *(ours("vae", level, **options) for level in LEVELS),
        ours("vae", "compiled", "bf16", **options),
    )


_ENUMERATED = {"columns": 784, "hidden": 500, "latent": 50}
_TINY = {"columns": 8, "hidden": 8, "latent": 2}
_FEW = {"limit": 2048}  # rows, where reading all of them would be most of the time


def _evaluation(rows: int, blocks: int, *others: Contender) -> Job:
    return Job(
        f"log p(x) of {rows:,} rows, 5,000 draws each",
        (
            Contender("matrix products alone", "torch_hand.products"),
            Contender("pyrovae.log_marginal", "ours.evaluate", {"precision": "float32"}),
            *others,
        ),
        PIXELS | {"limit": rows, "k": 5000, "chunk": 2500, "evaluated": rows},
        unit="evaluation",
        batch=rows,
        blocks=blocks,
    )


JOBS: dict[str, Job] = {
    "vae": Job(
        "One step of a VAE, 784-400-50 and back",
        (*_vae(), *(ours("vae", level, note="a user's program", program="own") for level in ("compiled", "eager"))),
        PIXELS,
        tolerance=1e-2,  # the KL in closed form by hand, by draws in the others
    ),
    "m2": Job(
        "One unsupervised step of M2, ten enumerated classes, 784-500-50",
        (
            Contender("by hand, concatenated", "torch_hand.m2", {"split": False}),
            Contender("by hand, split first layers", "torch_hand.m2", {"split": True}),
            Contender("SVI.step, TraceEnum_ELBO", "pyro_svi.m2", {"split": False}),
            Contender("SVI.step, TraceEnum_ELBO, split", "pyro_svi.m2", {"split": True}),
            ours("m2", "compiled", note="concatenated", split=False),
            ours("m2", "compiled", note="SplitLinear", split=True),
            ours("m2", "replay", note="SplitLinear", split=True),
            Contender("Pyro's example ss_vae_M2.py", "pyro_examples.m2", peer="examples"),
        ),
        _ENUMERATED,
        batch=200,
        tolerance=1e-3,
    ),
    "iwae": Job(
        "One step of IWAE, k = 50",
        (
            Contender("by hand", "torch_hand.iwae"),
            Contender("RenyiELBO, vectorized", "pyro_svi.iwae"),
            *(ours("iwae", level) for level in LEVELS),
        ),
        PIXELS | {"k": 50},
        batch=128,
        memory=True,
        tolerance=1e-3,
    ),
    "overhead": Job("What a step costs without arithmetic: 8 columns, 8-2 and back", _vae(), _TINY, batch=8),
    "epoch": Job(
        "One epoch of a VAE, 784-400-50 and back",
        (
            Contender("by hand, fused Adam", "torch_hand.epoch"),
            Contender("SVI.step, rows indexed as a tensor", "pyro_svi.epoch"),
            Contender("Pyro's example vae.py", "pyro_examples.vae", peer="examples"),
            Contender("Pyro's example vae.py --jit", "pyro_examples.vae", {"jit": True}, peer="examples"),
            Contender("pythae", "pythae_epoch.epoch", peer="pythae"),
            Contender("NumPyro, epoch in one compiled loop", "numpyro_epoch.epoch", peer="numpyro"),
            *(ours("epoch", level) for level in LEVELS),
            ours("epoch", "compiled", "bf16"),
        ),
        PIXELS,
        unit="epoch",
        blocks=5,
    ),
    "data": Job(
        "Gathering a batch",
        (
            ours("vae", "compiled"),
            Contender("gather binary rows kept in 8 bits", "ours.data", {"stored": "binary", "binarize": False}),
            Contender("gather float32", "ours.data", {"stored": "float32", "binarize": False}),
            Contender("gather grey rows in 8 bits, Binarize", "ours.data", {"stored": "grey", "binarize": True}),
        ),
        PIXELS,
        unit="batch",
        batch=128,
    ),
    "evaluate": _evaluation(
        1000,
        3,
        Contender("pyrovae.log_marginal, bf16", "ours.evaluate", {"precision": "bf16"}),
        Contender("Pyro's vectorized_importance_weights", "pyro_svi.evaluate"),
    ),
    "evaluate-all": _evaluation(10_000, 1),  # minutes each
    "start": Job(
        "From nothing to the end of the first step of a VAE",
        (
            Contender("by hand", "torch_hand.vae", fresh=True),
            Contender("SVI.step", "pyro_svi.vae", fresh=True),
            *(
                Contender(f"pyrovae {level}", "ours.vae", {"level": level, "precision": "float32"}, fresh=True)
                for level in ("eager", "replay")
            ),
            *(
                Contender(
                    f"pyrovae compiled, {cache} cache",
                    "ours.vae",
                    {"level": "compiled", "precision": "float32"},
                    fresh=True,
                    cache=cache,
                )
                for cache in ("warm", "empty")
            ),
        ),
        PIXELS | _FEW,
        unit="start",
        batch=128,
        blocks=5,
    ),
    "import": Job(
        "Importing",
        (
            Contender("torch, pyro", code="import torch, pyro", fresh=True),
            Contender("torch, pyro, pyrovae", code="import torch, pyro, pyrovae", fresh=True),
        ),
        {},
        unit="process",
        batch=1,
        blocks=10,
    ),
}
