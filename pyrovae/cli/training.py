"""``pyrovae fit``: from options to a run directory, in the order in which mistakes are cheapest to find."""

import functools
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyrovae import data as datasets
from pyrovae import recipes, runs
from pyrovae.cli import pictures
from pyrovae.columns import Columns
from pyrovae.config import constructor, instance, part, read_toml
from pyrovae.data.gate import Schema
from pyrovae.data.preprocess import Binarize, Identity, Preprocess, Rescale, Standardize, Threshold
from pyrovae.data.rows import generator
from pyrovae.distributions.masked import OrMissing
from pyrovae.errors import ConfigError, DataError, PyrovaeError
from pyrovae.evaluation import active_units, elbo_terms, log_marginal
from pyrovae.fit import Callback, EarlyStopping, fit
from pyrovae.graphs import LEVELS, PRECISIONS
from pyrovae.models import Model
from pyrovae.nn import dims
from pyrovae.priors import ExemplarPrior
from pyrovae.spec import describe

__all__ = ["Settings", "check_rows", "in_columns", "measure", "run", "settings", "test_rows", "texts_of"]

_TEST_NOISE = 777  # binarisation of test rows: once, the same for every model
_ROWS_SEEN = 6_000_000
_ROWS_LOOKED_AT = 10_000  # of training rows to choose by, of test rows to measure on: a huge file stays on disk


@dataclass(frozen=True)
class Settings:
    """Options of ``pyrovae fit``; None is decided by the data."""

    data: str = ""
    out: Path | None = None
    prior: Any = "standard-normal"
    likelihood: Any = None
    posterior: Any = "normal"
    net: Any = "gated-mlp"
    objective: Any = "elbo(beta=warmup(over=0.5))"
    preprocess: Any = None
    latent: int | None = None
    hidden: Any = None
    epochs: int | None = None
    batch: int = 128
    lr: float = 3e-3
    clip: float | None = None
    patience: int | None = None
    seed: int = 0
    device: str = "cpu"
    compile: str = "auto"
    precision: str = "float32"
    k: int = 500
    label_column: str | None = None
    overwrite: bool = False


def settings(given: Mapping[str, Any], config: Path | None) -> Settings:
    """Defaults, over them the file, over it what the command line says; checked before any data is read.

    Raises:
        ConfigError: for an unknown key or a value out of range.
    """
    known = tuple(f.name for f in fields(Settings))
    stored = {} if config is None else {k: v for k, v in read_toml(config, known).items()}
    chosen = Settings(**{**stored, **{k: v for k, v in given.items() if k != "overwrite" or v}})
    if not chosen.data:
        raise ConfigError("DATA: expected the name of a data set or a file, received none; try pyrovae fit digits")
    for name in ("data", "device", "label_column"):
        _check_text(name, getattr(chosen, name))
    if not isinstance(chosen.overwrite, bool):
        raise ConfigError(f"--overwrite: expected true or false, received {chosen.overwrite!r}")
    _check_text("out", str(chosen.out) if isinstance(chosen.out, Path) else chosen.out)
    chosen = replace(chosen, out=None if chosen.out is None else Path(chosen.out))
    for name in ("epochs", "batch", "latent", "k", "patience"):
        _check(name, getattr(chosen, name), int, 1)
    _check("seed", chosen.seed, int, 0)
    for name in ("lr", "clip"):
        _check(name, getattr(chosen, name), (int, float), sys.float_info.min)
    for name, known in (("compile", LEVELS), ("precision", PRECISIONS)):
        if getattr(chosen, name) not in known:
            raise ConfigError(f"--{name}: expected one of {', '.join(known)}, received {getattr(chosen, name)!r}")
    _check_device(chosen.device)
    return chosen


