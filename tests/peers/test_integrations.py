"""fastce.integrations: each module where its library is installed, against the library's own loss, its gradient check
or its own objective. The gradient and hessian of the boosting libraries against exact ones. PyTorch's and JAX's are in
files of their own."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from oracle import LD, needs_longdouble

import fastce
from fastce.integrations.xgboost import sklearn_multiclass

ULPS = 6  # the contract's 4, and the roundings of a product of two such numbers and the factor
FOLDER = Path(fastce.__file__).parent / "integrations"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py"))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum", "ignore_index": 1},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "weighted": {"weight": np.array([1.0, 0.5, 2.0, 0.25]), "sample_weight": np.linspace(0.5, 2, 6)},
    "normalizer": {"normalizer": 3.5, "z_loss": 0.01, "temperature": 2.5},
}


def integration(name: str) -> ModuleType:
    library = {"mpi": "mpi4py"}.get(name, name)
    pytest.importorskip(library, reason=f"{library} is not installed")
    return importlib.import_module(f"fastce.integrations.{name}")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_fastce_imports_none_of_them() -> None:
    script = "import sys, fastce; print([name for name in sys.modules if 'integrations' in name])"
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str) -> None:
    module = integration(name)
    failures: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    for public in module.__all__:
        for test in doctest.DocTestFinder().find(getattr(module, public), public, module=False, globs={}):
            runner.run(test, out=failures.append)
    assert runner.tries > 0
    assert not failures, "".join(failures)


# --- what is differentiated without an integration --------------------------------------------------------------------


def differentiated(library: str, function: Any) -> None:
    """Let a library differentiate, or trace, a function of one array."""
    pytest.importorskip(library.partition(".")[0], reason=f"{library} is not installed")
    x = np.zeros((2, 3))
    if library == "autograd":
        import autograd

        autograd.grad(function)(x)
    elif library == "torch":
        import torch

        function(torch.from_numpy(x).requires_grad_())
    else:
        import jax

        {"jax": jax.grad, "jax.jit": jax.jit, "jax.vmap": jax.vmap}[library](function)(x)


@pytest.mark.parametrize("library", ["autograd", "jax", "jax.jit", "jax.vmap", "torch"])
def test_a_constant_in_place_of_a_derivative_is_refused(library: str) -> None:
    """The function that NumPy's arrays are for would cut it off from what is differentiated."""
    calls: list[tuple[str, Any]] = [
        ("logits", lambda x: fastce.cross_entropy(x, [0, 1])),
        ("targets", lambda x: fastce.cross_entropy(np.ones((2, 3)), x)),
        ("weight", lambda x: fastce.cross_entropy(np.ones((2, 3)), [0, 1], weight=x[0])),
        ("z_loss", lambda x: fastce.cross_entropy(np.ones((2, 3)), [0, 1], z_loss=x.sum())),
        ("x", lambda x: fastce.softmax(x)),
        ("upstream", lambda x: fastce.softmax_grad(x, np.ones((2, 3)))),
    ]
    for name, function in calls:
        if library == "jax.vmap" and name in ("weight", "z_loss"):
            continue  # vmap maps the rows
        with pytest.raises(TypeError, match=f"{name} (is|requires) .*: use .*integrations.{library.partition('.')[0]}"):
            differentiated(library, function)


def test_tensors_are_arrays_where_torch_records_nothing() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.nn.Parameter(torch.zeros(2, 3))
    with torch.no_grad():
        assert fastce.cross_entropy(x, [0, 1]) == fastce.cross_entropy(x.detach(), [0, 1])
    with pytest.raises(TypeError, match=r"or pass logits\.detach\(\)"):
        fastce.cross_entropy(x, [0, 1])


# --- autograd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_autograd_differentiates_through_it(options: dict[str, Any], rng: np.random.Generator) -> None:
    cross_entropy = integration("autograd").cross_entropy
    import autograd
    import autograd.numpy as anp
    from autograd.test_util import check_grads

    x, w, labels = rng.standard_normal((6, 3)), rng.standard_normal((3, 4)), rng.integers(0, 4, 6)

    def loss(w: Any) -> Any:
        return anp.sum(anp.sin(cross_entropy(anp.tanh(anp.dot(x, w)), labels, **options)))

    check_grads(loss, modes=["rev"], order=1)(w)
    logits = np.float32(x @ w)
    grad = autograd.grad(lambda logits: anp.sum(cross_entropy(logits, labels, **options)))(logits)
    assert grad.dtype == np.float32
    np.testing.assert_array_equal(grad, fastce.cross_entropy_grad(logits, labels, **options))


