"""The C-level surface, cimported: cython_example/ is copied to another place, built there against the installed fastce,
imported, and compared with the Python functions. The signatures are pinned: others compile against them."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from installed import is_installed

import fastce

EXAMPLE = Path(__file__).resolve().parent / "cython_example"
PACKAGE = Path(fastce.__file__).resolve().parent
EPS = np.finfo(np.float64).eps

BATCH = (
    "int ({T} const *, Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, int64_t const *, int64_t, double const *, "
    "double const *, double, double, "
)
SIGNATURES = {
    "merge_stats": "void (double *, double *, double, double)",
    "loss_from_stats": "double (double, double, double)",
    "count_labels": "Py_ssize_t (int64_t const *, Py_ssize_t, Py_ssize_t, int64_t)",
}
for suffix, T in (("f32", "float"), ("f64", "double")):
    SIGNATURES |= {
        f"softmax_stats_{suffix}": f"void ({T} const *, Py_ssize_t, double *, double *)",
        f"row_loss_{suffix}": f"double ({T} const *, Py_ssize_t, int64_t)",
        f"row_loss_and_grad_{suffix}": f"double ({T} const *, Py_ssize_t, int64_t, double, {T} *)",
        f"row_grad_{suffix}": f"void ({T} const *, Py_ssize_t, int64_t, double, double, double, {T} *)",
        f"cross_entropy_{suffix}": BATCH.format(T=T) + f"double *, {T} *, {T} *, {T} *, int)",
        f"cross_entropy_with_grad_{suffix}": BATCH.format(T=T)
        + f"double, double const *, {T} *, Py_ssize_t, Py_ssize_t, double *, {T} *, int)",
        f"cross_entropy_grad_{suffix}": BATCH.format(T=T)
        + f"double, double const *, {T} const *, {T} const *, {T} *, Py_ssize_t, Py_ssize_t, int)",
    }


def exported() -> dict[str, str]:
    name = ctypes.pythonapi.PyCapsule_GetName
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return {key: name(capsule).decode() for key, capsule in fastce._kernels.__pyx_capi__.items()}


def test_signatures_are_the_ones_that_others_compiled_against() -> None:
    found = {name: re.sub(r"\bPY_LONG_LONG\b", "int64_t", text) for name, text in exported().items()}
    assert found == SIGNATURES


def test_the_pxd_declares_what_is_exported_and_nothing_else() -> None:
    text = (PACKAGE / "_kernels.pxd").read_text(encoding="utf-8")
    declared = re.findall(r"^cdef \w+ (\w+)\(", text, flags=re.MULTILINE)
    assert sorted(declared) == sorted(SIGNATURES)
    assert text.count("noexcept nogil") == len(declared), "errors are returned, and the GIL is not needed"


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    for module in ("pip", "setuptools", "Cython"):
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
    where = tmp_path_factory.mktemp("consumer")
    shutil.copytree(EXAMPLE, where / "src")
    environment = {name: value for name, value in os.environ.items() if name != "FASTCE_ISA"}
    # Where the installed package lies: for a regular installation that is where Cython looks anyway.
    environment["PYTHONPATH"] = str(PACKAGE.parent)
    command = "-m pip -q install --no-build-isolation --no-deps --no-index --disable-pip-version-check --target".split()
    done = subprocess.run(
        [sys.executable, *command, str(where / "site"), "./src"],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (where / "site").glob("softmax_regression*.*d" if os.name == "nt" else "softmax_regression*.so")
    spec = importlib.util.spec_from_file_location("softmax_regression", built)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_training_loop_without_the_gil(consumer: ModuleType, threads: int) -> None:
    rng = np.random.default_rng(11)
    x, labels, classes, rate = rng.standard_normal((500, 7)), rng.integers(0, 5, 500), 5, 0.3
    x[np.arange(500), labels] += 2
    theta, losses = np.zeros((classes, 8)), np.empty(20)
    consumer.fit(x, labels, theta, np.empty((500, classes)), losses, rate, threads)

    wanted, by_hand = [], np.zeros((classes, 8))
    for _ in losses:
        loss, dz = fastce.cross_entropy_with_grad(x @ by_hand[:, :-1].T + by_hand[:, -1], labels)
        wanted.append(loss)
        by_hand -= rate * np.column_stack([dz.T @ x, dz.sum(axis=0)])
    np.testing.assert_allclose(losses, wanted, rtol=1e-12)
    np.testing.assert_allclose(theta, by_hand, rtol=1e-10, atol=1e-13)
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_a_wrong_label_is_an_error_and_nothing_is_written(consumer: ModuleType) -> None:
    x, theta, z, losses = np.ones((2, 3)), np.zeros((4, 4)), np.empty((2, 4)), np.zeros(3)
    with pytest.raises(IndexError):
        consumer.fit(x, np.array([0, 4]), theta, z, losses, 1.0)
    assert not theta.any() and not z.any(), "the scores of zero parameters are left as they were"


@pytest.mark.slow
@pytest.mark.parametrize("classes", [1, 2, 3, 10, 17, 100, 1000, 5000, 32000])
def test_rows(consumer: ModuleType, classes: int) -> None:
    rng = np.random.default_rng(classes)
    z, labels = rng.standard_normal((20, classes)) * 5, rng.integers(0, classes, 20)
    z[0], z[1, : classes // 2], z[2, 0] = 3.0, -np.inf, 40
    labels[1] = classes - 1
    want, want_grad = fastce.cross_entropy_with_grad(z, labels, reduction="sum")
    grad = np.empty_like(z)
    assert consumer.by_rows(z, labels, grad) == pytest.approx(want, rel=8 * EPS)
    np.testing.assert_allclose(grad, want_grad, rtol=50 * EPS, atol=0)
    in_place = z.copy()
    assert consumer.by_rows(in_place, labels, in_place) == pytest.approx(want, rel=8 * EPS)
    np.testing.assert_array_equal(in_place, grad)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 3, 500, 999])
@pytest.mark.parametrize("label", [0, 499, 999])
@pytest.mark.parametrize("kind", ["plain", "confident", "masked part", "masked other part", "all masked", "nan"])
def test_parts_of_a_row_merge(consumer: ModuleType, cut: int, label: int, kind: str) -> None:
    z = np.random.default_rng(cut).standard_normal(1000)
    if kind == "confident":
        z[label] = 60
    if kind in ("masked part", "all masked"):
        z[:cut] = -np.inf
    if kind in ("masked other part", "all masked"):
        z[cut:] = -np.inf
    if kind == "nan":
        z[0] = np.nan
    grad = np.empty_like(z)
    loss, whole, lse = consumer.in_two_parts(z, label, cut, grad)
    want, want_grad = fastce.cross_entropy_with_grad(z, np.array(label))
    np.testing.assert_allclose([loss, whole], want, rtol=(8 + 60) * EPS)  # the gap between the parts counts
    np.testing.assert_allclose(lse, fastce.logsumexp(z), rtol=4 * EPS)
    np.testing.assert_allclose(grad, want_grad, rtol=200 * EPS)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["C", "F", "reversed"])
def test_forward_with_every_option_then_backward(consumer: ModuleType, order: str) -> None:
    rng = np.random.default_rng(3)
    z, labels = rng.standard_normal((300, 50)), rng.integers(0, 50, 300)
    z = np.asfortranarray(z) if order == "F" else z[::-1, ::-1] if order == "reversed" else z
    weight, sample = rng.uniform(0.5, 2, 50), rng.uniform(0.5, 2, 300)
    row_max, tail, grad = np.empty(300), np.empty(300), np.full_like(z, 7.0)
    total = consumer.forward_then_backward(z, labels, weight, sample, row_max, tail, grad)
    options = dict(weight=weight, sample_weight=sample, ignore_index=0, label_smoothing=0.1, z_loss=1e-3)
    want, stats = fastce.cross_entropy(z, labels, reduction="sum", return_stats=True, **options)
    assert total == want
    np.testing.assert_array_equal([row_max, tail], stats)
    want_grad = fastce.cross_entropy_grad(z, labels, reduction="sum", stats=stats, **options)
    np.testing.assert_array_equal(grad, want_grad)
    with pytest.raises(IndexError):
        consumer.forward_then_backward(z, labels + 1, weight, sample, row_max, tail, grad)
    np.testing.assert_array_equal(grad, want_grad)


# ---------------------------------------------------------------------------------------------------------------------
# The functions themselves, called through their addresses: both dtypes, every output there or not
# ---------------------------------------------------------------------------------------------------------------------


def function(name: str) -> Callable[..., Any]:
    capsule = fastce._kernels.__pyx_capi__[name]
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    name_of = ctypes.pythonapi.PyCapsule_GetName
    name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    kinds = {"int": ctypes.c_int, "double": ctypes.c_double, "Py_ssize_t": ctypes.c_ssize_t, "int64_t": ctypes.c_int64}
    result, arguments = SIGNATURES[name].removesuffix(")").split(" (")
    types = [kinds.get(kind, ctypes.c_void_p) for kind in arguments.split(", ")]
    return ctypes.CFUNCTYPE(kinds.get(result), *types)(pointer(capsule, name_of(capsule)))


def address(a: np.ndarray | None) -> int | None:
    return None if a is None else a.ctypes.data


@pytest.mark.parametrize("classes", [5, 50, 300, 5000])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.1}, {"z_loss": 0.01}]
)
@pytest.mark.parametrize("suffix", ["f32", "f64"])
def test_batches_with_and_without_each_output(suffix: str, options: dict[str, Any], classes: int) -> None:
    rng, dtype, rows = np.random.default_rng(classes), {"f32": np.float32, "f64": np.float64}[suffix], 12
    z, labels = rng.standard_normal((rows, classes)).astype(dtype), rng.integers(0, classes, rows)
    labels[[0, 7, 11]] = -100
    z[7] = np.nan
    weight = rng.uniform(0.5, 2, classes) if "weight" in options else None
    sample, upstream = rng.uniform(0.5, 2, rows), rng.uniform(0.5, 2, rows)
    options = options | {"weight": weight, "sample_weight": sample, "reduction": "none"}
    losses, stats = fastce.cross_entropy(z, labels, return_stats=True, **options)
    grad = fastce.cross_entropy_with_grad(z, labels, upstream=upstream, **options)[1]
    given = fastce.cross_entropy_grad(z, labels, upstream=upstream, stats=stats, **options)
    total = np.empty(1)

    def inputs(logits: np.ndarray) -> tuple[Any, ...]:
        numbers = options.get("label_smoothing", 0.0), options.get("z_loss", 0.0)
        vectors = address(weight), address(sample)
        return (address(logits), rows, classes, *logits.strides, address(labels), -100, *vectors, *numbers)

    for n in range(16):
        wanted = [np.full(k, 7.0, kind) if n >> bit & 1 else None for bit, k, kind in ((0, 1, float), (1, rows, dtype))]
        states = [np.full(rows, 7.0, dtype) if n >> bit & 1 else None for bit in (2, 3)]
        outputs = [address(a) for a in (*wanted, *states)]
        assert function(f"cross_entropy_{suffix}")(*inputs(z), *outputs, 1 + n % 2) == 0
        for got, want in zip([wanted[1], *states], [losses, *stats], strict=True):
            assert got is None or np.array_equal(got, want, equal_nan=True)
        in_place = z.copy()
        where = (address(in_place), *in_place.strides)
        outputs = [address(a) for a in wanted]
        assert function(f"cross_entropy_with_grad_{suffix}")(
            *inputs(in_place), 1.0, address(upstream), *where, *outputs, 1 + n % 2
        ) == 0  # fmt: skip
        np.testing.assert_array_equal(in_place, grad)
        if wanted[0] is not None:
            total = wanted[0]
    np.testing.assert_allclose(total, losses.sum(dtype=np.float64), rtol=1e-5 if suffix == "f32" else 1e-13)
    out = np.empty_like(z)
    where = (*map(address, stats), address(out), *out.strides)
    assert function(f"cross_entropy_grad_{suffix}")(*inputs(z), 1.0, address(upstream), *where, 0) == 0
    np.testing.assert_array_equal(out, given)
