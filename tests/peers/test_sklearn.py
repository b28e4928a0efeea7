"""fastce.integrations.sklearn: scikit-learn's own checks of estimators, LogisticRegression's coefficients, and the
gradient at the minimum in long double."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from oracle import LD, needs_longdouble

pytest.importorskip("sklearn", minversion="1.7", reason="scikit-learn 1.7 or later is not installed")
from scipy import sparse  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from fastce.integrations.sklearn import SoftmaxRegression  # noqa: E402

SOLVERS = ["lbfgs", "newton-cg"]
WEIGHTS = {"unweighted": (None, None), "weighted": ("balanced", True)}  # of classes, of samples


def data(classes: int, rows: int = 300, columns: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features of different scales, and labels that depend on them."""
    rng = np.random.default_rng(classes)
    X = rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns)) + 1
    logits = X @ rng.standard_normal((columns, classes)) / 4
    return X * np.logspace(-1, 1, columns), (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def assert_near(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # estimators are also fitted to data on which they cannot converge
@pytest.mark.parametrize("solver", SOLVERS)
def test_scikit_learns_checks_of_estimators(solver: str) -> None:
    results = check_estimator(SoftmaxRegression(solver=solver), on_skip=None)
    assert len(results) > 50


@pytest.mark.parametrize("class_weight, weighted", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("storage", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_coefficients_are_those_of_logistic_regression(
    classes: int, storage: Any, solver: str, class_weight: Any, weighted: Any
) -> None:
    X, y = data(classes)
    weights = np.random.default_rng(1).integers(0, 4, len(X)) / 2 if weighted else None
    for intercept in (True, False):
        options = {"fit_intercept": intercept, "class_weight": class_weight, "C": 0.7}
        theirs = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=10000, **options).fit(X, y, weights)
        ours = SoftmaxRegression(solver=solver, tol=1e-7, max_iter=10000, **options).fit(storage(X), y, weights)
        assert_near(ours.coef_, theirs.coef_, 1e-4)
        assert_near(ours.intercept_, theirs.intercept_, 1e-4)
        assert ours.coef_.dtype == ours.intercept_.dtype == np.float64
        np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-3)
        np.testing.assert_allclose(ours.predict_proba(storage(X)), theirs.predict_proba(X), atol=1e-4)
        np.testing.assert_array_equal(ours.predict(X), ours.classes_[ours.predict_proba(X).argmax(axis=1)])


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("storage", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("classes", [2, 5])
def test_float32_is_kept(classes: int, storage: Any, solver: str) -> None:
    X, y = data(classes)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    want = SoftmaxRegression(tol=1e-9).fit(X, y)
    model = SoftmaxRegression(solver=solver, tol=1e-5).fit(storage(np.float32(X)), y)
    assert_near(model.coef_, want.coef_, 1e-2)
    for array in (
        model.coef_,
        model.intercept_,
        model.predict_proba(np.float32(X)),
        model.decision_function(np.float32(X)),
    ):
        assert array.dtype == np.float32
    assert model.predict_log_proba(X).dtype == np.float64


@needs_longdouble
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 5])
def test_the_gradient_of_the_objective_is_at_most_tol(classes: int, solver: str) -> None:
    """The solver sees other coordinates, but it stops by the gradient with respect to the coefficients."""
    X, y = data(classes)
    weights = np.random.default_rng(2).random(len(X))
    model = SoftmaxRegression(solver=solver, C=3.0, tol=1e-6).fit(X, y, weights)
    coef, intercept = model.coef_.astype(LD), model.intercept_.astype(LD)
    logits = X.astype(LD) @ coef.T + intercept
    if classes == 2:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    residual = exps / exps.sum(axis=1, keepdims=True)
    residual[np.arange(len(y)), y] -= 1
    residual = residual[:, -len(coef) :] * (weights / weights.sum(dtype=LD))[:, None]
    gradient = residual.T @ X.astype(LD) + coef / (3 * weights.sum(dtype=LD))
    steepest = max(np.abs(gradient).max(), np.abs(residual.sum(axis=0)).max())
    assert 0 < steepest <= 1.001e-6


def test_scale_and_correlation_of_features_cost_no_iterations() -> None:
    X, y = data(5)
    counts = []
    for scales in (np.ones(6), np.logspace(-3, 3, 6)):
        counts.append(SoftmaxRegression(C=np.inf, tol=1e-8, max_iter=50).fit(X * scales, y).n_iter_[0])
    assert max(counts) <= 1.5 * min(counts)


@pytest.mark.parametrize("C", [1.0, np.inf])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("change", ["twice", "zeros", "ones", "far", "many"])
def test_features_without_a_unique_minimum_or_far_from_zero(change: str, solver: str, C: float) -> None:
    X, y = data(3)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    want = LogisticRegression(C=C, tol=1e-9, solver="newton-cg").fit(X, y).predict_proba(X)
    column = X[:, :1]
    changed = {
        "twice": np.concatenate([X, X], axis=1),
        "zeros": np.concatenate([X, 0 * column], axis=1),
        "ones": np.concatenate([X, np.ones_like(column)], axis=1),
        "far": X + 100,
        "many": np.concatenate([X, np.zeros((len(X), 500))], axis=1),  # too many features to be whitened
    }[change]
    if change == "twice" and C == 1:
        want = LogisticRegression(C=2, tol=1e-9, solver="newton-cg").fit(X, y).predict_proba(X)
    tol = 1e-5 if change == "far" else 1e-7  # the gradient grows with the features, and so does its rounding
    model = SoftmaxRegression(C=C, solver=solver, tol=tol, max_iter=1000).fit(changed, y)
    np.testing.assert_allclose(model.predict_proba(changed), want, atol=1e-4)


def test_values_whose_squares_overflow_are_not_whitened() -> None:
    X, y = data(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, of the overflow
        model = SoftmaxRegression(C=np.inf, max_iter=5).fit(np.float32(X) * np.float32(1e30), y)
        model = SoftmaxRegression(max_iter=5).fit(X * 1e160, y)
    assert np.isfinite(model.coef_).all()


@pytest.mark.parametrize(
    "convert",
    [
        sparse.csr_matrix,
        sparse.csc_array,
        sparse.coo_array,
        np.asfortranarray,
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: X.astype(">f8"),
        lambda X: X.tolist(),
    ],
    ids=["csr_matrix", "csc", "coo", "fortran", "strided", "big_endian", "list"],
)
def test_storage_of_features(convert: Any) -> None:
    X, y = data(4)
    want = SoftmaxRegression(tol=1e-8).fit(X, y)
    got = SoftmaxRegression(tol=1e-8).fit(convert(X), y)
    assert_near(got.coef_, want.coef_, 1e-5)
    assert_near(got.predict_log_proba(convert(X)), want.predict_log_proba(X), 1e-5)


def test_inputs_are_only_read() -> None:
    X, y = data(3)
    arrays = [X, y, np.ones(len(X)), sparse.csr_array(X)]
    for array in (*arrays[:3], arrays[3].data, arrays[3].indices, arrays[3].indptr):
        array.flags.writeable = False
    for features in (arrays[0], arrays[3]):
        SoftmaxRegression(solver="newton-cg").fit(features, arrays[1], arrays[2]).predict_proba(features)


@pytest.mark.filterwarnings("ignore:.* did not converge")
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_number_of_threads_changes_no_bit(solver: str) -> None:
    X, y = data(40, rows=3000)
    models = [SoftmaxRegression(solver=solver, num_threads=n, max_iter=5).fit(X, y) for n in (1, 3)]
    np.testing.assert_array_equal(models[0].coef_, models[1].coef_)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("classes", [2, 4])
def test_warm_start(classes: int, solver: str) -> None:
    X, y = data(classes)
    model = SoftmaxRegression(solver=solver, warm_start=True, tol=1e-6).fit(X, y)
    coef = model.coef_
    model.fit(X, y)
    assert model.n_iter_ == [0]
    np.testing.assert_array_equal(model.coef_, coef)
    model.set_params(C=1.01).fit(X, y)
    assert 0 < model.n_iter_[0] < SoftmaxRegression(solver=solver, tol=1e-6).fit(X, y).n_iter_[0]
    model.fit(X[:, 1:], y + 1)  # other features and labels: from zeros
    np.testing.assert_array_equal(
        model.coef_, SoftmaxRegression(C=1.01, solver=solver, tol=1e-6).fit(X[:, 1:], y + 1).coef_
    )


def test_labels_of_any_kind() -> None:
    X, y = data(3)
    names = np.array(["b", "c", "a"])
    model = SoftmaxRegression().fit(X, names[y])
    np.testing.assert_array_equal(model.classes_, ["a", "b", "c"])
    numbers = SoftmaxRegression().fit(X, np.array([1, 2, 0])[y])
    np.testing.assert_array_equal(model.predict(X), model.classes_[numbers.predict(X)])
    weighted = SoftmaxRegression(class_weight={"a": 2.0}).fit(X, names[y])
    want = SoftmaxRegression().fit(X, names[y], np.where(names[y] == "a", 2.0, 1.0))
    np.testing.assert_array_equal(weighted.coef_, want.coef_)


def test_logarithms_of_probabilities_are_finite() -> None:
    X, y = data(3)
    model = SoftmaxRegression().fit(X, y)
    far = 1e6 * X[:5]
    assert (model.predict_proba(far) == 0).any()
    assert np.isfinite(model.predict_log_proba(far)).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_minimum_that_is_not_reached_gives_a_warning(solver: str) -> None:
    X, y = data(3)
    with pytest.warns(ConvergenceWarning, match=f"{solver} did not converge: after 1 iterations .* more iterations"):
        model = SoftmaxRegression(solver=solver, max_iter=1).fit(X, y)
    assert model.n_iter_ == [1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"C": 0}, "C is 0, expected > 0"),
        ({"C": -1.0}, "C is -1.0, expected > 0"),
        ({"C": np.nan}, "C is nan, expected > 0"),
        ({"C": "1"}, "C is '1', expected a number"),
        ({"tol": -1e-3}, "tol is -0.001, expected >= 0"),
        ({"max_iter": 0}, "max_iter is 0, expected >= 1"),
        ({"max_iter": 1.5}, "max_iter is 1.5, expected an int"),
        ({"solver": "sag"}, "solver is 'sag', expected one of 'lbfgs', 'newton-cg'"),
        ({"num_threads": 0}, "num_threads"),
        ({"class_weight": "heavy"}, "class_weight"),
    ],
)
def test_errors_of_parameters(options: dict[str, Any], message: str) -> None:
    X, y = data(3)
    with pytest.raises((TypeError, ValueError), match=message):
        SoftmaxRegression(**options).fit(X, y)


@pytest.mark.parametrize(
    "weights, message",
    [
        (np.ones(3), "sample_weight has shape"),
        (np.ones((300, 1)), "sample_weight"),
        (-np.ones(300), "expected weights >= 0"),
        (np.zeros(300), "at least one non-zero number"),
        (np.full(300, np.nan), "sample_weight contains NaN"),
    ],
)
def test_errors_of_weights(weights: np.ndarray, message: str) -> None:
    X, y = data(3)
    with pytest.raises(ValueError, match=message):
        SoftmaxRegression().fit(X, y, weights)


def test_one_class_is_not_enough() -> None:
    with pytest.raises(ValueError, match="y has one class, np.int64\\(7\\); expected two or more classes"):
        SoftmaxRegression().fit(np.zeros((3, 1)), [7, 7, 7])