def test_autograd_has_no_stats_to_return() -> None:
    with pytest.raises(TypeError, match="return_stats is not an option"):
        integration("autograd").cross_entropy(np.zeros((1, 2)), [0], return_stats=True)


def test_autograd_refuses_what_it_cannot_differentiate() -> None:
    cross_entropy = integration("autograd").cross_entropy
    import autograd

    x, c, labels = np.zeros((1, 2)), np.array([[0.5, 0.5]]), np.array([0])
    with pytest.raises(TypeError, match="targets is differentiated"):
        autograd.grad(lambda c: cross_entropy(x, c))(c)
    with pytest.raises(TypeError, match="weight is differentiated"):
        autograd.grad(lambda w: cross_entropy(x, labels, weight=w))(np.ones(2))
    with pytest.raises(TypeError, match="differentiated twice"):
        autograd.hessian(lambda x: cross_entropy(x, labels))(x)


def test_autograd_takes_its_arguments_by_name() -> None:
    cross_entropy = integration("autograd").cross_entropy
    import autograd

    grad = autograd.grad(lambda x: cross_entropy(logits=x, targets=np.array([0])))(np.zeros((1, 2)))
    np.testing.assert_array_equal(grad, [[-0.5, 0.5]])


# --- SciPy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("intercept", [False, True])
def test_scipy_objective_has_the_gradient_of_its_value(sparse: bool, intercept: bool, rng: np.random.Generator) -> None:
    softmax_regression = integration("scipy").softmax_regression
    from scipy.optimize import check_grad
    from scipy.sparse import csr_array

    x, labels = rng.standard_normal((9, 3)), rng.integers(0, 4, 9)
    x[x < -0.5] = 0
    objective = softmax_regression(
        csr_array(x) if sparse else x, labels, 4, intercept=intercept, l2=0.3, sample_weight=rng.random(9)
    )
    theta = rng.standard_normal(4 * (3 + intercept))
    error = check_grad(lambda t: objective(t)[0], lambda t: objective(t)[1], theta, epsilon=1e-6)
    assert error < 1e-5
    before = theta.copy()
    objective(theta)
    np.testing.assert_array_equal(theta, before)


class Table:
    """Like a pandas DataFrame: products are tables again, and arrays made of them are read-only."""

    def __init__(self, values: Any) -> None:
        self.values, self.shape = np.array(values), np.shape(values)
        self.values.flags.writeable = False

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __matmul__(self, other: Any) -> Table:
        return Table(self.values @ other)

    @property
    def T(self) -> Table:
        return Table(self.values.T)


def test_scipy_objective_takes_tables(rng: np.random.Generator) -> None:
    softmax_regression = integration("scipy").softmax_regression
    x, labels, theta = rng.standard_normal((9, 3)), rng.integers(0, 4, 9), rng.standard_normal(16)
    loss, grad = softmax_regression(x, labels, 4)(theta)
    loss_of_table, grad_of_table = softmax_regression(Table(x), labels, 4)(theta)
    assert loss_of_table == loss
    np.testing.assert_array_equal(grad_of_table, grad)


def test_scipy_objective_says_what_is_wrong() -> None:
    softmax_regression = integration("scipy").softmax_regression
    x, labels = np.zeros((2, 3)), [0, 1]
    with pytest.raises(ValueError, match=r"features has shape \(3,\), expected \(rows, columns\)"):
        softmax_regression(x[0], labels, 2)
    for l2 in (-1, np.nan):
        with pytest.raises(ValueError, match=f"l2 is {l2}"):
            softmax_regression(x, labels, 2, l2=l2)
    for name in ("axis", "out", "return_stats", "smoothing"):
        with pytest.raises(TypeError, match=rf"\b{name}\b.*option|option '{name}'"):
            softmax_regression(x, labels, 2, **{name: 0})
    with pytest.raises(ValueError, match="reduction is 'none'"):
        softmax_regression(x, labels, 2, reduction="none")
    for intercept, size in ((True, 8), (False, 6)):
        with pytest.raises(ValueError, match=f"theta has 7 numbers, expected {size}"):
            softmax_regression(x, labels, 2, intercept=intercept)(np.zeros(7))


def test_scipy_finds_scikit_learns_logistic_regression() -> None:
    softmax_regression = integration("scipy").softmax_regression
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from scipy.optimize import minimize
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    x, labels = load_iris(return_X_y=True)
    weight = np.linspace(0.5, 1.5, len(x))
    objective = softmax_regression(x.tolist(), labels, 3, l2=1 / weight.sum(), sample_weight=weight)
    found = minimize(objective, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-7})
    theta = found.x.reshape(3, 5)
    theirs = LogisticRegression(tol=1e-8, max_iter=1000).fit(x, labels, sample_weight=weight)
    np.testing.assert_allclose(theta[:, :4], theirs.coef_, atol=1e-4)
    bias = theta[:, 4] - theta[:, 4].mean()  # equal biases for all classes change nothing
    np.testing.assert_allclose(bias, theirs.intercept_ - theirs.intercept_.mean(), atol=1e-3)


