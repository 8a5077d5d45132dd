"""Commands that use a finished run: the stored schema and preprocessing are applied to whatever comes in."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import data as datasets
from pyrovae import plots
from pyrovae.cli.pictures import mean_samples
from pyrovae.cli.training import check_rows, in_columns, measure, test_rows, texts_of
from pyrovae.columns import Columns
from pyrovae.config import Run, load
from pyrovae.errors import ConfigError, DataError, ModelFileError
from pyrovae.evaluation import elbo_terms, log_marginal
from pyrovae.evaluation import impute as fill
from pyrovae.missing import Masked
from pyrovae.models import Model
from pyrovae.runs import fingerprint, write

__all__ = ["encode", "evaluate", "impute", "sample", "score", "write_frame"]


def evaluate(run: Path, data: str | None, *, k: int, seed: int, label_column: str | None) -> None:
    """Print the figures of a run on its own test rows or on other data."""
    loaded = load(run)
    model = _model(loaded)
    if data is None and label_column is not None:
        raise ConfigError("--label-column: belongs to DATA, and the run's own data were asked for; name DATA")
    table = _own_test(loaded) if data is None else _table(data, label_column, loaded)
    print(f"data         {table.source}")
    measure(model, _seen(loaded, table), k=k, seed=seed)


def sample(run: Path, n: int, out: Path, seed: int) -> None:
    """Draw rows and write them."""
    loaded = load(run)
    model = _model(loaded)
    if out.suffix == ".png":
        drawn = mean_samples(model, n, seed)
        if not plots.is_image(drawn):
            raise ConfigError(f"--out: rows of shape {tuple(drawn.shape[1:])} are no images; write .npy, .npz or .csv")
        plots.images(drawn, out)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            drawn = loaded.preprocess.inverse(model.sample(n).cpu())
        columns = _columns(model)
        if columns is not None and out.suffix == ".csv":
            write_frame(out, columns.to_frame(drawn), index=True)
        else:
            rows = _in_units(model, drawn)
            names = loaded.schema.columns if loaded.schema and out.suffix == ".csv" else None
            _write(out, {"x": rows} if names is None else dict(zip(names, rows.T, strict=True)))
        _tell_codes(model, out)
    print(f"{n} samples written to {out}")


def encode(run: Path, data: str, out: Path, label_column: str | None) -> None:
    """Write the parameters of q(z|x), and the labels where there are some."""
    loaded = load(run)
    table, model = _table(data, label_column, loaded), _model(loaded)
    x = _seen(loaded, table)
    codes = [model.encode(rows) for rows in x.split(5000)]
    columns = {
        "loc": torch.cat([q.mean for q in codes]).numpy(force=True),
        "scale": torch.cat([q.stddev for q in codes]).numpy(force=True),
    }
    _write(out, columns | ({} if table.y is None else {"y": np.asarray(table.y)}))
    print(f"{len(x):,} codes written to {out}")


def score(run: Path, data: str, out: Path, *, k: int, seed: int, label_column: str | None) -> None:
    """Write every row's bounds and its estimate of log p(x)."""
    loaded = load(run)
    model = _model(loaded)
    x = _seen(loaded, _table(data, label_column, loaded))
    terms, marginal = elbo_terms(model, x, seed=seed), log_marginal(model, x, k=k, seed=seed)
    columns = {
        "elbo": terms.elbo,
        "reconstruction": terms.reconstruction,
        "kl": terms.kl,
        "log_prob": marginal.values,
        "standard_error": marginal.standard_errors,
    }
    _write(out, {name: value.numpy(force=True) for name, value in columns.items()})
    print(f"{len(x):,} scores written to {out}; {marginal}")


def impute(run: Path, data: str, out: Path, *, draws: int, k: int, seed: int, label_column: str | None) -> None:
    """Write a table with its missing cells filled: with the best guesses to .csv, with completions as well to .npz."""
    loaded = load(run)
    model = _model(loaded)
    if not isinstance(getattr(model, "likelihood", None), Masked | Columns | None):
        advice = "train on a table with empty cells or with --likelihood columns"
        raise ConfigError(f"{run}: its model was trained on rows without missing cells and can fill none; {advice}")
    table = _table(data, label_column, loaded)
    filled = fill(model, _seen(loaded, table), draws=draws, k=k, seed=seed)
    likelihood, back = _columns(model), loaded.preprocess.inverse
    guess = filled.mean.where(filled.mean.isfinite(), filled.mode)
    if likelihood is not None:
        classes = torch.tensor([column.categories is not None for column in likelihood.columns])
        guess = guess.where(~classes, filled.mode)
    print(filled)
    if out.suffix == ".npz":
        std = back(guess + filled.std) - back(guess)
        completions = np.stack([_in_units(model, back(rows)) for rows in filled.draws])
        _write(out, {"x": _in_units(model, back(guess)), "std": std.numpy(force=True), "draws": completions})
        _tell_codes(model, out)
    elif likelihood is not None:
        write_frame(out, likelihood.to_frame(guess), index=False)
    else:
        given = np.asarray(table.x)
        rows = np.where(np.isnan(given), back(guess).numpy(force=True), given).reshape(len(given), -1)
        names = table.columns or [f"x_{i}" for i in range(rows.shape[1])]
        _write(out, dict(zip(names, rows.T, strict=True)), index=False)
    print(f"{len(guess):,} rows written to {out}")