def run(chosen: Settings) -> None:
    """Train, measure, draw, write.

    Raises:
        PyrovaeError: of the kind its exit code says.
    """
    net = _net(chosen)
    with torch.random.fork_rng():
        instance(chosen.objective, "objective", shape=1, rows=1)  # what is wrong with it is said before data are read
    prior, posterior = part(chosen.prior, "prior"), part(chosen.posterior, "posterior")
    likelihood = None if chosen.likelihood is None else part(chosen.likelihood, "likelihood")
    step = None if chosen.preprocess is None else instance(chosen.preprocess, "preprocess")
    if getattr(likelihood, "func", likelihood) is Columns and not isinstance(step, Identity | None):
        raise ConfigError("--preprocess: columns bring their own units; leave it out")
    with runs.claimed(_directory(chosen), overwrite=chosen.overwrite) as directory:
        source = datasets.load(
            chosen.data, label_column=chosen.label_column, seed=chosen.seed, texts=_texts(likelihood)
        )
        data = runs.fingerprint((source.train.x, source.test.x))
        likelihood, source = _by_columns(likelihood, source)
        train = source.train
        datasets.check_cells(
            train.x, source=train.source, columns=train.columns, rows=train.rows, missing=datasets.Missing.CELLS
        )
        step = (_preprocess(source, likelihood) if step is None else step).fit(source.train.x)
        seen = _observed(step(_tensor(source.train.x[:_ROWS_LOOKED_AT]), generator(chosen.seed, 1)))
        likelihood = part(_likelihood(step, seen), "likelihood") if likelihood is None else likelihood
        latent = chosen.latent or _latent(source.train.x.shape[1:])
        with torch.random.fork_rng(), _refused():
            torch.manual_seed(chosen.seed)
            model = recipes.vae(
                source.train.x.shape[1:],
                latent=latent,
                prior=prior,
                likelihood=likelihood,
                posterior=posterior,
                net=net,
                exemplars=_exemplars(prior, step, source.train.x, chosen.seed),
                missing=any(_incomplete(table) for table in (source.train, source.test)),
            )
            objective = instance(chosen.objective, "objective", shape=latent, rows=len(source.train))
        check_rows(model, step, source.test)
        _train(chosen, model, objective, source, step, directory, data)


def check_rows(model: Model, step: Preprocess, table: datasets.Table) -> None:
    """Every cell is a number and, once preprocessed, one that the likelihood can score.

    Raises:
        DataError: naming the first cell that is not.
    """
    noise, support = generator(_TEST_NOISE), model.decode(model.get_submodule("prior")().sample()[None]).support
    skips = isinstance(support, OrMissing)
    datasets.check_cells(
        table.x,
        support.base if skips else support,
        source=table.source,
        columns=table.columns,
        rows=table.rows,
        transform=lambda rows: step(rows, noise),
        missing=datasets.Missing.COLUMNS if skips else datasets.Missing.REFUSED,
        advice="train on a table with empty cells or with --likelihood columns, or fill the cells",
    )


def in_columns(columns: Columns, table: datasets.Table) -> datasets.Table:
    """A table as a likelihood of its own for every column wants it: its columns alone, with the model's own codes."""
    names = tuple(column.name for column in columns.columns)
    if table.x.ndim != 2 or (table.columns is None and table.x.shape[1] != len(names)):
        raise DataError(f"{table.source}: rows of shape {table.x.shape[1:]}: expected ({len(names)},) as in training")
    frame = _frame(table, names)
    for column in columns.columns:  # truth values, which are texts in a file
        if column.categories is not None and column.name in (table.texts or {}):
            known = {str(c): c for c in column.categories}
            frame[column.name] = [known.get(text, text) for text in frame[column.name]]
    return replace(table, x=columns.to_array(frame, source=table.source), columns=names, texts=None)


def texts_of(columns: Columns) -> list[str]:
    """The columns whose classes have names: cells of theirs are texts, though they may look like numbers."""
    return [c.name for c in columns.columns if c.categories is not None and isinstance(c.categories[0], str)]


