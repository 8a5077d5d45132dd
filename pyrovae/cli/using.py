"""Commands that use a finished run: the stored schema and preprocessing are applied to whatever comes in."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from pyrovae import data as datasets
from pyrovae import plots
from pyrovae.cli.pictures import mean_samples
from pyrovae.cli.training import measure, test_rows
from pyrovae.config import Run, load
from pyrovae.errors import ConfigError, ModelFileError
from pyrovae.evaluation import elbo_terms, log_marginal
from pyrovae.models import Model

__all__ = ["encode", "evaluate", "sample", "score"]


def evaluate(run: Path, data: str | None, *, k: int, seed: int, label_column: str | None) -> None:
    """Print the figures of a run on its own test rows or on other data."""
    loaded = load(run)
    model = _model(loaded)
    table = _own_test(loaded) if data is None else _table(data, label_column)
    print(f"data         {table.source}")
    measure(model, _seen(loaded, table), k=k, seed=seed)


def sample(run: Path, n: int, out: Path, seed: int) -> None:
    """Draw rows and write them."""
    model = _model(load(run))
    if out.suffix == ".png":
        plots.images(mean_samples(model, n, seed), out)
    else:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            _write(out, {"x": model.sample(n).numpy(force=True)})
    print(f"{n} samples written to {out}")


def encode(run: Path, data: str, out: Path, label_column: str | None) -> None:
    """Write the parameters of q(z|x), and the labels where there are some."""
    loaded, table = load(run), _table(data, label_column)
    x, model = _seen(loaded, table), _model(loaded)
    codes = [model.encode(rows) for rows in x.split(5000)]
    columns = {
        "loc": torch.cat([q.mean for q in codes]).numpy(force=True),
        "scale": torch.cat([q.stddev for q in codes]).numpy(force=True),
    }
    _write(out, columns | ({} if table.y is None else {"y": np.asarray(table.y)}))
    print(f"{len(x):,} codes written to {out}")


def score(run: Path, data: str, out: Path, *, k: int, seed: int, label_column: str | None) -> None:
    """Write every row's bounds and its estimate of log p(x)."""
    loaded, table = load(run), _table(data, label_column)
    x, model = _seen(loaded, table), _model(loaded)
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


def _model(loaded: Run) -> Model:
    if not isinstance(loaded.model, Model):
        raise ModelFileError(f"{loaded.directory}: holds a {type(loaded.model).__name__}, which is no model")
    return loaded.model


def _table(data: str, label_column: str | None) -> datasets.Table:
    """The test rows of a named data set, every row of a file."""
    if data in datasets.names():
        return datasets.load(data).test
    return datasets.read(data, label_column=label_column)


def _own_test(loaded: Run) -> datasets.Table:
    settings = loaded.manifest.get("settings")
    if settings is None:
        raise ConfigError(f"DATA: {loaded.directory} does not say what it was trained on; name the data")
    return datasets.load(settings["data"], label_column=settings.get("label_column"), seed=settings["seed"]).test


def _seen(loaded: Run, table: datasets.Table) -> torch.Tensor:
    table = table if loaded.schema is None else loaded.schema.apply(table)
    datasets.check_cells(table.x, source=table.source, columns=table.columns)
    return test_rows(loaded.preprocess, table.x)


def _write(out: Path, columns: Mapping[str, np.ndarray]) -> None:
    if out.suffix == ".npz":
        np.savez(out, **columns)  # pyright: ignore[reportArgumentType]
    elif out.suffix == ".npy" and len(columns) == 1:
        np.save(out, next(iter(columns.values())))
    elif out.suffix == ".csv":
        _write_csv(out, columns)
    else:
        raise ConfigError(f"--out: expected a name that ends in .npz or .csv, received {out.name!r}")


def _write_csv(out: Path, columns: Mapping[str, np.ndarray]) -> None:
    import pandas as pd

    table = {}
    for name, values in columns.items():
        flat = values.reshape(len(values), -1)
        table |= {
            name if flat.shape[1] == 1 and values.ndim == 1 else f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])
        }
    pd.DataFrame(table).to_csv(out, index_label="row")
