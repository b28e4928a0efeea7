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
README = (EXAMPLE.parents[2] / "README.md").read_text(encoding="utf-8")
EPS = np.finfo(np.float64).eps

STRUCT = "struct __pyx_t_6fastce_8_request_"
SIGNATURES = {
    "run": f"int ({STRUCT}Request const *)",
    "count_labels": f"Py_ssize_t ({STRUCT}Matrix const *, Py_ssize_t, Py_ssize_t, int64_t, int)",
    "merge_stats": "void (double *, double *, double, double)",
    "loss_from_stats": "double (double, double, double)",
}
for suffix, T in (("f32", "float"), ("f64", "double")):
    SIGNATURES |= {
        f"softmax_stats_{suffix}": f"void ({T} const *, Py_ssize_t, double *, double *)",
        f"row_loss_{suffix}": f"double ({T} const *, Py_ssize_t, int64_t)",
        f"row_loss_and_grad_{suffix}": f"double ({T} const *, Py_ssize_t, int64_t, double, {T} *)",
        f"row_grad_{suffix}": f"void ({T} const *, Py_ssize_t, int64_t, double, double, double, {T} *)",
    }

REQUEST = re.sub(r"#.*", "", (PACKAGE / "_request.pxd").read_text(encoding="utf-8"))
TYPES = {
    "int": ctypes.c_int,
    "bint": ctypes.c_int,
    "size_t": ctypes.c_size_t,
    "Py_ssize_t": ctypes.c_ssize_t,
    "int64_t": ctypes.c_int64,
    "double": ctypes.c_double,
}


def names_of(first: str) -> list[str]:
    """The names of the enum that begins with this one."""
    (body,) = re.findall(rf"^cdef enum:\s+({first}\b.*?)\n\n", REQUEST, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"\w+", body)


def struct(name: str) -> type[ctypes.Structure]:
    """A struct of _request.pxd, as others compile it."""
    (body,) = re.findall(rf"^cdef struct {name}:\n(.*?)\n\n", REQUEST, flags=re.MULTILINE | re.DOTALL)
    declared = re.findall(r"^    (?:const )?(\w+) (\**)(\w+) *$", body, flags=re.MULTILINE)
    assert len(declared) == len([line for line in body.splitlines() if line.strip()])
    fields = [(field, ctypes.c_void_p if pointer else TYPES[kind]) for kind, pointer, field in declared]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


OPERATIONS, DTYPES = names_of("CROSS_ENTROPY"), names_of("NO_DTYPE")
TYPES["Matrix"] = Matrix = struct("Matrix")
Request = struct("Request")


