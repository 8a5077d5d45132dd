"""The language of a word, from few labels: ``python tests/benchmarks/words.py --out F``.

Words of five languages, one by one, without a sentence around them: ``words/words.csv`` in ``PYROVAE_DATA``, with the
columns word and language. A fifth of the rows, always the same, is for the error; of the others the same number of
labels is drawn for every language, and what remains is there without a label. Settings were chosen with ``--held-out``,
where a sixth of those others stands for the fifth and draws are others.

``n-grams`` is scikit-learn's logistic regression on 1 to 4 characters, ``self-training`` the same with its own sure
predictions as labels, ``recurrent`` a bidirectional GRU; M2 adds to that classifier a GRU that writes the word, given
the language at every step, and learns from rows without a label.
One JSON line for each finished run; finished runs are skipped.
"""

import argparse
import functools
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from labels import drawn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.semi_supervised import SelfTrainingClassifier

import pyrovae as pv
from pyrovae.evaluation.labels import mean_interval
from pyrovae.labelling.training import classified, flat_then_down, reproducibly

C = np.logspace(-1, 3, 9)
SURE = 0.9
LATENT, HIDDEN, EMBEDDING = 8, 64, 16
FEW, BATCH, LABELLED = 32, 128, 0.25
STEPS = {"recurrent": 400, "M2": 1250}
ALPHA, DROPOUT, WARMUP, RATE, DECAY = 10.0, 0.2, 0.05, 3e-3, 1e-2


