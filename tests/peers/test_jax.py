"""fastce.integrations.jax: values and gradients under jit and vmap against fastce's own functions, against optax, and
what it refuses. In double precision, which JAX enables for a process: `x64`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

jax = pytest.importorskip("jax", reason="jax is not installed")

import jax.numpy as jnp  # noqa: E402

from fastce.integrations.jax import cross_entropy  # noqa: E402

BATCH, ROWS, CLASSES = 3, 6, 4
ARRAYS = {"weight": np.array([1.0, 0.5, 2.0, 0.25]), "sample_weight": np.linspace(0, 2, ROWS)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum", "ignore_index": 1},
    "none": {"reduction": "none", "label_smoothing": 0.1},
    "weighted": {"ignore_index": 2, **ARRAYS},
    "weighted sum": {"reduction": "sum", **ARRAYS},
    "weighted none": {"reduction": "none", "ignore_index": None, **ARRAYS},
    "normalizer": {"normalizer": 3.5, "z_loss": 0.01, "temperature": 2.5},
}


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def data(rng: np.random.Generator, probabilities: bool, shape: tuple[int, ...]) -> tuple[Any, Any]:
    logits = rng.standard_normal((*shape, CLASSES))
    return logits, rng.dirichlet(np.ones(CLASSES), shape) if probabilities else rng.integers(0, CLASSES, shape)


def objective(logits: Any, targets: Any, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
    """A function of the loss whose derivative is not 1."""
    return jnp.sum(2 * cross_entropy(logits, targets, **arrays, **options) ** 2)


def exact(logits: Any, targets: Any, options: dict[str, Any]) -> tuple[Any, Any]:
    loss = fastce.cross_entropy(logits, targets, **options)
    return np.sum(2 * loss**2), fastce.cross_entropy_grad(logits, targets, **options, upstream=4 * loss)


def divided(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = {name: value for name, value in options.items() if name in ARRAYS}
    return arrays, {name: value for name, value in options.items() if name not in ARRAYS}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
def test_value_and_gradient(options: dict[str, Any], probabilities: bool, rng: np.random.Generator) -> None:
    logits, targets = data(rng, probabilities, (ROWS,))
    arrays, static = divided(options)
    function = jax.value_and_grad(lambda x, t, a: objective(x, t, a, static))
    found = jax.jit(function)(logits, targets, arrays)
    for got, wanted in zip(found, exact(logits, targets, options), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-14)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("probabilities", [False, True], ids=["index", "probabilities"])
@pytest.mark.parametrize("mapped", ["weight", "targets", "twice"])
def test_vmap(options: dict[str, Any], probabilities: bool, mapped: str, rng: np.random.Generator) -> None:
    """Weights mapped too, logits not mapped, or the mapped function mapped once more."""
    logits, targets = data(rng, probabilities, (2, BATCH, ROWS))
    arrays, static = divided(options)
    axes: dict[str, Any] = {name: None for name in arrays}
    if mapped == "weight":
        arrays = {name: np.stack([value, value[::-1], 2 * value]) for name, value in arrays.items()}
        axes = {name: 0 for name in arrays}
    logits_axis = None if mapped == "targets" else 0
    function = jax.value_and_grad(lambda x, t, a: objective(x, t, a, static))
    function = jax.vmap(function, in_axes=(logits_axis, 0, axes))
    if mapped == "twice":
        function = jax.vmap(function, in_axes=(0, 0, None))
    else:
        logits, targets = logits[0], targets[0]
    if mapped == "targets":
        logits = logits[0]
    losses, grads = jax.jit(function)(logits, targets, arrays)
    rows = targets.shape[: targets.ndim - 1 - probabilities]
    assert losses.shape == rows
    for at in np.ndindex(rows):
        own = {name: value[at] if axes[name] == 0 else value for name, value in arrays.items()}
        x = logits if mapped == "targets" else logits[at]
        loss, grad = exact(x, targets[at], own | static)
        np.testing.assert_allclose(losses[at], loss, rtol=1e-14)
        np.testing.assert_allclose(grads[at], grad, rtol=1e-13, atol=1e-300)


def test_vmap_of_the_upstream_alone(rng: np.random.Generator) -> None:
    logits, labels = data(rng, False, (ROWS,))
    jacobian = jax.jacrev(lambda x: cross_entropy(x, labels, reduction="none"))(logits)
    grad = fastce.cross_entropy_grad(logits, labels, reduction="none")
    np.testing.assert_array_equal(jacobian[np.arange(ROWS), np.arange(ROWS)], grad)
    assert np.count_nonzero(jacobian) == np.count_nonzero(grad)


def test_a_member_of_which_no_row_counts() -> None:
    """Its mean is NaN, and its gradient 0. The other members are as alone."""
    logits = np.zeros((2, 1, 2))
    labels = np.array([[-100], [1]])
    losses, grads = jax.vmap(jax.value_and_grad(cross_entropy))(logits, labels)
    np.testing.assert_array_equal(losses, [np.nan, np.log(2)])
    np.testing.assert_array_equal(grads, [[[0, 0]], [[0.5, -0.5]]])


def test_axes_dtypes_and_empty_batches(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((2, CLASSES, 5)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (2, 5))
    for axis in (1, -2):
        loss, grad = jax.value_and_grad(cross_entropy)(logits, labels, axis=axis)
        assert loss.dtype == grad.dtype == np.float32
        wanted = fastce.cross_entropy_with_grad(logits, labels, axis=1)
        np.testing.assert_array_equal(loss, wanted[0])
        np.testing.assert_allclose(grad, wanted[1], rtol=1e-6)
        losses = jax.vmap(lambda x, t, axis=axis: cross_entropy(x, t, axis=axis % 3 - 1))(logits, labels)
        np.testing.assert_allclose(losses.mean(), loss, rtol=1e-6)
    assert cross_entropy(np.zeros((2, 3), dtype=np.int64), [0, 1]).dtype == np.float64
    assert jax.vmap(cross_entropy)(np.zeros((0, 2, 3)), np.zeros((0, 2), dtype=int)).shape == (0,)
    assert np.isnan(cross_entropy(np.zeros((0, 3)), np.zeros(0, dtype=int)))


def test_labels_of_every_dtype() -> None:
    logits = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    wanted = cross_entropy(logits, [1, 0])
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64):
        assert cross_entropy(logits, np.array([1, 0], dtype=dtype)) == wanted
    assert cross_entropy(logits, np.array([[False, True], [True, False]])) == wanted


def test_confident_rows_keep_their_digits() -> None:
    optax = pytest.importorskip("optax", reason="optax is not installed")
    logits = jnp.array([[20.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    mine = cross_entropy(logits, [0, 1], reduction="none")
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    np.testing.assert_allclose(mine[0], np.log1p(np.exp(-20)), rtol=1e-6)


def test_the_arrays_are_those_of_xla(rng: np.random.Generator) -> None:
    """Large arrays, so that XLA computes in its own threads, one step after the other."""
    logits, labels = rng.standard_normal((300, 2000)), rng.integers(0, 2000, 300)
    step = jax.jit(lambda x, t: x - jax.grad(lambda x: cross_entropy(x, t, reduction="sum"))(x))
    x, wanted = jnp.asarray(logits), logits.copy()
    for _ in range(20):
        x = step(x, labels)
        wanted -= fastce.cross_entropy_grad(wanted, labels, reduction="sum")
    np.testing.assert_allclose(x, wanted, rtol=1e-9, atol=1e-12)


def test_two_copies_of_the_package_have_targets_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(Path(fastce.__file__).parent, tmp_path / "host" / "ce")
    (tmp_path / "host" / "__init__.py").touch()
    script = (
        f"import sys; sys.path.append({str(tmp_path)!r})\n"
        "import numpy as np, fastce.integrations.jax as a, host.ce.integrations.jax as b\n"
        "x = np.zeros((2, 2)), [0, 1]\n"
        "print(a.cross_entropy(*x) == b.cross_entropy(*x), b.TARGET)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.returncode) == ("True host_ce_cross_entropy\n", 0), done.stderr


@pytest.mark.filterwarnings("ignore")
def test_what_is_wrong_is_said() -> None:
    x, labels = jnp.zeros((2, 3)), jnp.array([0, 1])
    p = jnp.full((2, 3), 1 / 3)
    with pytest.raises(TypeError, match="return_stats is not an option"):
        cross_entropy(x, labels, return_stats=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'axes'"):
        cross_entropy(x, labels, axes=1)
    with pytest.raises(ValueError, match="label_smoothing is 2"):
        cross_entropy(x, labels, label_smoothing=2)
    with pytest.raises(ValueError, match="axis is 2, out of range for 2 dimensions"):
        cross_entropy(x, labels, axis=2)
    with pytest.raises(TypeError, match="logits has dtype bfloat16, expected float32 or float64"):
        cross_entropy(x.astype(jnp.bfloat16), labels)
    with pytest.raises(ValueError, match=r"targets has shape \(2, 2\), expected \(2,\) .* or \(2, 3\)"):
        cross_entropy(x, jnp.zeros((2, 2)))
    with pytest.raises(TypeError, match="z_loss is traced by JAX"):
        jax.jit(lambda z: cross_entropy(x, labels, z_loss=z))(0.1)
    with pytest.raises(TypeError, match=r"targets is differentiated by JAX.*stop_gradient\(targets\)"):
        jax.grad(lambda p: cross_entropy(x, p))(p)
    with pytest.raises(TypeError, match="sample_weight is differentiated by JAX"):
        jax.grad(lambda w: cross_entropy(x, labels, sample_weight=w))(jnp.ones(2))
    jax.grad(lambda p: cross_entropy(x, jax.lax.stop_gradient(p)))(p)
    with pytest.raises(ValueError, match="cannot be differentiated"):
        jax.jacrev(jax.grad(lambda x: cross_entropy(x, labels)))(x)
    computing = ValueError, jax.errors.JaxRuntimeError  # JAX has one or the other, depending on who waits
    with pytest.raises(computing, match=r"IndexError: targets\[1\] is 3, out of range for 3 classes"):
        cross_entropy(x, jnp.array([0, 3])).block_until_ready()
    with pytest.raises(computing, match=r"IndexError: targets\[1, 0\] is 3, out of range"):
        jax.vmap(lambda x, t: cross_entropy(x, t, weight=jnp.ones(3)))(x[:, None], jnp.array([[0], [3]]))
    with pytest.raises(computing, match=r"ValueError: weight has shape \(2,\)"):
        cross_entropy(x, labels, weight=jnp.ones(2)).block_until_ready()
