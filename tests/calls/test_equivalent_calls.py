"""One call, written in different ways: defaults left out or spelled out, positional arguments or keywords, options at
values that change nothing. The results are the same, and so are the errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from calling import CASES, F32, Case, each_case, layer
from layouts import LAYOUTS, unaligned

import fastce

SHAPE = (33, 10)
PUBLIC = [case for case in CASES if case.function is getattr(fastce, case.function.__name__, None)]


@pytest.mark.parametrize("case", PUBLIC, ids=str)
def test_defaults_may_be_spelled_out_and_arguments_be_keywords(case: Case) -> None:
    arguments = case.make(SHAPE)
    want = case(arguments)
    parameters = inspect.signature(case.function).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    assert defaults
    given = defaults | case.options | arguments
    required = [given.pop(p.name) for p in parameters if p.default is inspect.Parameter.empty]
    spelled_out = case.function(*required, **given)
    by_name = case.function(**case.options, **arguments)
    for returned in (spelled_out, by_name):
        got = dict(zip(want, _flat(returned), strict=True))
        case.assert_same(got, want, bitwise=True)
    for name, default in defaults.items():
        if name not in arguments | case.options:
            case.assert_same(case(arguments, **{name: default}), want, f"{name}={default}", bitwise=True)


def _flat(returned: Any) -> list[Any]:
    return [part for item in returned for part in _flat(item)] if isinstance(returned, tuple) else [returned]


# Options that change nothing: name, value for some case and arguments, whether results are the same to the bit.
NEUTRAL: list[tuple[str, Callable[[Case, dict[str, Any]], Any], bool]] = [
    ("label_smoothing", lambda case, a: float("0"), True),  # equal to the default, but another object
    ("label_smoothing", lambda case, a: 0, True),
    ("z_loss", lambda case, a: float("0"), True),
    ("z_loss", lambda case, a: np.float32(0), True),
    ("temperature", lambda case, a: float("1"), True),
    ("temperature", lambda case, a: np.int8(1), True),
    ("subnormals", lambda case, a: "".join(["k", "eep"]), True),
    ("subnormals", lambda case, a: "flush", True),  # nothing is small here
    ("axis", lambda case, a: 1, True),
    ("axis", lambda case, a: np.int8(-1), True),
    ("ignore_index", lambda case, a: np.int64(-100), True),
    ("num_threads", lambda case, a: 1, True),
    ("num_threads", lambda case, a: np.int64(2), True),
    ("reduction", lambda case, a: "".join(["m", "ean"]), True),
    ("upstream", lambda case, a: np.float64(1), True),
    ("upstream", lambda case, a: np.array(1), True),
    ("upstream", lambda case, a: [1.0] * SHAPE[0], True),  # of each row
    ("upstream", lambda case, a: np.ones(SHAPE), True),  # of each element
    ("weight", lambda case, a: np.ones(SHAPE[1]), False),
    ("weight", lambda case, a: [True] * SHAPE[1], False),
    ("pos_weight", lambda case, a: np.ones(SHAPE[1]), False),
    ("sample_weight", lambda case, a: np.ones(SHAPE[0], np.int8), False),
    ("normalizer", lambda case, a: _count(case, a), True),
    ("out", lambda case, a: np.empty(case.shape_of(case.out, SHAPE), F32), True),
]


def _count(case: Case, arguments: dict[str, Any]) -> int:
    """What a mean divides by."""
    if case.targets == "labels":
        return int((arguments["targets"] != -100).sum())
    return SHAPE[0] * (SHAPE[1] if case.options.get("activation") == "sigmoid" else 1)


def accepts(case: Case, name: str, value: Any) -> bool:
    source = fastce.cross_entropy_with_grad if case.function is layer else case.function
    if name not in inspect.signature(source).parameters or name in case.arguments | case.options:
        return False
    if name in ("pos_weight", "ignore_index"):
        return case.options.get("activation") == "sigmoid" or case.targets == "labels"
    if name == "reduction":
        return case.results.get("loss") == "one"
    if name == "normalizer":
        return case.options.get("reduction", "mean") == "mean"
    if name == "upstream" and np.ndim(value):
        return case.options.get("reduction") == "none" and np.shape(value) == case.shape_of("loss", SHAPE)
    return True


@each_case()
def test_options_that_change_nothing(case: Case) -> None:
    arguments = case.make(SHAPE)
    want = case(arguments)
    for name, make, bitwise in NEUTRAL:
        if case.out is None and name == "out":
            continue
        value = make(case, arguments)
        if accepts(case, name, value):
            about = f"{name}={value!r}"
            case.assert_same(case(arguments, **{name: value}), want, about, bitwise=bitwise)


@each_case(lambda case: case.targets == "labels")
def test_labels_written_in_other_ways(case: Case) -> None:
    arguments = case.make(SHAPE)
    labels = arguments["targets"]
    want = case(arguments)
    other_ways: dict[str, Any] = {
        "int32": labels.astype(np.int32),
        "int8": labels.astype(np.int8),
        "byte-swapped": labels.astype(labels.dtype.newbyteorder()),
        "a list": labels.tolist(),
        "a tuple": tuple(labels.tolist()),
        "a list of scalars": list(labels),
        "a column of records": np.rec.fromarrays([labels, labels + 1])["f0"],
        "every second": np.repeat(labels, 2)[::2],
        "reversed twice": labels[::-1].copy()[::-1],
        "unaligned": unaligned(labels),
    }
    for way, targets in other_ways.items():
        case.assert_same(case(arguments | {"targets": targets}), want, f"labels as {way}", bitwise=True)
    # Ignored rows may be marked by another number, and a row that is left out is a row that is ignored.
    marked = np.where(labels == -100, 2**62, labels)
    case.assert_same(case(arguments | {"targets": marked}, ignore_index=2**62), want, bitwise=True)


# ---------------------------------------------------------------------------------------------------------------------
# Calls that may succeed or fail: the same outcome whichever way they are written
# ---------------------------------------------------------------------------------------------------------------------

# Each writes the same call in another way.
WAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "z_loss of another zero": lambda options: options | {"z_loss": float("0")},
    "no weights": lambda options: options | {"weight": None, "sample_weight": None, "normalizer": None},
    "upstream of another one": lambda options: options | {"upstream": np.float64(1)},
    "another int for ignore_index": lambda options: options | {"ignore_index": np.int16(-100)},
}


def outcome(logits: Any, labels: Any, options: dict[str, Any]) -> tuple[Any, ...]:
    """All there is to see of a call: types and bits of the results, or the error."""
    try:
        loss, grad = fastce.cross_entropy_with_grad(logits, labels, **options)
    except Exception as error:
        return type(error), str(error)
    return type(loss), loss.tobytes(), type(grad).__name__, grad.dtype, grad.strides, grad.tobytes()


def assert_same_outcome(make: Callable[[], tuple[Any, Any, dict[str, Any]]]) -> None:
    with np.errstate(all="raise"):
        logits, labels, options = make()
        want = outcome(logits, labels, options)
        seen = [None if a is None else np.asarray(a).tobytes() for a in (logits, labels, options.get("out"))]
        for way, write in WAYS.items():
            logits, labels, options = make()
            assert outcome(logits, labels, write(options)) == want, way
            arguments = (logits, labels, options.get("out"))
            assert [None if a is None else np.asarray(a).tobytes() for a in arguments] == seen, way


@pytest.mark.parametrize("of_out", [None, *LAYOUTS])
@pytest.mark.parametrize("of_logits", LAYOUTS)
def test_same_outcome_for_every_layout(of_logits: str, of_out: str | None) -> None:
    for shape in [(1, 1), (6, 50), (200, 30), (3, 5000)]:

        def make(shape: tuple[int, int] = shape) -> tuple[Any, Any, dict[str, Any]]:
            rng = np.random.default_rng(0)
            options = {} if of_out is None else {"out": LAYOUTS[of_out](np.full(shape, 9, F32))}
            logits = LAYOUTS[of_logits](rng.uniform(-7, 7, shape).astype(F32))
            return logits, rng.integers(shape[1], size=shape[0]), options

        assert_same_outcome(make)


LABELS: dict[str, Any] = {
    "int64": np.arange(6),
    "int32": np.arange(6, dtype=np.int32),
    "uint64": np.arange(6, dtype=np.uint64),
    "big-endian": np.arange(6, dtype=">i8"),
    "floats": np.arange(6.0),
    "every second": np.arange(12)[::2],
    "reversed": np.arange(6)[::-1],
    "broadcast": np.broadcast_to(np.int64(3), 6),
    "too few": np.arange(5),
    "a scalar": np.array(3),
    "two dimensions": np.arange(6).reshape(2, 3),
    "dates": np.arange(6).astype("M8[s]"),
    "objects": np.arange(6).astype(object),
    "records": np.zeros(6, [("t", "i8")]),
    "a field of records": np.zeros(6, [("t", "i8"), ("u", "i1")])["t"],
    "unaligned": unaligned(np.arange(6)),
    "one-hot rows": np.eye(6, 50),
    "one too large": np.arange(45, 51),
    "one negative": np.arange(-1, 5),
    "all ignored": np.full(6, -100),
    "some ignored": np.array([-100, 1, 2, 3, 4, -100]),
    "the largest int64": np.array([0, 1, 2, 3, 4, 2**63 - 1]),
    "the smallest int64": np.array([0, 1, 2, 3, 4, -(2**63)]),
    "None": None,
    "a list": list(range(6)),
}


@pytest.mark.parametrize("out", [False, True], ids=["", "out"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "max", None])
@pytest.mark.parametrize("labels", LABELS)
def test_same_outcome_for_all_labels(labels: str, reduction: Any, out: bool) -> None:
    def make() -> tuple[Any, Any, dict[str, Any]]:
        options = {"out": np.full((6, 50), 9, F32)} if out else {}
        logits = np.random.default_rng(0).uniform(-7, 7, (6, 50)).astype(F32)
        return logits, LABELS[labels], options | {"reduction": reduction}

    assert_same_outcome(make)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "c8", "i1", "i8", "u8", "?", "M8[s]", "S4", "f4,f4"])
@pytest.mark.parametrize("out", [None, "f4", "f8", "same"])
def test_same_outcome_for_every_dtype(kind: str, out: str | None) -> None:
    for shape in [(6, 50), (0, 50), (6, 0), (1, 6, 50), (50,), ()]:

        def make(shape: tuple[int, ...] = shape) -> tuple[Any, Any, dict[str, Any]]:
            logits = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
            buffer = logits if out == "same" else None if out is None else np.full(shape, 9, out)
            return logits, np.zeros(shape[:-1], np.int64), {} if out is None else {"out": buffer}

        assert_same_outcome(make)
