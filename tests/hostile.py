"""Calls with one argument that is wrong, or that is not what it says. For the fuzzer."""

from __future__ import annotations

import array
import inspect
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

import fastce

F32, F64 = np.float32, np.float64
ROWS, CLASSES, FEATURES = 12, 5, 3
ALLOWED = (TypeError, ValueError, IndexError, OverflowError, MemoryError)
LAYERS = ("CrossEntropyLoss", "LinearCrossEntropyLoss")
NAMES = [
    name for name in fastce.__all__
    if callable(getattr(fastce, name))
    and name not in ("BlockStats", "EvaluatedRows", "Evaluation", "LinearGrads", "SoftmaxStats", "show_config")
]  # fmt: skip


class Refused(Exception):
    """What hostile objects raise."""


# ---------------------------------------------------------------------------------------------------------------------
# Arrays that are not what they say
# ---------------------------------------------------------------------------------------------------------------------


class Claims(np.ndarray):
    """An array that tells another shape and dtype to Python than it has."""

    claimed_shape: Any = (ROWS, CLASSES)
    claimed_dtype: Any = np.dtype(F32)

    @property
    def shape(self) -> Any:  # type: ignore[override]
        return self.claimed_shape

    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return self.claimed_dtype

    @property
    def strides(self) -> Any:  # type: ignore[override]
        return (8,) * len(self.claimed_shape)

    @property
    def size(self) -> int:  # type: ignore[override]
        return int(np.prod(self.claimed_shape))

    def view(self, *arguments: Any, **options: Any) -> Any:
        return np.zeros(self.claimed_shape, self.claimed_dtype)

    astype = copy = transpose = reshape = view  # type: ignore[assignment]


class Raises(np.ndarray):
    """An array whose attributes and operations raise."""

    def __array_ufunc__(self, *arguments: Any, **options: Any) -> Any:
        raise Refused("ufunc")

    def __array_function__(self, *arguments: Any, **options: Any) -> Any:
        raise Refused("function")

    def __getitem__(self, at: Any) -> Any:
        raise Refused("item")

    def __setitem__(self, at: Any, value: Any) -> None:
        raise Refused("item")

    def astype(self, *arguments: Any, **options: Any) -> Any:
        raise Refused("astype")


class Gives:
    """An object with `__array__`."""

    def __init__(self, value: Any, **attributes: Any) -> None:
        self.value = value
        vars(self).update(attributes)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class Interface:
    """An object with an `__array_interface__`."""

    def __init__(self, **interface: Any) -> None:
        self.__array_interface__ = {"version": 3, "shape": (ROWS, CLASSES), "typestr": "<f4"} | interface


class Struct:
    __array_struct__ = 1


class Sequence:
    """A sequence that tells another length than it has."""

    def __init__(self, length: Any) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, at: int) -> Any:
        if at > 3:
            raise IndexError
        return [1.0] * CLASSES