def test_the_order_of_what_others_compiled_changes_with_the_size_only() -> None:
    """`run` refuses a request of another size. Of the same size, a field or a number in another place would be read as
    something else. This list is therefore only ever added to, at the end of a group."""
    assert [name for name, _ in Matrix._fields_] == "data row_stride class_stride blocks rows_per_block dtype".split()
    assert [name for name, _ in Request._fields_] == [
        "size", "operation", "rows", "classes", "logits", "labels", "targets", "vectors", "y", "upstream",
        "ignore_index", "has_ignore_index", "counted", "weight", "pos_weight", "sample_weight", "label_smoothing",
        "z_loss", "temperature", "softcap", "scale", "flush_below", "stats_given", "num_threads", "grad", "hess",
        "total", "losses", "row_max", "tail", "first_max", "ranks", "entropies", "confidences",
    ]  # fmt: skip
    assert OPERATIONS == [
        "CROSS_ENTROPY", "SOFTMAX", "LOG_SOFTMAX", "LOGSUMEXP", "SOFTMAX_GRAD", "LOG_SOFTMAX_GRAD", "SIGMOID_TWO_TERM",
        "SOFTMAX_TWO_TERM", "ARGMAX", "ENTROPY", "EVALUATE", "KL_OF_LOGITS", "KL_OF_PROBABILITIES",
    ]  # fmt: skip
    assert DTYPES == ["NO_DTYPE", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64", "F32", "F64", "F16", "BF16"]


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


def built(where: Path, name: str) -> ModuleType:
    """The module that the project in where/src builds, installed as the README says."""
    for module in ("pip", "setuptools", "Cython"):
        if not is_installed(module):
            pytest.skip(f"{module} is not installed")
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
    (library,) = (where / "site").glob(f"{name}*.*d" if os.name == "nt" else f"{name}*.so")
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def consumer(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    where = tmp_path_factory.mktemp("consumer")
    shutil.copytree(EXAMPLE, where / "src")
    return built(where, "softmax_regression")


@pytest.mark.slow
def test_the_example_of_the_readme_builds_and_runs_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for language, file in (("cython", "loss.pyx"), ("toml", "pyproject.toml")):
        (block,) = re.findall(rf"^```{language}\n(# {re.escape(file)}\n.*?)^```$", README, flags=re.M | re.S)
        (tmp_path / "src" / file).write_text(block)
    loss = built(tmp_path, "loss")
    rng = np.random.default_rng(4)
    x, labels = rng.standard_normal((20, 7), dtype=np.float32), rng.integers(0, 7, 20)
    grad = np.empty_like(x)
    total = loss.loss_and_grad(x, labels, grad)
    want, want_grad = fastce.cross_entropy_with_grad(x, labels, reduction="sum")
    assert np.float32(total) == want
    np.testing.assert_array_equal(grad, want_grad)
    with pytest.raises(ValueError, match="error 1"):
        loss.loss_and_grad(x, labels + 1, grad)


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

FLOATS = {"f32": np.float32, "f64": np.float64}
CODES = {np.dtype(f"{kind}{size}"): DTYPES.index(f"{kind.upper()}{8 * size}") for kind in "iu" for size in (1, 2, 4, 8)}
CODES |= {np.dtype(dtype): DTYPES.index(name.upper()) for name, dtype in (FLOATS | {"f16": np.float16}).items()}


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


def matrix(a: np.ndarray | None) -> Matrix:
    if a is None:
        return Matrix()
    return Matrix(a.ctypes.data, a.strides[0], a.strides[1] if a.ndim > 1 else 0, None, 0, CODES[a.dtype])


def run(**fields: Any) -> int:
    """Runs a request with these fields, arrays by their addresses; the others are what `defaults` sets."""
    logits = fields["logits"] if "logits" in fields else fields["y"]
    request = Request(ctypes.sizeof(Request), 0, *logits.shape)
    request.ignore_index, request.has_ignore_index, request.counted = -100, 1, -1
    request.scale = request.temperature = 1
    for name, value in fields.items():
        is_matrix = isinstance(getattr(request, name), Matrix)
        if is_matrix or value is None or isinstance(value, np.ndarray):
            value = matrix(value) if is_matrix else address(value)
        setattr(request, name, value)
    return int(function("run")(ctypes.byref(request)))


@pytest.mark.parametrize("classes", [5, 50, 300, 5000])
@pytest.mark.parametrize(
    "options", [{}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.1}, {"z_loss": 0.01}]
)
@pytest.mark.parametrize("suffix", FLOATS)
def test_batches_with_and_without_each_output(suffix: str, options: dict[str, Any], classes: int) -> None:
    rng, dtype, rows = np.random.default_rng(classes), FLOATS[suffix], 12
    z, labels = rng.standard_normal((rows, classes)).astype(dtype), rng.integers(0, classes, rows)
    labels[[0, 7, 11]] = -100
    z[7] = np.nan
    weight = rng.uniform(0.5, 2, classes) if "weight" in options else None
    sample, upstream = rng.uniform(0.5, 2, rows), rng.uniform(0.5, 2, rows)
    inputs = options | {"weight": weight, "sample_weight": sample}
    options = inputs | {"reduction": "none"}
    losses, stats = fastce.cross_entropy(z, labels, return_stats=True, **options)
    grad = fastce.cross_entropy_with_grad(z, labels, upstream=upstream, **options)[1]
    given = fastce.cross_entropy_grad(z, labels, upstream=upstream, stats=stats, **options)
    total = np.empty(1)
    inputs |= {"labels": labels, "upstream": upstream}
    for n in range(16):
        wanted = [np.full(k, 7.0, kind) if n >> bit & 1 else None for bit, k, kind in ((0, 1, float), (1, rows, dtype))]
        states = [np.full(rows, 7.0, dtype) if n >> bit & 1 else None for bit in (2, 3)]
        outputs = dict(zip(("total", "losses", "row_max", "tail"), (*wanted, *states), strict=True))
        assert run(logits=z, **inputs, **outputs, num_threads=1 + n % 2) == 0
        for got, want in zip([wanted[1], *states], [losses, *stats], strict=True):
            assert got is None or np.array_equal(got, want, equal_nan=True)
        in_place = z.copy()
        assert run(logits=in_place, grad=in_place, **inputs, **outputs, num_threads=1 + n % 2) == 0
        np.testing.assert_array_equal(in_place, grad)
        for got, want in zip([wanted[1], *states], [losses, *stats], strict=True):
            assert got is None or np.array_equal(got, want, equal_nan=True)
        if wanted[0] is not None:
            total = wanted[0]
    np.testing.assert_allclose(total, losses.sum(dtype=np.float64), rtol=1e-5 if suffix == "f32" else 1e-13)
    out = np.empty_like(z)
    row_max, tail = stats
    assert run(logits=z, **inputs, row_max=row_max, tail=tail, stats_given=1, grad=out) == 0
    np.testing.assert_array_equal(out, given)


@pytest.mark.parametrize("suffix", FLOATS)
@pytest.mark.parametrize("classes", [5, 300])
def test_labels_of_every_integer_dtype_and_stride(suffix: str, classes: int) -> None:
    rng = np.random.default_rng(5)
    z = rng.standard_normal((700, classes)).astype(FLOATS[suffix])
    labels = rng.integers(0, 5, 700)
    want = fastce.cross_entropy_with_grad(z, labels, reduction="sum", ignore_index=1)[1]
    for dtype in (dtype for dtype in CODES if dtype.kind in "iu"):
        for every in (
            labels.astype(dtype),
            np.repeat(labels, 3).astype(dtype)[::3],
            labels.astype(dtype)[::-1].copy()[::-1],
        ):
            grad = np.full_like(z, 7.0)
            assert run(logits=z, labels=every, ignore_index=1, grad=grad) == 0
            np.testing.assert_array_equal(grad, want)


@pytest.mark.parametrize("ignored", [-1, -2, -100, np.iinfo(np.int64).min])
def test_a_label_beyond_int64_is_wrong_and_never_ignored(ignored: int) -> None:
    z, grad, total = np.zeros((2, 3)), np.full((2, 3), 7.0), np.full(1, 7.0)
    labels = np.array([1, ignored % 2**64], np.uint64)
    assert run(logits=z, labels=labels, ignore_index=ignored, grad=grad, total=total) == 1
    assert (grad == 7).all() and total == 7


@pytest.mark.parametrize("suffix", FLOATS)
@pytest.mark.parametrize("classes", [3, 20, 100, 300, 5000])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": True, "label_smoothing": 0.1}])
def test_labels_that_change_after_they_were_counted_touch_no_other_memory(
    suffix: str, classes: int, options: dict[str, Any]
) -> None:
    """`counted` says that they were checked, as if another thread had written to them since."""
    rng, rows = np.random.default_rng(classes), 130
    room = rng.standard_normal((rows + 2, classes)).astype(FLOATS[suffix])
    z, labels = room[1:-1], rng.integers(0, classes, rows)
    labels[::7] = np.resize([classes, -1, 2**62, -(2**62), classes + 1, np.iinfo(np.int64).min], labels[::7].size)
    weight = rng.uniform(0.5, 2, classes) if "weight" in options else None
    ignored = labels.copy()
    ignored[::7] = -100
    losses, want = np.empty((2, rows), z.dtype), np.full((rows + 2, classes), 7, z.dtype)
    grad, inputs = want.copy(), options | {"logits": z, "weight": weight}
    assert run(**inputs, labels=ignored, losses=losses[0], grad=want[1:-1]) == 0
    assert run(**inputs, labels=labels, counted=rows, losses=losses[1], grad=grad[1:-1]) == 0
    np.testing.assert_array_equal(grad, want)
    np.testing.assert_array_equal(losses[0], losses[1])
    assert not grad[1:-1][::7].any() and (grad[[0, -1]] == 7).all()


def test_half_precision_and_softcap() -> None:
    rng = np.random.default_rng(2)
    x, labels, losses = rng.normal(0, 5, (30, 9)).astype(np.float16), rng.integers(9, size=30), np.empty(30, np.float32)
    grad = np.empty_like(x)
    assert run(logits=x, labels=labels, grad=grad, losses=losses, softcap=5.0) == 0
    want = fastce.cross_entropy_with_grad(x, labels, reduction="none", softcap=5.0)
    np.testing.assert_array_equal(losses, want[0])
    np.testing.assert_array_equal(grad, want[1])
    # Operations that take neither refuse them.
    two_term = OPERATIONS.index("SOFTMAX_TWO_TERM")
    wide = x.astype(np.float64)
    assert run(operation=two_term, logits=x, targets=wide, losses=losses) == 2
    assert run(operation=two_term, logits=wide, targets=wide, losses=losses.astype(np.float64), softcap=5.0) == 2


@pytest.mark.parametrize("suffix", FLOATS)
def test_every_operation(suffix: str) -> None:
    rng, dtype = np.random.default_rng(2), FLOATS[suffix]
    z, u, c = (rng.standard_normal((30, 9)).astype(dtype) for _ in range(3))
    c = np.abs(c)
    up, sample, weight = rng.standard_normal(30), rng.uniform(0.5, 2, 30), rng.uniform(0.5, 2, 9)
    out, losses, by_element, total = np.empty_like(z), np.empty(30, dtype), np.empty_like(z), np.empty(1)
    fields: dict[str, Any]
    y = {"SOFTMAX": fastce.softmax(z), "LOG_SOFTMAX": fastce.log_softmax(z)}
    for name in y:
        assert run(operation=OPERATIONS.index(name), logits=z, grad=out) == 0
        np.testing.assert_array_equal(out, y[name])
        assert run(operation=OPERATIONS.index(f"{name}_GRAD"), y=y[name], upstream=u, grad=out) == 0
        np.testing.assert_array_equal(out, getattr(fastce, f"{name.lower()}_grad")(u, y[name]))
    assert run(operation=OPERATIONS.index("LOGSUMEXP"), logits=z, losses=losses) == 0
    np.testing.assert_array_equal(losses, fastce.logsumexp(z))
    first_max = np.empty(30, np.intp)
    assert run(operation=OPERATIONS.index("ARGMAX"), logits=z, first_max=first_max) == 0
    np.testing.assert_array_equal(first_max, z.argmax(-1))
    options = {"sample_weight": sample, "weight": weight}
    fields = options | {"logits": z, "targets": c, "grad": out, "total": total}
    assert run(**fields, upstream=up, losses=losses) == 0
    want = fastce.cross_entropy_with_grad(z, c, reduction="none", upstream=up, **options)
    np.testing.assert_array_equal(losses, want[0])
    np.testing.assert_array_equal(out, want[1])
    for activation, written, upstream in (("softmax", losses, up), ("sigmoid", by_element, np.outer(up, weight))):
        operation = OPERATIONS.index(f"{activation.upper()}_TWO_TERM")
        assert run(operation=operation, **fields, upstream=upstream, losses=written) == 0
        options |= {"activation": activation, "reduction": "none", "upstream": upstream}
        want = fastce.binary_cross_entropy_with_grad(z, c, **options)
        np.testing.assert_array_equal(written, want[0])
        np.testing.assert_array_equal(out, want[1])
        del options["activation"], options["reduction"], options["upstream"]


def test_what_cannot_be_computed_is_refused_and_nothing_is_written() -> None:
    z, labels = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    total, grad, losses = np.full(1, 7.0), np.full((4, 3), 7.0), np.full(4, 7.0)
    good = {"logits": z, "labels": labels, "total": total, "grad": grad, "losses": losses}
    wrong: list[dict[str, Any]] = [
        {"size": ctypes.sizeof(Request) - 8},
        {"size": 0},
        {"operation": len(OPERATIONS)},
        {"operation": -1},
        {"logits": labels[:, None]},
        {"labels": z[:, 0]},
        {"labels": None},
        {"grad": grad.astype(np.float32)},
        {"upstream": np.ones(4, np.float32)},
        {"stats_given": 1},
        {"operation": OPERATIONS.index("SIGMOID_TWO_TERM")},
        {"operation": OPERATIONS.index("SOFTMAX_GRAD")},
        {"operation": OPERATIONS.index("SOFTMAX_GRAD"), "y": z},
        {"operation": OPERATIONS.index("LOG_SOFTMAX_GRAD"), "y": z, "upstream": z, "grad": None},
        {"operation": OPERATIONS.index("ARGMAX")},
        {"total": None, "losses": None, "stats_given": 1},
    ]
    for change in wrong:
        assert run(**good | change) == 2, change
    assert run(**good | {"labels": labels + 1}) == 1
    assert run(**good | {"labels": labels - 1, "ignore_index": -1, "has_ignore_index": 0}) == 1
    for untouched in (total, grad, losses):
        assert (untouched == 7).all()
    assert run(**good, rows=0) == 0 and total == 0
    assert (grad == 7).all() and (losses == 7).all()