def _model(loaded: Run) -> Model:
    if not isinstance(loaded.model, Model):
        raise ModelFileError(f"{loaded.directory}: holds a {type(loaded.model).__name__}, which is no model")
    return loaded.model


def _columns(model: Model) -> Columns | None:
    """The likelihood, if each column has one of its own."""
    likelihood = getattr(model, "likelihood", None)
    return likelihood if isinstance(likelihood, Columns) else None


def _in_units(model: Model, rows: torch.Tensor) -> np.ndarray:
    """Rows as an array: of classes that are numbers these numbers, of texts their codes."""
    x, likelihood = rows.numpy(force=True).copy(), _columns(model)
    for i, column in enumerate(likelihood.columns if likelihood is not None else ()):
        if column.categories is not None and not isinstance(column.categories[0], str):
            x[:, i] = np.array(column.categories, x.dtype)[x[:, i].astype(int)]
    return x


def _tell_codes(model: Model, out: Path) -> None:
    """What the numbers of classes mean where a file cannot hold their names."""
    likelihood = _columns(model)
    for column in likelihood.columns if likelihood is not None and out.suffix in (".npy", ".npz") else ():
        if column.categories is not None and isinstance(column.categories[0], str):
            print(f"{column.name}: {', '.join(f'{i} {text!r}' for i, text in enumerate(column.categories))}")


def _texts(loaded: Run) -> list[str] | None:
    """The columns to be read as texts; None where the model knows none."""
    likelihood = _columns(_model(loaded))
    return None if likelihood is None else texts_of(likelihood)


def _table(data: str, label_column: str | None, loaded: Run) -> datasets.Table:
    """The test rows of a named data set, every row of a file, without the column that was the label in training."""
    if data in datasets.names():
        return datasets.load(data, label_column=label_column).test
    trained, texts = loaded.manifest.get("settings", {}).get("label_column"), _texts(loaded)
    if label_column is None and trained is not None:
        try:
            return datasets.read(data, label_column=trained, texts=texts)
        except (ConfigError, DataError):
            pass  # new rows may come without labels
    return datasets.read(data, label_column=label_column, texts=texts)


def _own_test(loaded: Run) -> datasets.Table:
    """The test rows that were set apart in training, if the data are still the same."""
    settings = loaded.manifest.get("settings")
    if settings is None:
        raise ConfigError(f"DATA: {loaded.directory} does not say what it was trained on; name the data")
    label_column, texts = settings.get("label_column"), _texts(loaded)
    source = datasets.load(settings["data"], label_column=label_column, seed=settings["seed"], texts=texts)
    if fingerprint((source.train.x, source.test.x)) != loaded.manifest.get("data"):
        raise DataError(
            f"{settings['data']}: has changed since the training of {loaded.directory}, so its test rows may have been "
            "trained on; put the old file back, or name DATA to evaluate every row of it"
        )
    return source.test


def _seen(loaded: Run, table: datasets.Table) -> torch.Tensor:
    likelihood = _columns(_model(loaded))
    if likelihood is not None:
        table = in_columns(likelihood, table)
    elif loaded.schema is not None:
        table = loaded.schema.apply(table)
    check_rows(_model(loaded), loaded.preprocess, table)
    return test_rows(loaded.preprocess, table.x)


def _write(out: Path, columns: Mapping[str, np.ndarray], *, index: bool = True) -> None:
    buffer = io.BytesIO()
    if out.suffix == ".npz":
        np.savez(buffer, **columns)  # pyright: ignore[reportArgumentType]
    elif out.suffix == ".npy":
        np.save(buffer, next(iter(columns.values())))
    else:
        _write_csv(buffer, columns, index=index)
    write(out, buffer.getvalue())


def write_frame(out: Path, frame: Any, *, index: bool) -> None:
    """A DataFrame as CSV."""
    write(out, frame.to_csv(index=index, index_label="row" if index else None).encode())


def _write_csv(out: io.BytesIO, columns: Mapping[str, np.ndarray], *, index: bool) -> None:
    import pandas as pd

    table = {}
    for name, values in columns.items():
        flat = values.reshape(len(values), -1)
        table |= {
            name if flat.shape[1] == 1 and values.ndim == 1 else f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])
        }
    pd.DataFrame(table).to_csv(out, index=index, index_label="row" if index else None)