def _train(
    chosen: Settings,
    model: Model,
    objective: Callable[..., Tensor],
    source: datasets.DataSet,
    step: Preprocess,
    directory: Path,
    data: str,
) -> None:
    epochs = chosen.epochs or min(300, max(20, round(_ROWS_SEEN / len(source.train))))
    rows, held_out = (source.train, None) if chosen.patience is None else datasets.split(source.train, 0.1, chosen.seed)
    _announce(chosen, model, source, step, epochs)
    began = time.perf_counter()
    details: dict[str, Any] = {
        "schema": Schema.of(source.train).to_dict(),
        "settings": _plain(chosen),
        "data": data,
    }
    try:
        history = fit(
            model,
            rows,
            objective=objective,
            optimizer=lambda parameters: torch.optim.Adam(parameters, chosen.lr, fused=chosen.device != "mps"),
            scheduler=CosineAnnealingLR,
            epochs=epochs,
            batch_size=chosen.batch,
            validation=held_out,
            preprocess=step,
            clip=chosen.clip,
            callbacks=_callbacks(chosen),
            seed=chosen.seed,
            device=chosen.device,
            compile=chosen.compile,
            precision=chosen.precision,
            directory=directory,
        )
    except BaseException:
        if _reseal(directory, details):
            print(f"stopped      {directory} holds the weights of the last good step")
            sys.stdout.flush()
        raise
    took = _clock(time.perf_counter() - began)
    print(f"trained      {_count(len(history), 'epoch')} in {took}, loss {history['loss'][-1]:.2f}")
    if history.stopped:
        print(f"stopped      {history.stopped}")
    x_test = test_rows(step, source.test.x[:_ROWS_LOOKED_AT])
    results = measure(model, x_test, k=chosen.k)
    pictures.draw(directory, model, history, x_test, source.test)
    _reseal(directory, details | {"results": results})
    print(f"written to   {directory}")


def measure(model: nn.Module, x: Tensor, *, k: int, seed: int = 0) -> dict[str, float]:
    """Evaluate, print, and give back the numbers."""
    began = time.perf_counter()
    terms, marginal, units = (
        elbo_terms(model, x, seed=seed),
        log_marginal(model, x, k=k, seed=seed),
        active_units(model, x),
    )
    print(
        f"test rows    {len(x):,}\n"
        f"-ELBO        {-terms.elbo.mean():.2f} nats = {-terms.reconstruction.mean():.2f} distortion "
        f"+ {terms.kl.mean():.2f} rate\n"
        f"-log p(x)    {-marginal.mean:.2f} nats, {marginal.bits_per_dim:.4f} bits per dimension; standard error "
        f"{marginal.standard_error:.2g} from k = {k} draws, {marginal.row_standard_error:.2g} from the rows\n"
        f"active       {units.count} of {units.variances.numel()} latent dimensions\n"
        f"measured in  {_clock(time.perf_counter() - began)}"
    )
    results = {
        "rows": len(x),
        "elbo": terms.elbo.mean().item(),
        "reconstruction": terms.reconstruction.mean().item(),
        "kl": terms.kl.mean().item(),
        "log_prob": marginal.mean,
        "log_prob_standard_error": marginal.standard_error,
        "log_prob_row_standard_error": marginal.row_standard_error,
        "bits_per_dim": marginal.bits_per_dim,
        "k": k,
        "active_units": units.count,
    }
    return {name: value for name, value in results.items() if math.isfinite(value)}  # one row has no spread


def test_rows(step: Preprocess, x: np.ndarray) -> Tensor:
    """Rows as the model sees them, with the one fixed draw that every evaluation shares."""
    return step(_tensor(x), generator(_TEST_NOISE))


def _check(name: str, value: Any, kind: Any, low: float) -> None:
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and value >= low
    if value is not None and not fits:
        expected = f"an int from {low}" if kind is int else "a positive number"
        raise ConfigError(f"--{name}: expected {expected}, received {value!r}")


def _check_text(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise ConfigError(f"--{name.replace('_', '-')}: expected text, received {value!r}")


def _check_device(name: str) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r} is not available here; try cpu") from error


