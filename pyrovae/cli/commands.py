"""The commands: read options, call the library, print what came out."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pyrovae._version import __version__
from pyrovae.errors import ConfigError, ResourceError

__all__ = ["app"]

app = typer.Typer(
    name="pyrovae",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:  # noqa: FBT001
    if value:
        print(f"pyrovae {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Variational autoencoders as Pyro programs. With --debug an error shows its traceback."""


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, as `pyrovae fit` leaves it.")]
DataArgument = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="Name of a data set, a file (npy, npz, csv, parquet, IDX), or a folder of images."
    ),
]
Out = Annotated[Path, typer.Option("--out", help="File to write.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seed = Annotated[int, typer.Option("--seed", help="Of the random numbers.")]
Draws = Annotated[int, typer.Option("--k", help="Importance draws per row for log p(x).")]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", help="Column of a table that is no feature; default as in training.")
]


def _option(name: str, text: str) -> Any:
    return typer.Option(name, help=text, show_default=False)


@app.command()
def fit(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Name of a data set, a file, or a folder of images.")
    ] = None,
    out: Annotated[Path | None, _option("--out", "Run directory; by default the first free runs/NAME.")] = None,
    config: Annotated[Path | None, _option("--config", "TOML file with any of these options as keys.")] = None,
    prior: Annotated[str | None, _option("--prior", "Such as mixture, 'vamp(components=500)'.")] = None,
    likelihood: Annotated[
        str | None, _option("--likelihood", "Such as normal, or columns for mixed tables; by default by the data.")
    ] = None,
    posterior: Annotated[str | None, _option("--posterior", "Such as laplace; default normal.")] = None,
    net: Annotated[
        str | None, _option("--net", "Network of both heads: gated-mlp (default), mlp, conv-net, res-net.")
    ] = None,
    objective: Annotated[str | None, _option("--objective", "Such as 'iwae(k=5)', 'elbo(beta=0) + 10 * mmd'.")] = None,
    preprocess: Annotated[
        str | None, _option("--preprocess", "Such as binarize, rescale; by default by the data.")
    ] = None,
    latent: Annotated[
        int | None, _option("--latent", "Latent dimensions; default 40, or fewer for small rows.")
    ] = None,
    hidden: Annotated[str | None, _option("--hidden", "Widths of the hidden layers, such as 300,300.")] = None,
    epochs: Annotated[int | None, _option("--epochs", "Passes over the data; by default by its size.")] = None,
    batch: Annotated[int | None, _option("--batch", "Rows in a batch; default 128.")] = None,
    lr: Annotated[
        float | None, _option("--lr", "Learning rate at the start, decaying as a cosine; default 3e-3.")
    ] = None,
    clip: Annotated[float | None, _option("--clip", "Largest gradient norm.")] = None,
    patience: Annotated[
        int | None, _option("--patience", "Hold out a tenth; stop after so many epochs without gain.")
    ] = None,
    seed: Annotated[int | None, _option("--seed", "Of initial weights, order and noise; default 0.")] = None,
    device: Annotated[str | None, _option("--device", "Such as cuda; default cpu.")] = None,
    compile: Annotated[
        str | None, _option("--compile", "auto, compiled, replay or eager: how a step is run; default auto.")
    ] = None,
    precision: Annotated[
        str | None, _option("--precision", "float32, or bf16 for matrix products in bfloat16.")
    ] = None,
    k: Annotated[int | None, _option("--k", "Importance draws per test row; default 500.")] = None,
    label_column: Annotated[str | None, _option("--label-column", "Column of a table that is no feature.")] = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Train a model, measure it on test rows, write a run directory."""
    from pyrovae.cli import training

    given = {
        name: value for name, value in locals().items() if name not in ("config", "training") and value is not None
    }
    training.run(training.settings(given, config))


@app.command()
def evaluate(
    run: RunArgument,
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="By default the test rows of the run's data.")
    ] = None,
    k: Draws = 500,
    seed: Seed = 0,
    label_column: LabelColumn = None,
) -> None:
    """Print ELBO, reconstruction, KL, -log p(x), bits per dimension and active units."""
    from pyrovae.cli import using

    _positive("k", k)
    _positive("seed", seed, 0)
    using.evaluate(run, data, k=k, seed=seed, label_column=label_column)


@app.command()
def sample(
    run: RunArgument,
    n: Annotated[int, typer.Option("--n", help="Rows to draw.")] = 64,
    out: Out = Path("samples.npy"),
    seed: Seed = 0,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Draw rows from p(x), to .npy, .npz, .csv or .png (images, as the likelihood's mean)."""
    from pyrovae.cli import using

    _positive("n", n)
    _positive("seed", seed, 0)
    using.sample(run, n, _free(out, (".npy", ".npz", ".csv", ".png"), overwrite=overwrite), seed)


@app.command()
def encode(
    run: RunArgument,
    data: DataArgument,
    out: Out = Path("codes.npz"),
    label_column: LabelColumn = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Write mean and standard deviation of q(z|x) for every row, to .npz or .csv."""
    from pyrovae.cli import using

    using.encode(run, data, _free(out, (".npz", ".csv"), overwrite=overwrite), label_column)


@app.command()
def score(
    run: RunArgument,
    data: DataArgument,
    out: Out = Path("scores.csv"),
    k: Draws = 500,
    seed: Seed = 0,
    label_column: LabelColumn = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Write ELBO, reconstruction, KL and log p(x) with its standard error for every row, to .csv or .npz."""
    from pyrovae.cli import using

    _positive("k", k)
    _positive("seed", seed, 0)
    using.score(run, data, _free(out, (".csv", ".npz"), overwrite=overwrite), k=k, seed=seed, label_column=label_column)


@app.command()
def impute(
    run: RunArgument,
    data: DataArgument,
    out: Out = Path("filled.csv"),
    draws: Annotated[int, typer.Option("--draws", help="Completions of every row, for .npz.")] = 10,
    k: Draws = 1000,
    seed: Seed = 0,
    label_column: LabelColumn = None,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Fill missing cells with their best guess, to .csv; with several completions and their spread, to .npz."""
    from pyrovae.cli import using

    for name, value in {"draws": draws, "k": k}.items():
        _positive(name, value)
    _positive("seed", seed, 0)
    path = _free(out, (".csv", ".npz"), overwrite=overwrite)
    using.impute(run, data, path, draws=draws, k=k, seed=seed, label_column=label_column)


@app.command()
def label(
    data: DataArgument,
    label_column: Annotated[
        str | None, _option("--label-column", "Column of a table that holds the labels, empty where one is missing.")
    ] = None,
    out: Out = Path("labelled.csv"),
    model: Annotated[
        Path | None, _option("--model", "A labeller written before: label by it, without training.")
    ] = None,
    save: Annotated[
        Path | None, _option("--save", "Directory for the labeller; by default the first free runs/NAME-labels.")
    ] = None,
    method: Annotated[
        str, typer.Option("--method", help="auto for the best of all, or names with commas between them.")
    ] = "auto",
    coverage: Annotated[
        float, typer.Option("--coverage", help="Share of prediction sets with the right class.")
    ] = 0.95,
    error_rate: Annotated[float, typer.Option("--error-rate", help="Largest error of labels called safe.")] = 0.05,
    minutes: Annotated[float | None, _option("--minutes", "For the comparison of methods; default no limit.")] = None,
    seed: Seed = 0,
    *,
    overwrite: Overwrite = False,
) -> None:
    """Label all rows of a table from the few that have a label, with calibrated probabilities, to .csv or .parquet."""
    from pyrovae.cli import labels

    _positive("seed", seed, 0)
    if minutes is not None and not minutes > 0:
        raise ConfigError(f"--minutes: expected a positive number, received {minutes:g}")
    path = _free(out, (".csv", ".parquet"), overwrite=overwrite)
    names: str | list[str] = method if method == "auto" else [name.strip() for name in method.split(",")]
    promise = {"coverage": coverage, "error_rate": error_rate}
    labels.label(data, label_column, model, save, path, method=names, minutes=minutes, seed=seed, **promise)


@app.command()
def parts() -> None:
    """List every part with its formula."""
    from pyrovae.config import constructor, first_sentence, hyphenated
    from pyrovae.config import parts as all_parts

    table = all_parts()
    of_nets, families = {role: table.pop(role) for role in ("activation", "norm")}, table.pop("base")
    alone = {r: {n: p for n, p in table[r].items() if n not in families} for r in ("prior", "likelihood")}
    table = {"prior": alone["prior"], "family": families, "likelihood": alone["likelihood"]} | {
        role: named for role, named in table.items() if role not in ("prior", "posterior", "likelihood")
    }
    inner = {
        "family": "--likelihood, --posterior or, learned, --prior",
        "transform": "transform, of a flow",
        "scale": "scale, of a family",
        "schedule": "beta, of elbo, over training",
    }
    for role, named in table.items():
        print(inner.get(role, f"--{role}"))
        for name, part in named.items():
            print(f"  {hyphenated(name)}({constructor(part)})\n      {first_sentence(part)}")
        print()
    for role, named in of_nets.items():
        print(f"{role}, of a net\n  {', '.join(map(hyphenated, named))}")


def _positive(name: str, value: int, low: int = 1) -> None:
    if value < low:
        raise ConfigError(f"--{name}: expected an int from {low}, received {value}")


def _free(path: Path, endings: tuple[str, ...], *, overwrite: bool) -> Path:
    """The file to write, found fit for it before anything is computed."""
    if path.suffix not in endings:
        raise ConfigError(f"--out: expected a name that ends in {', '.join(endings)}, received {path.name!r}")
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a file in it, --out {path / 'NAME'}{endings[0]}")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: exists; choose another --out or add --overwrite")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no directory {path.parent}; make it or choose another --out")
    if not os.access(path.parent, os.W_OK):
        raise ResourceError(f"{path}: {path.parent} cannot be written; choose another --out")
    return path


compare = typer.Typer(no_args_is_help=True, help="Compare methods, or ways to ask for labels, where labels are known.")
app.add_typer(compare, name="compare")

Labels = Annotated[str | None, _option("--labels", "Numbers of labels with commas between them, such as 20,50,100.")]
Seeds = Annotated[int, typer.Option("--seeds", help="Draws of labels, with the seeds 0, 1, ...")]
Steps = Annotated[int | None, _option("--steps", "Updates of a training; by default by the number of rows.")]
Known = Annotated[str | None, _option("--label-column", "Column of a table that holds the labels.")]
Lines = Annotated[Path, typer.Option("--out", help="JSON lines of finished runs, gone on with if there; and a .png.")]


@compare.command("labels")
def compare_labels(
    data: DataArgument,
    labels: Labels = None,
    methods: Annotated[
        str, typer.Option("--methods", help="Names with commas between them; propagation is one more.")
    ] = "supervised,gradient-boosting,self-training,label-spreading,m2,smooth",
    seeds: Seeds = 5,
    steps: Steps = None,
    label_column: Known = None,
    out: Lines = Path("labels.jsonl"),
) -> None:
    """Error on test rows by method and number of labels, all other labels hidden."""
    from pyrovae.cli import compare

    chosen = {"seeds": seeds, "steps": steps, "label_column": label_column}
    path = _free(out, (".jsonl",), overwrite=True)
    compare.labels(data, compare.numbers("--labels", labels), compare.listed(methods), path, **chosen)


@compare.command("asking")
def compare_asking(
    data: DataArgument,
    labels: Labels = None,
    method: Annotated[str, typer.Option("--method", help="What is trained in every round.")] = "supervised",
    seeds: Seeds = 5,
    steps: Steps = None,
    batch: Annotated[
        int | None, _option("--batch", "Labels asked for at once, at most; by default up to the next number.")
    ] = None,
    label_column: Known = None,
    out: Lines = Path("asking.jsonl"),
) -> None:
    """Error on test rows by the number of labels asked for: the rows that ask_next names, or any."""
    from pyrovae.cli import compare

    chosen = {"seeds": seeds, "steps": steps, "batch": batch, "label_column": label_column}
    path = _free(out, (".jsonl",), overwrite=True)
    compare.asking(data, compare.numbers("--labels", labels), method.strip(), path, **chosen)