class Words:
    """What all draws share: words to learn from, words to be tested on, as texts, numbers and classes.

    Args:
        held_out: whether a part of the words to learn from is tested on.
    """

    def __init__(self, *, held_out: bool) -> None:
        table = pd.read_csv(Path(os.environ["PYROVAE_DATA"]) / "words" / "words.csv", keep_default_na=False)
        order = np.random.default_rng(0).permutation(len(table))
        table, test = table.iloc[order[len(order) // 5 :]], table.iloc[order[: len(order) // 5]]
        if held_out:
            table, test = table.iloc[len(table) // 6 :], table.iloc[: len(table) // 6]
        self.languages = sorted(set(table.language))
        self.alphabet = "".join(sorted(set("".join(table.word)) | set("".join(test.word))))
        self.length = int(max(table.word.str.len().max(), test.word.str.len().max()))
        self.texts, self.test_texts = list(table.word), list(test.word)
        self.x, self.test_x = (pv.encode_text(t, self.alphabet, self.length) for t in (self.texts, self.test_texts))
        self.y, self.test_y = (self._classes(t) for t in (table, test))

    def _classes(self, table: pd.DataFrame) -> np.ndarray:
        return np.array([self.languages.index(language) for language in table.language])

    def m2(self) -> pv.SemiSupervisedVAE:
        """Untrained; its classifier alone is ``recurrent``."""
        classes, sizes = len(self.languages), {"hidden": HIDDEN, "embedding": EMBEDDING}
        reader = functools.partial(pv.GRUEncoder, length=self.length, vocabulary=len(self.alphabet), **sizes)
        return pv.SemiSupervisedVAE(
            labels=pv.OneHotCategorical(classes),
            prior=pv.StandardNormal(LATENT),
            likelihood=pv.Text(
                self.length,
                [(LATENT,), (classes,)],
                functools.partial(pv.GRUDecoder, **sizes),
                vocabulary=len(self.alphabet),
                word_dropout=DROPOUT,
            ),
            posterior=pv.Normal(LATENT, [(self.length,), (classes,)], reader),
            classifier=pv.OneHotCategorical(classes, self.length, reader),
        )


class Draw:
    """One draw of labels.

    Args:
        words: of the data.
        labels: how many.
        seed: of the draw and of all training.
    """

    def __init__(self, words: Words, labels: int, seed: int) -> None:
        self.words, self.seed = words, seed
        self.y = drawn(words.y, labels // len(words.languages), seed)
        self.given = np.flatnonzero(self.y >= 0)

    def error(self, method: str) -> float:
        """On the test words, in per cent."""
        return 100 * float((METHODS[method](self) != self.words.test_y).mean())

    def ngrams(self) -> np.ndarray:
        """Features, and how strongly they are regularised, come from the labelled rows alone."""
        texts = [self.words.texts[i] for i in self.given]
        features = _features().fit(texts)
        search = self._search(features.transform(texts))
        return search.predict(features.transform(self.words.test_texts))

    def self_training(self) -> np.ndarray:
        """Features that occur twice in all rows; regularisation as above."""
        features = _features(min_df=2).fit(self.words.texts)
        rows = features.transform(self.words.texts)
        best = _regression(self._search(rows[self.given]).best_params_["C"])
        learner = SelfTrainingClassifier(best, threshold=SURE).fit(rows, self.y)
        return learner.predict(features.transform(self.words.test_texts))

    def _search(self, rows: Any) -> GridSearchCV:
        return GridSearchCV(_regression(), {"C": C}, cv=5).fit(rows, self.y[self.given])

    def recurrent(self) -> np.ndarray:
        """From labelled rows alone."""
        x, y = self.words.x[self.given], self.y[self.given]
        return self._trained("recurrent", x, y, pv.Classification(), len(x), batch_size=FEW)

    def m2(self) -> np.ndarray:
        """From all rows; a pass is one over those without a label."""
        objective = pv.ELBO(beta=pv.Warmup(over=WARMUP), sites=["z"]) + pv.Classification(ALPHA)
        others, how = len(self.y) - len(self.given), {"batch_size": BATCH, "labelled": LABELLED}
        return self._trained("M2", self.words.x, self.y, objective, others / (1 - LABELLED), **how)

    def _trained(
        self, method: str, x: np.ndarray, y: np.ndarray, objective: Any, rows: float, *, batch_size: int, **how: Any
    ) -> np.ndarray:
        with reproducibly(self.seed):
            model = self.words.m2()
        adam = functools.partial(torch.optim.AdamW, lr=RATE, weight_decay=DECAY)
        how |= {"optimizer": adam, "scheduler": flat_then_down, "clip": 50.0, "progress": False, "compile": "replay"}
        epochs = round(STEPS[method] * batch_size / rows)
        pv.fit(model, x, y, objective=objective, epochs=epochs, batch_size=batch_size, seed=self.seed, **how)
        return classified(model.eval(), self.words.test_x).argmax(1)


METHODS: dict[str, Callable[[Draw], np.ndarray]] = {
    "n-grams": Draw.ngrams,
    "self-training": Draw.self_training,
    "recurrent": Draw.recurrent,
    "M2": Draw.m2,
}


def _features(min_df: int = 1) -> TfidfVectorizer:
    return TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=min_df, sublinear_tf=True)


def _regression(c: float = 1.0) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=500)


def table(lines: list[dict[str, Any]]) -> str:
    """Mean error over draws with its 95 % interval."""
    methods = [m for m in METHODS if any(line["method"] == m for line in lines)]
    out = ["| labels | " + " | ".join(methods) + " |", "|---" * (1 + len(methods)) + "|"]
    for labels in sorted({line["labels"] for line in lines}):
        cells = [str(labels)]
        for method in methods:
            found = [line["error"] for line in lines if (line["labels"], line["method"]) == (labels, method)]
            cells.append("{:.1f} [{:.1f}, {:.1f}]".format(*mean_interval(np.array(found))) if found else "")
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one for each finished run")
    parser.add_argument("--labels", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--held-out", action="store_true", help="test on training rows; take other seeds")
    chosen = parser.parse_args()
    lines = [json.loads(line) for line in chosen.out.read_text().splitlines()] if chosen.out.exists() else []
    done = {(line["labels"], line["seed"], line["method"]) for line in lines}
    words = Words(held_out=chosen.held_out)
    for seed in chosen.seeds:
        for labels in chosen.labels:
            for method in chosen.methods:
                if (labels, seed, method) in done:
                    continue
                began, used = time.perf_counter(), time.process_time()
                error = Draw(words, labels, seed).error(method)
                line = {"labels": labels, "seed": seed, "method": method, "error": error}
                line |= {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - used}
                lines.append(line)
                with chosen.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(json.dumps(line), flush=True)
    print(table(lines))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)  # of convergence, and of rows that no label reaches
    main()