def _net(chosen: Settings) -> Callable[..., nn.Module]:
    net = part(chosen.net, "net")
    if chosen.hidden is None:
        return net
    try:
        widths = [int(w) for w in (chosen.hidden.split(",") if isinstance(chosen.hidden, str) else chosen.hidden)]
    except (TypeError, ValueError):
        widths = []
    if not widths or min(widths) < 1:
        raise ConfigError(f"--hidden: expected widths such as 300,300, received {chosen.hidden!r}")
    name = getattr(net, "__name__", None)
    if name is None:
        raise ConfigError("--hidden: --net has arguments of its own, so give the widths there: 'mlp(hidden=[300,300])'")
    if "hidden" not in inspect.signature(net).parameters:
        raise ConfigError(f"--hidden: {name} has no hidden layers of given widths; it takes {constructor(net)}")
    return part({"type": name, "hidden": widths}, "net")


def _directory(chosen: Settings) -> Path:
    if chosen.out is not None:
        return Path(chosen.out)
    return runs.free(Path(chosen.data).name.split(".")[0] or "run")


def _preprocess(source: datasets.DataSet, likelihood: Callable[..., Any] | None) -> Preprocess:
    """A named data set knows its step, unless its bits are not what the likelihood wants; a file's follows from it."""
    if getattr(likelihood, "func", likelihood) is Columns:
        return Identity()  # each column brings its units
    support = None if likelihood is None else _support(likelihood, source.train.x.shape[1:])
    if source.preprocess != "Identity" and not (
        source.preprocess == "Binarize" and support not in (None, constraints.boolean)
    ):
        return instance(source.preprocess, "preprocess")
    x = _observed(_tensor(source.train.x[:_ROWS_LOOKED_AT]))
    if support is not None and support is not constraints.real and bool(support.check(x).all()):
        return Identity()
    if x.dtype == torch.uint8 and x.max() > 1:
        return Rescale()
    inside = bool(x.min() >= 0) and bool(x.max() <= 1)
    return Identity() if inside or support not in (None, constraints.real) else Standardize()


def _support(likelihood: Callable[..., Any], shape: tuple[int, ...]) -> constraints.Constraint:
    """Of one element, or of the event where elements have none: the head is built without context to be asked."""
    with torch.random.fork_rng(), _refused():
        support = recipes.complete(likelihood, shape=shape)().support
    return getattr(support, "base_constraint", support)


