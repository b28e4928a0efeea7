"""Wrong calls: for each function right arguments, into which a test puts a wrong one. For the tests of errors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import fastce

F32, F64 = np.float32, np.float64
ROWS, CLASSES = 20, 10
SENTINEL = 12345.0
RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal((ROWS, CLASSES), dtype=F32)
LABELS = RNG.integers(CLASSES, size=ROWS)
PROBABILITIES = np.full((ROWS, CLASSES), 1 / CLASSES, F32)
PER_ROW, PER_CLASS = np.ones(ROWS, F32), np.ones(CLASSES, F32)


@dataclass(frozen=True)
class Function:
    """A function of fastce, with arguments that are right. `kind` groups those that take the same arguments."""

    name: str
    kind: str
    call: Callable[..., Any]
    right: dict[str, Any]
    options: frozenset[str]

    @property
    def main(self) -> str:
        return next(name for name in ("y", "x", "logits") if name in self.right)

    def accepts(self, names: set[str]) -> bool:
        return names <= self.options | set(self.right)


def layer(logits: Any, targets: Any, **options: Any) -> Any:
    return fastce.CrossEntropyLoss(**options)(logits, targets)


def hvp(logits: Any, targets: Any, **options: Any) -> Any:
    """With vectors that fit the logits, whatever these are."""
    return fastce.cross_entropy_hvp(logits, targets, logits, **options)


def _functions() -> Iterator[Function]:
    def function(
        name: str, kind: str, call: Callable[..., Any] | None = None, *, without: str = "", **right: Any
    ) -> Function:
        source = fastce.cross_entropy if name == "CrossEntropyLoss" else getattr(fastce, name.split(",")[0])
        options = set(inspect.signature(source).parameters) - set(right) - {without}
        return Function(name, kind, call or source, right, frozenset(options))

    for name in ("cross_entropy", "cross_entropy_with_grad", "cross_entropy_grad"):
        yield function(name, "one term", logits=LOGITS, targets=LABELS)
    # Its `out` is a pair, and the vectors of the other too are tested in numbers/test_curvature.py.
    yield function("cross_entropy_grad_hess", "one term", without="out", logits=LOGITS, targets=LABELS)
    yield function("cross_entropy_hvp", "one term", hvp, without="vectors", logits=LOGITS, targets=LABELS)
    yield function("CrossEntropyLoss", "one term", layer, logits=LOGITS, targets=LABELS)
    for name in ("binary_cross_entropy", "binary_cross_entropy_with_grad"):
        for activation in ("sigmoid", "softmax"):
            right = {"logits": LOGITS, "targets": PROBABILITIES, "activation": activation}
            yield function(f"{name}, {activation}", activation, **right)
    for name in ("softmax", "log_softmax"):
        yield function(name, "map", x=LOGITS)
    yield function("logsumexp", "rows", x=LOGITS)
    for name in ("softmax_grad", "log_softmax_grad"):
        yield function(name, "product", upstream=LOGITS, y=PROBABILITIES)
    for name in ("entropy", "entropy_with_grad"):
        yield function(name, "entropy", logits=LOGITS)
    for name in ("kl_divergence", "kl_divergence_with_grad"):
        yield function(name, "divergence", logits=LOGITS, target_logits=PROBABILITIES)
    yield function("evaluate", "evaluate", logits=LOGITS, labels=LABELS)
    yield function("predict", "predict", logits=LOGITS)


FUNCTIONS = {function.name: function for function in _functions()}
KINDS = frozenset(function.kind for function in FUNCTIONS.values())
TWO_TERM = frozenset(["sigmoid", "softmax"])
LOSSES = TWO_TERM | {"one term", "entropy", "divergence"}
Entry = tuple[str, dict[str, Any], Any, str]  # what is wrong, arguments, the error, what its message says


def each_wrong_call(wrong: dict[str, tuple[frozenset[str], list[Entry]]]) -> pytest.MarkDecorator:
    """Parametrises a test with (function, arguments, error, message), for the functions that take the arguments.

    The argument "main" stands for the logits, x or y, and {main} in a message for its name."""
    parameters = []
    for section, (kinds, entries) in wrong.items():
        for what, arguments, error, says in entries:
            before = len(parameters)
            for function in FUNCTIONS.values():
                given = {function.main if name == "main" else name: value for name, value in arguments.items()}
                if function.kind in kinds and function.accepts(set(given)):
                    message = says.replace("{main}", function.main)
                    parameters.append(
                        pytest.param(function, given, error, message, id=f"{section}: {what}-{function.name}")
                    )
            assert len(parameters) > before, f"no function takes {list(arguments)}"
    return pytest.mark.parametrize("function, arguments, error, message", parameters)


def assert_refused(function: Function, arguments: dict[str, Any], error: Any, message: str) -> None:
    """The call raises that error, and neither `out` nor any argument is written to."""
    arguments = function.right | arguments
    before = [array.tobytes() for array in (LOGITS, LABELS, PROBABILITIES)]
    out = arguments.get("out")
    if "out" in function.options and "out" not in arguments:
        # What would be the right buffer if the rest were right.
        main = arguments[function.main]
        shape = main.shape if isinstance(main, np.ndarray) else LOGITS.shape
        dtype = main.dtype if isinstance(main, np.ndarray) and main.dtype.kind == "f" else F64
        out = arguments["out"] = np.zeros(shape[:-1] if function.kind == "rows" else shape, dtype)
    if isinstance(out, np.ndarray) and out.flags.writeable:
        out[...] = SENTINEL
    kept = np.array(out)
    with pytest.raises(error, match=f"(?s){message}"):
        function.call(**arguments)
    np.testing.assert_array_equal(np.array(out), kept)
    assert [array.tobytes() for array in (LOGITS, LABELS, PROBABILITIES)] == before


def masked(values: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(values, mask=np.zeros(values.shape, bool))


def with_value(value: float, size: int = CLASSES) -> np.ndarray:
    """Ones, and the value at index 3."""
    vector = np.ones(size)
    vector[3] = value
    return vector