# --- gradient boosting ------------------------------------------------------------------------------------------------


# Needs no library but NumPy. Both boosting libraries get the same gradient, and hessians that differ by a factor.
HESS_FACTOR = 2


@needs_longdouble
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_and_hessian_are_exact_however_confident_the_scores(
    classes: int, dtype: type, order: Any, weighted: bool, rng: np.random.Generator
) -> None:
    scores = np.array(rng.standard_normal((60, classes)), dtype=dtype, order=order)
    labels = rng.integers(0, classes, 60)
    rows = np.arange(60)
    scores[rows[:20], labels[:20]] += np.linspace(1, 60, 20).astype(dtype)  # right, and more and more confident
    scores[rows[20:40], (labels[20:40] + 1) % classes] += np.linspace(1, 60, 20).astype(dtype)  # wrong, and confident
    scores[40] = 0  # ties
    weight = rng.random(60) if weighted else np.ones(60)

    x = scores.astype(LD)
    e = np.exp(x - x.max(axis=1, keepdims=True))
    top = x.argmax(axis=1)
    e[rows, top] = 0
    tail = e.sum(axis=1, keepdims=True)
    e[rows, top] = 1
    p, other = e / (1 + tail), (1 + tail - e) / (1 + tail)
    other[rows, top] = (tail / (1 + tail))[:, 0]
    grad = p.copy()
    grad[rows, labels] = -other[rows, labels]
    hess = p * other
    w = weight.astype(dtype).astype(LD)[:, None]

    found = sklearn_multiclass(labels.astype(np.float32), scores, weight if weighted else None)
    # The error of an exponential grows with its exponent. The error of a sum is mostly that of its largest term.
    distance = x.max(axis=1, keepdims=True) - x
    runner_up = np.where(distance == 0, np.inf, distance).min(axis=1, keepdims=True)
    distance = np.where(distance == 0, np.where(np.isfinite(runner_up), runner_up, 0), distance)
    for got, wanted in zip(found, (grad * w, HESS_FACTOR * hess * w), strict=True):
        assert got.dtype == dtype
        assert got.flags.f_contiguous == scores.flags.f_contiguous
        error = np.abs(got - wanted) / np.abs(wanted)
        assert (error <= (ULPS + 2 * distance) * np.finfo(dtype).eps).all()


def test_boosting_refuses_labels_that_are_no_classes() -> None:
    scores = np.zeros((2, 3))
    for labels in ([0, 0.5], [0, np.nan]):
        with pytest.raises(ValueError, match="labels are not integers"):
            sklearn_multiclass(np.array(labels), scores)
    for labels in ([0, 3], [0, -100]):
        with pytest.raises(IndexError, match=r"targets\[1\] is"):
            sklearn_multiclass(np.array(labels, dtype=np.float32), scores)
    with pytest.raises(ValueError, match="is num_class set"):
        sklearn_multiclass(np.array([0]), scores[0])


def test_boosting_of_infinite_scores_is_nan_in_their_rows_without_a_warning() -> None:
    scores = np.array([[np.inf, 0.0], [np.nan, 0.0], [1.0, 0.0]])
    grad, hess = sklearn_multiclass(np.array([0, 1, 1]), scores)
    alone = sklearn_multiclass(np.array([1]), scores[2:])
    for got, last in zip((grad, hess), alone, strict=True):
        assert np.isnan(got[:2]).all()
        np.testing.assert_array_equal(got[2:], last)