@contextmanager
def _refused() -> Iterator[None]:
    """Arguments that a part refuses in PyTorch's or Python's words."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, PyrovaeError) else ConfigError(f"the parts do not fit: {error}") from error


def _likelihood(step: Preprocess, seen: Tensor) -> str:
    if isinstance(step, Standardize):
        return "normal(scale=learned-scale)"
    if isinstance(step, (Binarize, Threshold)) or bool(((seen == 0) | (seen == 1)).all()):
        return "bernoulli"
    if seen.min() >= 0 and seen.max() <= 1:
        return "continuous-bernoulli"
    return "normal(scale=learned-scale)"


def _exemplars(prior: Callable[..., Any], step: Preprocess, x: np.ndarray, seed: int) -> Tensor | None:
    """All training rows as the model sees them, if the prior is made of them."""
    made_of_rows = getattr(prior, "func", prior) is ExemplarPrior
    return step(_tensor(x), generator(seed, 1)) if made_of_rows else None


def _by_columns(
    likelihood: Callable[..., Any] | None, source: datasets.DataSet
) -> tuple[Callable[..., Any] | None, datasets.DataSet]:
    """For a likelihood of columns: these, inferred where they are not given, and the tables as they want them."""
    if getattr(likelihood, "func", likelihood) is not Columns:
        return likelihood, source
    train = source.train
    if train.x.ndim != 2:
        raise ConfigError(f"--likelihood: columns are those of a table, and rows of {source.name} are no vectors")
    columns = _given(likelihood)
    if columns is None:
        frame = _frame(train, [f"column {i}" for i in range(train.x.shape[1])])
        try:
            columns = Columns.infer(frame)
            if train.texts:  # a rare class may be in the test rows alone
                columns = Columns.infer(frame.astype({name: _classes(texts) for name, texts in train.texts.items()}))
        except DataError as error:
            raise DataError(f"{train.source}: {error}") from error
    print(columns)
    tables = {name: in_columns(columns, getattr(source, name)) for name in ("train", "test")}
    return functools.partial(Columns, columns=columns.columns), replace(source, preprocess="Identity", **tables)


def _texts(likelihood: Callable[..., Any] | None) -> Collection[str] | None:
    """Which columns are read as texts: none without a likelihood of columns; those it names, or told by the cells."""
    if getattr(likelihood, "func", likelihood) is not Columns:
        return None
    columns = _given(likelihood)
    return () if columns is None else texts_of(columns)


def _given(likelihood: Any) -> Columns | None:
    """The columns that were described by hand."""
    bound = likelihood.keywords if isinstance(likelihood, functools.partial) else {}
    return Columns(bound["columns"]) if "columns" in bound else None


def _frame(table: datasets.Table, names: Sequence[str]) -> Any:
    """A DataFrame with texts where the table has them, and with these names where it has none."""
    import pandas as pd

    frame = pd.DataFrame(
        np.asarray(table.x),
        columns=pd.Index(names if table.columns is None else table.columns, dtype=object),
        index=None if table.rows is None else np.asarray(table.rows),
    )
    for name, texts in (table.texts or {}).items():
        codes = frame[name].to_numpy()
        words = np.array([*texts, None], dtype=object)[np.where(np.isnan(codes), -1, codes).astype(int)]
        frame[name] = pd.Series(words, index=frame.index, dtype=object)
    return frame


def _classes(texts: Sequence[str]) -> Any:
    import pandas as pd

    return pd.CategoricalDtype(list(texts))


def _incomplete(table: datasets.Table) -> bool:
    """Whether a cell is missing; only numbers with a fraction can be."""
    return table.x.dtype.kind == "f" and any(
        np.isnan(table.x[i : i + _ROWS_LOOKED_AT]).any() for i in range(0, len(table), _ROWS_LOOKED_AT)
    )


def _latent(shape: tuple[int, ...]) -> int:
    return max(1, min(40, math.prod(dims(shape)) // 2))


def _callbacks(chosen: Settings) -> list[Callback]:
    return [] if chosen.patience is None else [EarlyStopping(chosen.patience)]


def _announce(chosen: Settings, model: Model, source: datasets.DataSet, step: Preprocess, epochs: int) -> None:
    shape = " x ".join(map(str, source.train.x.shape[1:]))
    count = sum(p.numel() for p in model.parameters())
    table = describe(model)
    print(f"data         {source.name}: {len(source.train):,} training rows of {shape}, {describe(step)['type']}")
    for role in ("prior", "likelihood", "posterior"):
        print(f"{role:<12} {_summary(table[role])}")
    print(
        f"parameters   {count:,}; {_count(epochs, 'epoch')} of batches of {chosen.batch}, "
        f"Adam {chosen.lr:g}, seed {chosen.seed}"
    )
    sys.stdout.flush()


def _summary(table: Mapping[str, Any]) -> str:
    """``Normal(shape=40, context=[1, 28, 28], net=GatedMLP)``."""
    inner = ", ".join(f"{k}={_value(v)}" for k, v in table.items() if k not in ("type", "partial"))
    return (
        f"{table.get('type', table.get('partial'))}({inner})" if inner else str(table.get("type", table.get("partial")))
    )


def _value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return f"[{len(value)}]"
    return _summary(value) if isinstance(value, Mapping) else str(value).lstrip("$")


def _reseal(directory: Path, details: Mapping[str, Any]) -> bool:
    """What training wrote about itself, and what only the command knows; False if training wrote nothing."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return False
    written = json.loads(manifest.read_text(encoding="utf-8"))
    kept = {k: v for k, v in written.items() if k not in ("format", "versions", "files")}
    runs.seal(directory, {**kept, **details})
    return True


def _plain(chosen: Settings) -> dict[str, Any]:
    values = {f.name: getattr(chosen, f.name) for f in fields(chosen) if f.name not in ("out", "overwrite")}
    return {name: value for name, value in values.items() if value is not None}


def _tensor(x: np.ndarray) -> Tensor:
    return torch.tensor(np.asarray(x))


def _observed(x: Tensor) -> Tensor:
    """The cells that are there, if any is not."""
    return x[~x.isnan()] if x.is_floating_point() and x.isnan().any() else x


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _clock(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {seconds % 60:.0f} s"
