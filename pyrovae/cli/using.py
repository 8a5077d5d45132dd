"""Commands that use a finished run: the stored schema and preprocessing are applied to whatever comes in."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pyrovae import data as datasets
from pyrovae import plots
from pyrovae.cli.pictures import mean_samples
from pyrovae.cli.training import check_rows, in_columns, measure, test_rows
from pyrovae.columns import Columns
from pyrovae.config import Run, load
from pyrovae.errors import ConfigError, DataError, ModelFileError
from pyrovae.evaluation import elbo_terms, log_marginal
from pyrovae.evaluation import impute as fill
from pyrovae.models import Model
from pyrovae.runs import fingerprint, write

__all__ = ["encode", "evaluate", "impute", "sample", "score"]


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
            rows = loaded.preprocess.inverse(model.sample(n).cpu()).numpy(force=True)
        names = loaded.schema.columns if loaded.schema and out.suffix == ".csv" else None
        _write(out, {"x": rows} if names is None else dict(zip(names, rows.T, strict=True)))
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
    table, model = _table(data, label_column, loaded), _model(loaded)
    filled = fill(model, _seen(loaded, table), draws=draws, k=k, seed=seed)
    likelihood, back = getattr(model, "likelihood", None), loaded.preprocess.inverse
    guess = filled.mean.where(filled.mean.isfinite(), filled.mode)
    if isinstance(likelihood, Columns):
        classes = torch.tensor([column.categories is not None for column in likelihood.columns])
        guess = guess.where(~classes, filled.mode)
    print(filled)
    if out.suffix == ".npz":
        std = back(guess + filled.std) - back(guess)
        columns = {"x": back(guess), "std": std, "draws": torch.stack([back(rows) for rows in filled.draws])}
        _write(out, {name: value.numpy(force=True) for name, value in columns.items()})
    elif isinstance(likelihood, Columns):
        write(out, likelihood.to_frame(guess).to_csv(index=False).encode())
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


def _table(data: str, label_column: str | None, loaded: Run) -> datasets.Table:
    """The test rows of a named data set, every row of a file, without the column that was the label in training."""
    if data in datasets.names():
        return datasets.load(data, label_column=label_column).test
    trained = loaded.manifest.get("settings", {}).get("label_column")
    if label_column is None and trained is not None:
        try:
            return datasets.read(data, label_column=trained)
        except (ConfigError, DataError):
            pass  # new rows may come without labels
    return datasets.read(data, label_column=label_column)


def _own_test(loaded: Run) -> datasets.Table:
    """The test rows that were set apart in training, if the data are still the same."""
    settings = loaded.manifest.get("settings")
    if settings is None:
        raise ConfigError(f"DATA: {loaded.directory} does not say what it was trained on; name the data")
    source = datasets.load(settings["data"], label_column=settings.get("label_column"), seed=settings["seed"])
    if fingerprint((source.train.x, source.test.x)) != loaded.manifest.get("data"):
        raise DataError(
            f"{settings['data']}: has changed since the training of {loaded.directory}, so its test rows may have been "
            "trained on; put the old file back, or name DATA to evaluate every row of it"
        )
    return source.test


def _seen(loaded: Run, table: datasets.Table) -> torch.Tensor:
    table = table if loaded.schema is None else loaded.schema.apply(table)
    likelihood = getattr(loaded.model, "likelihood", None)
    table = in_columns(likelihood, table) if isinstance(likelihood, Columns) else table
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


def _write_csv(out: io.BytesIO, columns: Mapping[str, np.ndarray], *, index: bool) -> None:
    import pandas as pd

    table = {}
    for name, values in columns.items():
        flat = values.reshape(len(values), -1)
        table |= {
            name if flat.shape[1] == 1 and values.ndim == 1 else f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])
        }
    pd.DataFrame(table).to_csv(out, index=index, index_label="row" if index else None)