@pytest.fixture
def data(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = rng.standard_normal((400, 5))
    return x, np.digitize(x[:, 0] + x[:, 1] ** 2 + rng.standard_normal(400) / 4, [0, 1]), rng.uniform(0.5, 2, 400)


@pytest.mark.parametrize("weighted", [False, True])
def test_lightgbm_trains_the_model_of_its_own_objective(weighted: bool, data: Any) -> None:
    module = integration("lightgbm")
    import lightgbm

    x, labels, weight = data

    def scores(objective: Any) -> np.ndarray:
        params = {"objective": objective, "num_class": 3, "num_threads": 1, "verbosity": -1, "num_leaves": 7}
        train = lightgbm.Dataset(x, labels, weight=weight if weighted else None)
        return lightgbm.train(params | {"boost_from_average": False}, train, 10).predict(x, raw_score=True)

    mine, theirs = scores(module.multiclass), scores("multiclass")
    assert (theirs.argmax(axis=1) == labels).mean() > 0.8
    np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)

    pytest.importorskip("sklearn", reason="scikit-learn is not installed, which the classifier needs")
    options = {"n_estimators": 10, "num_leaves": 7, "n_jobs": 1, "verbosity": -1}
    model = lightgbm.LGBMClassifier(objective=module.sklearn_multiclass, **options)
    model.fit(x, labels, sample_weight=weight if weighted else None)
    np.testing.assert_allclose(model.predict(x, raw_score=True), theirs, rtol=1e-9, atol=1e-9)


def test_lightgbm_predicts_raw_scores(data: Any) -> None:
    """As the docstring says, and `fastce.softmax` gives the probabilities of LightGBM's own objective."""
    module = integration("lightgbm")
    import lightgbm

    x, labels, _ = data
    params = {"num_class": 3, "num_threads": 1, "verbosity": -1, "num_leaves": 7, "boost_from_average": False}
    mine, theirs = (
        lightgbm.train(params | {"objective": objective}, lightgbm.Dataset(x, labels), 10)
        for objective in (module.multiclass, "multiclass")
    )
    scores = mine.predict(x)
    np.testing.assert_array_equal(scores, mine.predict(x, raw_score=True))
    np.testing.assert_allclose(fastce.softmax(scores), theirs.predict(x), rtol=1e-9, atol=1e-9)

    pytest.importorskip("sklearn", reason="scikit-learn is not installed, which the classifier needs")
    model = lightgbm.LGBMClassifier(objective=module.sklearn_multiclass, n_estimators=10, n_jobs=1, verbosity=-1)
    model.fit(x, labels)
    for method in (model.predict, model.predict_proba):
        with pytest.warns(UserWarning, match="raw scores"):
            np.testing.assert_array_equal(method(x), model.predict(x, raw_score=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_xgboost_trains_the_model_of_its_own_objective(weighted: bool, data: Any) -> None:
    module = integration("xgboost")
    import xgboost

    x, labels, weight = data
    weight = weight if weighted else None
    train = xgboost.DMatrix(x, labels, weight=weight)
    params = {"num_class": 3, "nthread": 1, "max_depth": 3, "base_score": 0.5, "disable_default_eval_metric": True}

    mine = xgboost.train(params, train, 10, obj=module.multiclass).predict(train, output_margin=True)
    theirs = xgboost.train(params | {"objective": "multi:softprob"}, train, 10).predict(train, output_margin=True)
    assert (theirs.argmax(axis=1) == labels).mean() > 0.8
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)  # sums of float32 in another order

    pytest.importorskip("sklearn", reason="scikit-learn is not installed, which the classifier needs")
    model = xgboost.XGBClassifier(objective=module.sklearn_multiclass, n_estimators=10, max_depth=3, n_jobs=1)
    model.fit(x, labels, sample_weight=weight)
    assert (model.predict(x) == theirs.argmax(axis=1)).mean() > 0.98


def test_xgboost_predicts_raw_scores_as_margins(data: Any) -> None:
    """As the docstring says, and `fastce.softmax` gives the probabilities of XGBoost's own objective."""
    module = integration("xgboost")
    import xgboost

    x, labels, _ = data
    train = xgboost.DMatrix(x, labels)
    params = {"num_class": 3, "nthread": 1, "max_depth": 3, "base_score": 0.5, "disable_default_eval_metric": True}
    mine = xgboost.train(params, train, 10, obj=module.multiclass)
    theirs = xgboost.train(params | {"objective": "multi:softprob"}, train, 10)
    scores = mine.predict(train, output_margin=True)
    np.testing.assert_allclose(fastce.softmax(scores), theirs.predict(train), rtol=1e-4, atol=1e-4)

    pytest.importorskip("sklearn", reason="scikit-learn is not installed, which the classifier needs")
    model = xgboost.XGBClassifier(objective=module.sklearn_multiclass, n_estimators=10, max_depth=3, n_jobs=1)
    model.fit(x, labels)
    scores = model.predict(x, output_margin=True)
    np.testing.assert_array_equal(model.predict(x), fastce.predict(scores))
    np.testing.assert_allclose(model.predict_proba(x), fastce.softmax(scores), rtol=1e-5)
    if int(xgboost.__version__.split(".")[0]) == 3:
        np.testing.assert_array_equal(mine.predict(train), fastce.predict(mine.predict(train, output_margin=True)))
