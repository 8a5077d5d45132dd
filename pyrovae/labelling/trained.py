"""What labels tables: features, a classifier, its calibration, the density of rows; to a file and back."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyrovae import runs
from pyrovae.config import NAMES
from pyrovae.data import Table
from pyrovae.errors import ConfigError, ModelFileError
from pyrovae.labelling.asking import ask_next
from pyrovae.labelling.calibration import Abstention, ConformalSets, Temperature
from pyrovae.labelling.density import Density
from pyrovae.labelling.features import Features, as_rows, features_from_dict
from pyrovae.labelling.given import class_codes, label_values, split_column
from pyrovae.labelling.methods import Labeller
from pyrovae.labelling.result import Labelling
from pyrovae.labelling.training import classified
from pyrovae.models import VAE, SemiSupervisedVAE
from pyrovae.spec import build

__all__ = ["Calibration", "TrainedLabeller", "load_labeller"]

_DENSITY, _LABELLING = "density", "labelling.json"


class Calibration:
    """What held-out labels taught about a classifier's probabilities.

    Args:
        temperature: makes them honest.
        sets: of classes that cover.
        abstention: from labels that are not safe.
    """

    def __init__(
        self,
        temperature: Temperature = Temperature(),  # noqa: B008
        sets: ConformalSets = ConformalSets(),  # noqa: B008
        abstention: Abstention = Abstention(),  # noqa: B008
    ) -> None:
        self.temperature, self.sets, self.abstention = temperature, sets, abstention

    @classmethod
    def fit(
        cls, probabilities: np.ndarray, y: np.ndarray, *, coverage: float, error_rate: float, confidence: float
    ) -> "Calibration":
        """All three, of held-out rows.

        Args:
            probabilities: of rows that were not trained on, as the classifier gives them.
            y: their classes.
            coverage: of prediction sets.
            error_rate: among labels that are not abstained from.
            confidence: of that.
        """
        temperature = Temperature.fit(probabilities, y)
        calibrated = temperature(probabilities)
        sets = ConformalSets.fit(calibrated, y, coverage)
        return cls(temperature, sets, Abstention.fit(calibrated, y, error_rate, confidence))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, an infinite threshold as None."""
        safe = self.abstention
        return {
            "temperature": self.temperature.value,
            "set_threshold": self.sets.threshold,
            "safe_threshold": safe.threshold if np.isfinite(safe.threshold) else None,
        }

    @classmethod
    def from_dict(cls, stored: Any) -> "Calibration":
        """What :meth:`to_dict` gave."""
        safe = stored["safe_threshold"]
        return cls(
            Temperature(float(stored["temperature"])),
            ConformalSets(float(stored["set_threshold"])),
            Abstention(np.inf if safe is None else float(safe)),
        )


