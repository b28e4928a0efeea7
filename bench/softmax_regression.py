"""SoftmaxRegression of fastce beside LogisticRegression of scikit-learn: the same objective, solver and tolerance.

    python bench/softmax_regression.py [--only digits] [--solver newton-cg] [--dtype float32] [--tol 1e-4] [--repeat 5]

The two are fitted in turn. Median times of a fit are printed, with the iterations and the objective that was reached.
The exit status is 1 if SoftmaxRegression is slower in one of the cases, or its objective is larger by more than 1 %.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import numpy as np
from scipy import sparse
from sklearn.datasets import load_digits, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import fastce
from fastce.integrations.sklearn import SoftmaxRegression


def drawn(X, classes, rng, scale=1.0):
    """Labels from a softmax regression on X, all of which occur."""
    logits = X @ (scale * rng.standard_normal((X.shape[1], classes)))
    return np.unique((logits + rng.gumbel(size=logits.shape)).argmax(axis=1), return_inverse=True)[1]


def digits(rng):
    """20000 rows drawn from the digits of scikit-learn, with noise; pixels are 0 to 16."""
    X, y = load_digits(return_X_y=True)
    rows = rng.integers(0, len(X), 20000)
    return X[rows] + rng.standard_normal((20000, 64)), y[rows]


def scaled_digits(rng):
    X, y = digits(rng)
    return StandardScaler().fit_transform(X), y


def correlated(rng):
    return make_classification(
        10000, 200, n_informative=60, n_redundant=60, n_classes=50, n_clusters_per_class=1, random_state=0
    )


def independent(rng):
    X = rng.standard_normal((5000, 100))
    return X, drawn(X, 200, rng, 0.3)


def categories(rng):
    """Six columns of frequent and rare categories, one-hot."""
    rows = 20000
    columns = [rng.zipf(1.5, rows) % size for size in (2, 5, 10, 50, 100, 33)]
    X = sparse.csr_array(sparse.hstack([sparse.csr_array(np.eye(column.max() + 1)[column]) for column in columns]))
    return X, drawn(X, 10, rng)


def words(rng):
    """Counts of 3000 words, whose frequencies fall as 1/rank, in texts of 80 words on 20 topics."""
    rows, columns, topics = 10000, 3000, 20
    frequency = 1 / np.arange(1, columns + 1)
    frequency /= frequency.sum()
    of_topics = np.cumsum(0.7 * frequency + 0.3 * rng.dirichlet(30 * frequency, topics), axis=1)
    y = rng.integers(0, topics, rows)
    found = [np.searchsorted(of_topics[topic], rng.random(80) * of_topics[topic, -1]) for topic in y]
    X = sparse.csr_array((np.ones(80 * rows), (np.repeat(np.arange(rows), 80), np.concatenate(found))), (rows, columns))
    X.sum_duplicates()
    return X, y


CASES = (digits, scaled_digits, correlated, independent, categories, words)


def objective(model, X, y):
    loss = fastce.cross_entropy(np.asarray(model.decision_function(X), dtype=np.float64), y)
    return loss + np.sum(np.square(model.coef_, dtype=np.float64)) / (2 * model.C * X.shape[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--solver", choices=["lbfgs", "newton-cg"], default="lbfgs")
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float64")
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{options.solver}, {options.dtype}, tol {options.tol:g}; seconds (iterations) objective")
    good = True
    for case in CASES:
        if options.only not in case.__name__:
            continue
        X, y = case(np.random.default_rng(0))
        X = X.astype(options.dtype)
        arguments = {"solver": options.solver, "tol": options.tol, "max_iter": 1000}
        models = [SoftmaxRegression(**arguments), LogisticRegression(**arguments)]
        seconds: list[list[float]] = [[], []]
        for _ in range(options.repeat):
            for model, times in zip(models, seconds, strict=True):
                start = time.perf_counter()
                model.fit(X, y)
                times.append(time.perf_counter() - start)
        ours, theirs = (float(np.median(times)) for times in seconds)
        reached = [objective(model, X, y) for model in models]
        good &= ours < theirs and reached[0] < 1.01 * reached[1]
        rows, columns = X.shape
        print(
            f"{case.__name__:14} {rows} x {columns} x {len(models[0].classes_)}: "
            f"fastce {ours:.3f} ({models[0].n_iter_[0]}) {reached[0]:.7g}, "
            f"scikit-learn {theirs:.3f} ({models[1].n_iter_[0]}) {reached[1]:.7g}: {theirs / ours:.1f} times",
            flush=True,
        )
    return not good


if __name__ == "__main__":
    sys.exit(main())