class Number:
    """A number that fails where it is used."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def _get(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def __index__(self) -> Any:
        return self._get()

    def __float__(self) -> Any:
        return self._get()

    def __bool__(self) -> Any:
        return self._get()

    def __eq__(self, other: object) -> Any:
        return self._get()

    __hash__ = None  # type: ignore[assignment]


class Text(str):
    def __eq__(self, other: object) -> bool:
        raise Refused("compared")

    __hash__ = str.__hash__


class NotAnArray:
    """isinstance says that it is an array."""

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return np.ndarray


def overlapping(dtype: Any = F32) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(
        np.zeros(ROWS + CLASSES, dtype), (ROWS, CLASSES), (np.dtype(dtype).itemsize,) * 2
    )


def claims(real: np.ndarray, shape: tuple[int, ...], dtype: Any) -> Claims:
    lying = real.view(Claims)
    lying.claimed_shape, lying.claimed_dtype = shape, np.dtype(dtype)
    return lying


def arrays(draw: Any, right: np.ndarray) -> list[Any]:
    """What may be given in the place of an array like `right`. Some of it is right."""
    shape, dtype = right.shape, right.dtype
    a = right.copy()
    wrong_shapes: list[Any] = [
        a[:-1] if a.ndim else a.reshape(1), a[..., None], a.ravel()[:0], a.ravel()[:1], a.reshape(shape[::-1]),
        a[None],
        np.zeros((0, *shape[1:]), dtype), np.zeros((*shape[:-1], 0), dtype), np.zeros((1,) * 32, dtype),
        dtype.type(1),
        np.zeros((ROWS, ROWS), dtype), np.zeros((), dtype),
    ]  # fmt: skip
    lying = [
        claims(a.ravel()[:3].copy(), shape, dtype), claims(np.zeros(shape, np.int8), shape, dtype),
        claims(np.zeros((ROWS * 2, CLASSES * 2), F64), shape, dtype), claims(a, (10**6, 10**6), dtype),
        claims(a, shape, object), claims(a, (-1,), dtype), claims(np.zeros(shape, "S4"), shape, dtype),
        a.view(Raises), Gives(a), Gives(a, shape=(1,), dtype="f4", ndim=7), Gives(a.tolist()), Gives(None),
        Gives(a.astype(object)), Gives(a.view(Raises)), Gives(claims(a.ravel()[:2], shape, dtype)),
        Gives(Refused("array")), Gives(TypeError("array")), Gives(np.ma.masked_array(a)), Struct(),
        Interface(data=b"1234"), Interface(shape=(-1, 2)), Interface(shape="no", data=bytes(999)),
        Interface(typestr="|O8", data=bytes(9999)), Interface(shape=(2**62, 2**62), data=bytes(99)),
        Interface(data=bytes(4 * ROWS * CLASSES)), Interface(strides=(1,), data=bytes(999)), NotAnArray(),
        Sequence(2**40), Sequence(-1), Sequence(4), Sequence("long"),
    ]  # fmt: skip
    subclasses: list[Any] = [
        np.ma.masked_array(a, mask=np.zeros(shape, bool)), np.ma.masked, [np.ma.masked] * ROWS, a.view(np.recarray),
        a.view(np.matrix) if a.ndim == 2 else a.view(np.recarray),
        np.rec.fromarrays([np.zeros(ROWS)], names="a"),
    ]  # fmt: skip
    other_dtypes: list[Any] = [
        a.astype(t) for t in ("c16", "O", "S8", "U4", "g", "f2", "?", "i8", "u8", ">f4", ">f8", "m8[s]", "M8[s]")
    ] + [np.zeros(shape, [("x", "f4")]), np.full(shape, None), np.full(shape, 10**400), np.zeros(shape, "V3")]
    special: list[Any] = [
        np.full(shape, v) for v in (np.nan, np.inf, -1.0, -np.inf, 1e308, 255, 2**62, -(2**62), np.uint64(2**64 - 1))
    ]
    others: list[Any] = [
        None, "abc", b"abc", bytearray(40), memoryview(b"1234"), array.array("f", [1.0] * CLASSES), {}, {1: 2},
        {1.0},
        object(), type, ..., slice(3), lambda: 1, iter([1.0]), range(ROWS), 1, 1.5, 1j, 10**400, True, np.nan,
        [[1.0], [1.0, 2.0]], [[]], [], (), [None] * ROWS, ["a"] * ROWS, [10**400] * ROWS, [[1j]], Number(1),
        Fraction(1, 3),
        a.tolist(), tuple(a.tolist()) if a.ndim else 1, np.array(None), np.datetime64("2020-01-01"), np.dtype("f4"),
        (right,), [right], overlapping(),
    ]  # fmt: skip
    return draw.pick([wrong_shapes, lying, lying, subclasses, other_dtypes, special, others])


def buffers(draw: Any, right: np.ndarray) -> list[Any]:
    """What may be given as `out` in the place of an array like `right`, but must be refused."""
    shape, dtype = right.shape, right.dtype
    read_only, unaligned = right.copy(), np.zeros(right.nbytes + 1, np.uint8)[1:].view(dtype).reshape(shape)
    read_only.flags.writeable = False
    wide = np.zeros((*shape[:-1], shape[-1] + 1) if shape else (2,), dtype)
    other = np.dtype(F64 if dtype == F32 else F32)
    return [
        read_only, unaligned, wide, right.astype(other), right.astype(dtype.newbyteorder()), right.ravel()[:0],
        right[None],
        np.broadcast_to(right.ravel()[:1].reshape((1,) * right.ndim), shape), right.astype(np.int32),
        right.astype(object),
        claims(right.ravel()[:1].copy(), shape, dtype), claims(np.zeros(shape, np.int8), shape, dtype),
        claims(np.zeros(shape, other), shape, dtype), claims(wide, shape, dtype), np.ma.masked_array(right),
        right.tolist(), "out", 1,
        memoryview(right.tobytes()), bytearray(right.tobytes()), NotAnArray(), Gives(right), (right,) * 3, (),
        {}, object(),
        Interface(data=bytes(4 * ROWS * CLASSES)), np.zeros(shape, [("x", dtype)]), right.astype("c8"),
    ] + ([overlapping(dtype)] if shape == (ROWS, CLASSES) else [])  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------

NOT_NUMBERS: list[Any] = [
    "1", b"1", [], [1.0], (1.0,), {}, object(), 1j, np.complex128(1), np.array([1.0, 2.0]), np.ones((2, 2)),
    np.datetime64(1, "s"),
    Number(Refused("number")), Number("text"), np.ma.masked, Ellipsis, type, np.array(None), np.array("1"),
    Gives(Refused("no")),
]  # fmt: skip
NOT_FINITE = [np.nan, np.inf, -np.inf, np.float32("nan"), np.array(np.inf), 10**400, -(10**400)]
NOT_INTS: list[Any] = [
    1.0,
    1.5,
    np.nan,
    "1",
    b"1",
    [1],
    (1, 2, 3),
    True,
    object(),
    1j,
    np.array([1, 2]),
    Number(Refused("index")),
    Number(1.5),
    np.float64(1),
    Fraction(1, 1),
    Gives(1),
]
HUGE = [10**400, -(10**400), 2**63, -(2**63) - 1, 2**64, 2**31, -(2**31) - 1]
# For each option: what must be refused, and what may be taken or refused.
OPTIONS: dict[str, tuple[list[Any], list[Any]]] = {
    "label_smoothing": (
        [*NOT_NUMBERS, *NOT_FINITE, None, -1e-9, 1 + 1e-9, -1, 2, -0.1],
        [True, -0.0, np.float32(0.5), Fraction(1, 2)],
    ),
    "z_loss": ([*NOT_NUMBERS, *NOT_FINITE, None, -1, -5e-324], [True, 1e308, 5e-324]),
    "temperature": ([*NOT_NUMBERS, *NOT_FINITE, None, 0, -1, 1e-16, 1e16, False, 5e-324], [True, np.array(2.0)]),
    "softcap": ([*NOT_NUMBERS, *NOT_FINITE, 0, -1, 1e-16, 1e16, False], [None, True]),
    "normalizer": ([*NOT_NUMBERS, *NOT_FINITE, 0, -1, False], [True, 5e-324, 1e308]),
    "reduction": (
        ["avg", "Mean", "", None, 1, b"mean", ["mean"], object(), Ellipsis, np.nan, 10**400],
        [np.str_("sum"), Text("sum")],
    ),
    "activation": (["tanh", "", None, 1, b"sigmoid", ["softmax"], True], [np.str_("sigmoid"), Text("softmax")]),
    "targets": (["probs", "", None, 1, b"logits", True], [np.str_("logits")]),
    "subnormals": (["drop", "", None, 1, True, b"keep"], [np.str_("flush"), Text("keep")]),
    "axis": ([2, -3, *HUGE, *NOT_INTS, "x"], [None, (0, 1), (0,), (), np.int8(0), (0, 0), [0], np.True_, Number(0)]),
    "num_threads": (
        [0, -1, -(10**400), *(v for v in NOT_INTS)],
        [10**400, 2**31, 2**63, 256, 257, np.int8(2), Number(2), None],
    ),
    "ignore_index": (NOT_INTS, [None, *HUGE, np.int8(1), np.uint64(2**64 - 1), Number(1)]),
    "top_k": (
        [0, -1, -(10**400), 1.5, "1", [0], [1.5], [None], [[1]], None, object(), {-1: 1}, np.array([0.5])],
        [(), 10**400, [10**400], np.array([1, 2]), np.int8(2), {1, 2}],
    ),
    "class_offset": (
        [-1, 1, 2**70, -(10**400), 10**400, 1.5, "0", None, [0], True, np.nan],
        [np.int8(0), np.uint64(0), Number(0)],
    ),
    "num_classes": (
        [0, -1, -(10**400), 1.5, "5", None, [5], True, np.nan, object()],
        [np.int8(CLASSES), Number(CLASSES), 2**62, 10**400],
    ),
    "dtype": (["no", object(), "S4", "U1", "O", [("x", "f4")], 1, "M8[s]"], [None, bool, complex, "f2", ">f8", "g"]),
    "chunk_bytes": ([0, -1, 1.5, "1", [1], True, np.nan, -(10**400)], [None, 1, 10**400, 2**63]),
    "keepdims": ([], [1, 0, None, "yes", [], object(), np.bool_(True), Number(Refused("bool")), np.zeros(3)]),
    "return_stats": ([], [1, None, "yes", [], np.True_]),
    "return_rows": ([], [1, None, "yes", np.True_]),
    "reuse_grad": ([], [1, None, "yes"]),
    "accumulate": ([], [1, None, "yes", np.True_]),
    "stats": (
        [
            1,
            "stats",
            (),
            (1,),
            (1, 2, 3),
            [1, 2],
            (None, None),
            object(),
            (np.zeros(ROWS, F64),) * 2,
            (np.zeros(3, F32),) * 2,
            (np.zeros(ROWS, F32), 1.0),
            fastce.SoftmaxStats(np.zeros((ROWS, 1), F32), np.zeros(ROWS, F32)),
            (claims(np.zeros(2, F32), (ROWS,), F32),) * 2,
            (claims(np.zeros(ROWS, np.int16), (ROWS,), F32),) * 2,
        ],
        [None, (np.zeros(ROWS, F32),) * 2, (np.full(ROWS, np.nan, F32),) * 2, (np.zeros((ROWS, 2), F32)[:, 0],) * 2],
    ),
}
VECTORS = {"weight": CLASSES, "pos_weight": CLASSES, "sample_weight": ROWS, "linear_bias": CLASSES}


def vectors(draw: Any, n: int) -> tuple[bool, Any]:
    """Whether it must be refused, and what may be given in the place of n weights."""
    if draw.chance(0.5):
        wrong: list[Any] = [np.full(n, v, F64) for v in (-1, np.nan, np.inf, -np.inf, -5e-324)]
        wrong += [
            np.ones(n + 1),
            np.ones(n - 1),
            np.ones((n, 1)),
            np.ones((1, n)),
            1.0,
            "w",
            [],
            np.ones(n, complex),
            [None] * n,
        ]
        wrong += [np.ma.masked_array(np.ones(n)), object(), np.ones(n).astype("S3"), {}, [[1.0]] * n, [1e400] * n]
        wrong += [claims(np.ones(2), (n,), F64), claims(-np.ones(n), (n,), F64)]
        return True, draw.pick(wrong)
    return False, draw.pick(arrays(draw, np.ones(n)))


# ---------------------------------------------------------------------------------------------------------------------
# One call
# ---------------------------------------------------------------------------------------------------------------------


def right_arguments(draw: Any, name: str) -> dict[str, Any]:
    """Positional ones by name."""
    rng, dtype = draw.rng, draw.pick([F32, F32, F64])
    x = rng.normal(size=(ROWS, CLASSES)).astype(dtype)
    c = rng.random((ROWS, CLASSES)).astype(dtype)
    hot = rng.integers(CLASSES, size=ROWS)
    if name == "one_hot":
        return {"labels": hot, "num_classes": CLASSES}
    if name.startswith(("linear", "evaluate_linear", "Linear")):
        hidden, weight = (
            rng.normal(size=(ROWS, FEATURES)).astype(dtype),
            rng.normal(size=(CLASSES, FEATURES)).astype(dtype),
        )
        return {"hidden": hidden, "linear_weight": weight, "labels" if name.startswith("evaluate") else "targets": hot}
    if name == "evaluate":
        return {"logits": x, "labels": hot}
    if name in ("softmax", "log_softmax", "logsumexp"):
        return {"x": x}
    if name in ("softmax_grad", "log_softmax_grad"):
        return {"upstream": x, "y": c}
    if name in ("predict", "entropy", "entropy_with_grad"):
        return {"logits": x}
    if name.startswith("kl"):
        return {"logits": x, "target_logits": c}
    if name.startswith("binary"):
        return {"logits": x, "targets": c}
    stats = fastce.BlockStats(*(rng.random(ROWS) for _ in range(4)))
    if name == "merge_stats":
        return {"a": stats, "b": stats}
    if name == "loss_from_stats":
        return {"stats": stats, "targets": hot}
    if name == "grad_from_stats":
        return {"logits": x, "targets": hot, "stats": stats}
    right = {"logits": x, "targets": hot if draw.chance(0.6) else c}
    return right | ({"vectors": c} if name == "cross_entropy_hvp" else {})


def callable_of(name: str) -> tuple[Callable[..., Any], set[str]]:
    """The function, and its options. That of a layer makes it, calls it and goes back."""
    source = "linear_cross_entropy_with_grad" if name.startswith("Linear") else "cross_entropy_with_grad"
    names = set(inspect.signature(getattr(fastce, source if name in LAYERS else name)).parameters)
    if name not in LAYERS:
        return getattr(fastce, name), names

    def run(*arguments: Any, upstream: Any = 1.0, out: Any = None, accumulate: Any = False, **options: Any) -> Any:
        made = getattr(fastce, name)(**{k: v for k, v in options.items() if k != "linear_bias"})
        more = {k: v for k, v in options.items() if k == "linear_bias"}
        loss = made(*arguments, **more)
        back = {"accumulate": accumulate} if name.startswith("Linear") else {}
        return loss, made.backward(upstream, out=out, **back)

    return run, names - {"return_stats"}


def out_for(name: str, right: dict[str, Any]) -> Any:
    """A buffer that is right, or a tuple of such."""
    x = right.get("y", right.get("x", right.get("logits", right.get("hidden"))))
    if name.startswith(("linear", "Linear")):
        weight = right["linear_weight"]
        return fastce.LinearGrads(np.full_like(x, 7), np.full_like(weight, 7), None)
    if name == "logsumexp":
        return np.full(ROWS, 7, x.dtype)
    if name == "cross_entropy_grad_hess":
        return np.full_like(x, 7), np.full_like(x, 7)
    return np.full_like(x, 7)


def parts_of(out: Any) -> list[np.ndarray]:
    return [part for part in (out if isinstance(out, tuple) else (out,)) if isinstance(part, np.ndarray)]


def described(value: Any) -> str:
    try:
        return f"{type(value).__name__} {value!r:.300}"
    except Exception:  # of what lies
        return type(value).__name__


def check_one(draw: Any, called: Callable[..., Any]) -> None:
    """A call with one argument that is wrong raises an error that says something, and writes nothing. If it is taken,
    though it is odd, nothing happens but the call."""
    name = draw.pick(NAMES)
    function, names = callable_of(name)
    right = right_arguments(draw, name)
    positional = list(right)
    options: dict[str, Any] = {"class_offset": 0, "num_classes": CLASSES} if "class_offset" in names else {}
    out = out_for(name, right) if "out" in names and draw.chance(0.7) else None
    if out is not None:
        options["out"] = out
    choices = [
        *positional,
        *(n for n in names - set(positional) if n in OPTIONS or n in VECTORS or n in ("out", "upstream")),
    ]
    wrong = draw.pick(sorted(choices))
    refused, value = False, None
    if wrong in VECTORS:
        refused, value = vectors(draw, VECTORS[wrong])
        refused = refused and wrong != "linear_bias"
    elif wrong == "out":
        k = draw.pick([0, 1])
        good = out_for(name, right)
        if isinstance(good, tuple):
            bad = draw.pick(buffers(draw, good[k]))
            parts = [bad if j == k else part for j, part in enumerate(good)]
            value = type(good)(*parts) if hasattr(good, "_fields") else draw.pick([tuple(parts), good[:1], bad])
            out = good if not draw.chance(0.2) else None
        else:
            value, out = draw.pick(buffers(draw, good)), None
        refused = True
    elif wrong == "upstream" and wrong not in positional:
        value = draw.pick([*NOT_NUMBERS, None])
        refused = not isinstance(value, np.ndarray)
    elif isinstance(right.get(wrong), tuple):
        k = draw.pick(range(4))
        bad = [draw.pick(arrays(draw, part)) if j == k else part for j, part in enumerate(right[wrong])]
        value = draw.pick([fastce.BlockStats(*bad), tuple(bad), tuple(bad[:3]), bad, bad[k]])
    elif wrong in OPTIONS and wrong not in positional:
        must, may = OPTIONS[wrong]
        refused = bool(must) and draw.chance(0.7)
        value = draw.pick(must if refused else may or must)
        if wrong == "top_k" and draw.chance(0.1):
            refused, value = True, [1, 2.5]
    elif wrong in OPTIONS and wrong != "targets":  # num_classes
        refused = draw.chance(0.7)
        value = draw.pick(OPTIONS[wrong][0 if refused else 1])
    else:
        value = draw.pick(arrays(draw, right[wrong]))
    if wrong == "normalizer" and "reduction" in names and draw.chance(0.2):
        refused, options["reduction"] = True, draw.pick(["sum", "none"])
    if wrong == "pos_weight" and draw.chance(0.2):
        refused, options["activation"] = True, "softmax"
    said = described(value)
    draw.note(function=name, argument=wrong, value=said, refused=refused, others=list(options))
    given = {**right, wrong: value} if wrong in positional else right
    options |= {wrong: value} if wrong not in positional else {}
    before = [a.tobytes() for a in right.values() if isinstance(a, np.ndarray)]
    try:
        called(function, *given.values(), **options)
    except (*ALLOWED, Refused) as error:
        assert str(error) or isinstance(error, MemoryError), f"{type(error).__name__} without a message"
        draw.note(error=repr(error))
        for part in parts_of(out):
            if type(part) is np.ndarray and part.flags.writeable and part is not value:
                assert (part == 7).all(), "out was written to before the error"
    else:
        assert not refused, "it was not refused"
    assert before == [a.tobytes() for a in right.values() if isinstance(a, np.ndarray)], "an argument was modified"