class TrainedLabeller:
    """Labels tables like the one it was trained on; :func:`pyrovae.label` makes it.

    Args:
        features: how rows are read.
        classes: the labels.
        method: name of what was trained.
        labeller: trained.
        calibration: of its probabilities.
        density: of the rows.
        report: what was found out about it.
    """

    def __init__(
        self,
        features: Features,
        classes: Sequence[Any],
        method: str,
        labeller: Labeller,
        calibration: Calibration,
        density: Density,
        report: dict[str, Any],
    ) -> None:
        self.features, self.classes, self.method, self.labeller = features, tuple(classes), method, labeller
        self.calibration, self.density, self.report = calibration, density, report

    def probabilities(self, table: Any) -> np.ndarray:
        """Calibrated, shape ``(rows, classes)``.

        Args:
            table: as for :func:`pyrovae.label`.
        """
        return self._calibrated(self.features.encode(as_rows(table)))

    def label(self, table: Any, y: Any = None, *, source: str = "table") -> Labelling:
        """Labels of a later table.

        Args:
            table: with the columns of training, in any order; others are kept and not read.
            y: labels that are known, or the name of their column; None where there are none.
            source: what the table is called in messages.

        Raises:
            DataError: for a missing column, a cell that cannot be read, or a label that training had not seen.
        """
        rows = as_rows(table)
        read, given, name = split_column(rows, y, source)
        codes = np.full(len(rows), -1)
        if given is not None:
            codes = class_codes(label_values(given, len(rows), source), self.classes, source)
        found = self.labelled(rows, self.features.encode(read, source), codes, name, self)
        return replace(found, files=table.files if isinstance(table, Table) else None)

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a run directory, which :func:`load_labeller` reads back.

        Args:
            directory: empty, or not there.
            overwrite: an old run there gives way.

        Raises:
            ConfigError: for one of scikit-learn's methods, which could only be pickled, or a directory in use.
            ResourceError: if it cannot be written.
        """
        model = getattr(self.labeller, "model", None)
        if not isinstance(model, SemiSupervisedVAE):
            raise ConfigError(
                f"{self.method}: is scikit-learn's and cannot be saved without pickling; choose another method"
            )
        settings = {
            "method": self.method,
            "classes": list(self.classes),
            "features": self.features.to_dict(),
            "calibration": self.calibration.to_dict(),
            "log_prob_quantiles": self.density.quantiles.tolist(),
            "used_dimensions": self.density.used.tolist(),
            "report": self.report,
        }
        with runs.claimed(directory, overwrite=overwrite) as path:
            runs.save(path, model)
            (path / _DENSITY).mkdir()
            runs.save(path / _DENSITY, self.density.vae)
            runs.write(path / _LABELLING, json.dumps(settings, indent=1, allow_nan=False).encode() + b"\n")
            runs.seal(path, {"kind": "labeller"})
        return Path(directory)

    def _calibrated(self, x: np.ndarray) -> np.ndarray:
        return self.calibration.temperature(self.labeller.probabilities(x))

    def labelled(
        self,
        rows: Any,
        x: np.ndarray,
        codes: np.ndarray,
        name: str | None,
        saved: "TrainedLabeller",
        asked: int = 100,
    ) -> Labelling:
        """Labels of rows that were read already.

        Args:
            rows: as they came.
            x: as the features encode them.
            codes: places of known labels among the classes, -1 where there is none.
            name: of the column they came from, or None.
            saved: what the result hands on for other tables.
            asked: rows that ``ask_next`` keeps apart from each other.
        """
        p, given = self._calibrated(x), codes >= 0
        sets, abstain = self.calibration.sets(p), self.calibration.abstention(p)
        ask = ask_next(p, self.density.codes(x), given, asked)
        certain = np.eye(len(self.classes))[codes[given]]
        p[given], sets[given], abstain[given] = certain, certain > 0, False
        novelty = self.density.novelty(x)
        return Labelling(rows, self.classes, codes, p, sets, abstain, novelty, ask, self.report, saved, name)


class _Stored(Labeller):
    """A classifier that was read back."""

    uses_unlabelled = True
    ours = True

    def __init__(self, model: SemiSupervisedVAE) -> None:
        self.model = model

    def fit(self, x: np.ndarray, y: np.ndarray) -> Labeller:
        """Not again."""
        raise ConfigError("a labeller that was read back is trained already; call pv.label to train another")

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Of the classes under q(y|x)."""
        return classified(self.model, x)


def load_labeller(directory: str | os.PathLike[str]) -> TrainedLabeller:
    """Read back what :meth:`TrainedLabeller.save` wrote, after every file was verified.

    Raises:
        ModelFileError: if something is missing, damaged, or the directory holds a run of another kind.
    """
    path, manifest = Path(directory), runs.verify(directory)
    if manifest.get("kind") != "labeller":
        raise ModelFileError(
            f"{path}: holds no labeller; expected a directory that Labelling.save or `pyrovae label` wrote"
        )
    try:
        stored = json.loads((path / _LABELLING).read_text(encoding="utf-8"))
        features = features_from_dict(stored["features"])
        calibration = Calibration.from_dict(stored["calibration"])
        model, vae = _rebuilt(path), _rebuilt(path / _DENSITY)
        if not (isinstance(model, SemiSupervisedVAE) and isinstance(vae, VAE)):
            raise ModelFileError(f"{path}: expected a SemiSupervisedVAE and a VAE")
        return TrainedLabeller(
            features,
            stored["classes"],
            stored["method"],
            _Stored(model),
            calibration,
            Density(vae, np.asarray(stored["log_prob_quantiles"]), np.asarray(stored["used_dimensions"])),
            stored["report"],
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, ModelFileError) else ModelFileError(f"{path}: damaged ({error})") from error


def _rebuilt(path: Path) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(runs.stored_dtype(path))
    try:
        model = build(runs.read_model_table(path), NAMES)
    finally:
        torch.set_default_dtype(before)
    runs.load_weights(path, model)
    return model.eval()
