"""The functions of fastce as the tests of calls see them: which arrays each takes, what it returns, and arguments that
suit it. A test of calls is written once and runs for every function that it applies to."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import fastce

F32, F64 = np.float32, np.float64
DTYPES = [F32, F64]
# Small, not a multiple of a vector, several vectors, several blocks of classes.
SHAPES = [(1, 1), (7, 3), (33, 10), (200, 17), (5, 300), (3, 4097), (2, 9000)]

# Another layout may be computed by other code: vectors along the classes, or across rows. Each result is within
# (4 + |x_j - row_max|)*eps of the exact one. Logits span at most 14 here, so two results are within 36*eps of each
# other. Options add at most 8*eps.
ROOM_EPS = 44


@dataclass(frozen=True)
class Case:
    """A function, called in one way.

    `arguments` and `results` give the shape of each array: "whole" is that of the logits, "row" has one number for each
    row, "class" one for each class, "one" is a scalar. `loose` names the results whose terms may cancel. Their errors
    are relative to the largest number of the result."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, str]
    results: dict[str, str]
    loose: frozenset[str] = frozenset()
    options: dict[str, Any] = field(default_factory=dict)
    targets: str = ""  # what they are: "labels", "probabilities" or "both terms"

    def __str__(self) -> str:
        return self.name

    @property
    def main(self) -> str:
        """The argument that has the shape and dtype of the gradient."""
        return "y" if "y" in self.arguments else next(iter(self.arguments))

    @property
    def out(self) -> str | None:
        """The result that `out` holds, if the case takes an `out`."""
        return next((name for name in ("grad", "p", "lse") if name in self.results), None)

    @property
    def places(self) -> set[str]:
        """The results that are classes or ranks: intp."""
        return {"class", "predicted", "rank"} & set(self.results)

    def shape_of(self, name: str, shape: tuple[int, ...], axis: int = -1) -> tuple[int, ...]:
        """The shape of an argument or result for logits of that shape."""
        at = axis % len(shape)
        kind = (self.arguments | self.results)[name]
        return {"whole": shape, "row": shape[:at] + shape[at + 1 :], "class": (shape[at],), "one": ()}[kind]

    def make(self, shape: tuple[int, ...], dtype: Any = F32, axis: int = -1) -> dict[str, np.ndarray]:
        """Contiguous arguments. They depend on names and shape alone."""
        made: dict[str, np.ndarray] = {}
        for name in self.arguments:
            made[name] = self._argument(name, shape, np.dtype(dtype), axis, made)
        return made

    def _argument(
        self, name: str, shape: tuple[int, ...], dtype: np.dtype, axis: int, made: dict[str, np.ndarray]
    ) -> np.ndarray:
        own_shape = self.shape_of(name, shape, axis)
        if name in ("row_max", "tail"):
            stats = fastce.cross_entropy(made["logits"], made["targets"], axis=axis, return_stats=True)[1]
            return np.ascontiguousarray(getattr(stats, name)).reshape(own_shape)
        rng = np.random.default_rng([zlib.crc32(name.encode()), *shape])
        if name == "targets" and self.targets == "labels":
            labels = np.array(rng.integers(shape[axis], size=own_shape))
            if labels.size > 4:
                labels.flat[3] = -100
            return labels
        if name == "target_logits" and self.options.get("targets") == "probabilities":
            values = np.clip(rng.uniform(-0.2, 0.8, own_shape), 0, 1) + 1e-3
        elif name in ("logits", "x", "target_logits"):
            values = rng.uniform(-7, 7, own_shape)
        elif name == "y":
            values = np.exp(rng.uniform(-14, 0, own_shape))
            values /= values.sum(axis=axis, keepdims=True)
            values = np.log(values) if self.name == "log_softmax_grad" else values
        elif name == "targets":
            low, high = (0, 0.8) if self.targets == "probabilities" else (-0.4, 1.4)
            values = np.clip(rng.uniform(low, high, own_shape), 0, 1)
            if self.options.get("activation") == "softmax" and shape[axis] == 1:
                values = np.ones(own_shape)  # of the only class: the loss would be infinite otherwise
        elif name in ("upstream", "vectors"):
            values = rng.uniform(-2, 2, own_shape)
        else:
            values = rng.uniform(0.5, 2, own_shape)
        return np.array(values).astype(dtype)

    def __call__(self, arguments: dict[str, Any], **options: Any) -> dict[str, Any]:
        order = ("logits", "targets", "target_logits", "vectors", "x", "upstream", "y")
        positional = [name for name in order if name in arguments]
        if self.main != "y":
            positional = [name for name in positional if name != "upstream"]
        keywords = {name: value for name, value in arguments.items() if name not in positional}
        options = self.options | options
        returned = self.function(*(arguments[name] for name in positional), **keywords, **options)
        return dict(zip(self.results, _parts(returned), strict=True))

    def assert_same(
        self, got: dict[str, Any], want: dict[str, Any], about: object = "", *, bitwise: bool = False
    ) -> None:
        """The same results, dtypes and shapes: to the bit, or as far as two ways to compute them may differ."""
        assert got.keys() == want.keys()
        for name in want:
            mine, theirs = np.asarray(got[name]), np.asarray(want[name])
            assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), f"{name} {about}"
            if mine.tobytes() == theirs.tobytes():
                continue
            if bitwise or mine.dtype.kind != "f" or name == "row_max":
                np.testing.assert_array_equal(mine, theirs, err_msg=f"{name} {about}")
                continue
            room = ROOM_EPS * np.finfo(theirs.dtype).eps
            largest = np.abs(theirs[np.isfinite(theirs)]).max(initial=0)
            atol = room * float(largest) if name in self.loose else 0
            np.testing.assert_allclose(mine, theirs, rtol=room, atol=atol, err_msg=f"{name} {about}")


def _parts(returned: Any) -> Iterator[Any]:
    if isinstance(returned, tuple):
        for part in returned:
            yield from _parts(part)
    else:
        yield returned


def from_stats(logits: Any, targets: Any, *, row_max: Any, tail: Any, **options: Any) -> Any:
    return fastce.cross_entropy_grad(logits, targets, stats=fastce.SoftmaxStats(row_max, tail), **options)


def layer(logits: Any, targets: Any, *, upstream: Any = 1.0, out: Any = None, **options: Any) -> Any:
    ce = fastce.CrossEntropyLoss(**options)
    loss = ce(logits, targets)
    return loss, ce.backward(upstream, out=out)


def grad_hess(logits: Any, targets: Any, *, out: Any = None, **options: Any) -> Any:
    """With one array as `out`, for the first result."""
    pair = None if out is None else (out, np.empty_like(out))
    return fastce.cross_entropy_grad_hess(logits, targets, out=pair, **options)


def hess_grad(logits: Any, targets: Any, *, out: Any = None, **options: Any) -> Any:
    """With one array as `out`, for the diagonal, which is the first result here."""
    pair = None if out is None else (np.empty_like(out), out)
    return fastce.cross_entropy_grad_hess(logits, targets, out=pair, **options)[::-1]


def evaluated_rows(logits: Any, targets: Any, **options: Any) -> Any:
    return fastce.evaluate(logits, targets, **options, return_rows=True)[1]


def _cases() -> Iterator[Case]:
    whole = {"logits": "whole"}
    vectors = {"weight": "class", "sample_weight": "row"}
    ce = fastce.cross_entropy
    fused, backward = fastce.cross_entropy_with_grad, fastce.cross_entropy_grad
    none = {"reduction": "none"}
    each_row = {"loss": "row", "row_max": "row", "tail": "row"}
    both = {"loss": "one", "grad": "whole"}
    for kind, shape in (("labels", "row"), ("probabilities", "whole")):
        given = whole | {"targets": shape}
        loose = frozenset() if kind == "labels" else frozenset(["grad"])
        every = given | vectors | {"upstream": "row"}
        smoothing = {"label_smoothing": 0.1, "z_loss": 1e-3}
        rest: dict[str, Any] = {"loose": loose, "targets": kind}
        yield Case(f"cross_entropy, {kind}", ce, given, each_row, options=none | {"return_stats": True}, **rest)
        yield Case(f"cross_entropy_with_grad, {kind}", fused, given, both, **rest)
        yield Case(f"cross_entropy_grad, {kind}", backward, given, {"grad": "whole"}, **rest)
        stats = given | {"row_max": "row", "tail": "row"}
        yield Case(f"cross_entropy_grad, {kind}, stats", from_stats, stats, {"grad": "whole"}, **rest)
        yield Case(f"CrossEntropyLoss, {kind}", layer, given, both, **rest)
        capped = {"softcap": 5.0}
        yield Case(f"cross_entropy_with_grad, {kind}, softcap", fused, given, both, options=capped, **rest)
        rest["loose"] = frozenset(["grad"])
        yield Case(f"cross_entropy_with_grad, {kind}, smoothing", fused, given, both, options=smoothing, **rest)
        results = {"loss": "row", "grad": "whole"}
        yield Case(f"cross_entropy_with_grad, {kind}, options", fused, every, results, options=none | smoothing, **rest)
        second = none | smoothing | {"temperature": 0.9}
        results = {"grad": "whole", "second": "whole"}
        rest["loose"] = frozenset(["grad", "second"])
        yield Case(f"cross_entropy_grad_hess, {kind}", grad_hess, given, results, **rest)
        yield Case(f"cross_entropy_grad_hess, {kind}, options", hess_grad, every, results, options=second, **rest)
        rest["loose"] = frozenset(["grad"])
        hvp, vectors_too = fastce.cross_entropy_hvp, {"vectors": "whole"}
        yield Case(f"cross_entropy_hvp, {kind}", hvp, given | vectors_too, {"grad": "whole"}, **rest)
        if kind == "labels":
            name = "cross_entropy_hvp, labels, softcap"
            yield Case(name, hvp, given | vectors_too, {"grad": "whole"}, options=capped, **rest)
            rest["loose"] = frozenset(["grad", "second"])
            name = "cross_entropy_grad_hess, labels, softcap"
            yield Case(name, grad_hess, given, {"grad": "whole", "second": "whole"}, options=capped, **rest)
            rest["loose"] = frozenset(["grad"])
        every = every | vectors_too
        yield Case(f"cross_entropy_hvp, {kind}, options", hvp, every, {"grad": "whole"}, options=second, **rest)

    bce, fused = fastce.binary_cross_entropy, fastce.binary_cross_entropy_with_grad
    given = whole | {"targets": "whole"}
    for activation, shape in (("sigmoid", "whole"), ("softmax", "row")):
        every = given | vectors | {"upstream": shape}
        if activation == "sigmoid":
            every["pos_weight"] = "class"
        options = {"activation": activation}
        rest = {"loose": frozenset(["grad"]), "targets": "both terms"}
        yield Case(f"binary_cross_entropy, {activation}", bce, given, {"loss": shape}, options=options | none, **rest)
        yield Case(f"binary_cross_entropy_with_grad, {activation}", fused, given, both, options=options, **rest)
        results = {"loss": shape, "grad": "whole"}
        name = f"binary_cross_entropy_with_grad, {activation}, options"
        yield Case(name, fused, every, results, options=options | none, **rest)

    yield Case("softmax, softcap", fastce.softmax, {"x": "whole"}, {"p": "whole"}, options={"softcap": 5.0})
    for function in (fastce.softmax, fastce.log_softmax):
        yield Case(function.__name__, function, {"x": "whole"}, {"p": "whole"})
    yield Case("logsumexp", fastce.logsumexp, {"x": "whole"}, {"lse": "row"}, frozenset(["lse"]))
    for function in (fastce.softmax_grad, fastce.log_softmax_grad):
        arguments = {"upstream": "whole", "y": "whole"}
        yield Case(function.__name__, function, arguments, {"grad": "whole"}, frozenset(["grad"]))
    yield Case("entropy", fastce.entropy, whole, {"loss": "row"}, options=none)
    rest = {"loose": frozenset(["grad"])}
    yield Case("entropy_with_grad", fastce.entropy_with_grad, whole, both, **rest)
    every = whole | {"sample_weight": "row", "upstream": "row"}
    results = {"loss": "row", "grad": "whole"}
    options = none | {"temperature": 0.7}
    yield Case("entropy_with_grad, options", fastce.entropy_with_grad, every, results, options=options, **rest)
    options = {"softcap": 5.0}
    yield Case("entropy_with_grad, softcap", fastce.entropy_with_grad, whole, both, options=options, **rest)
    results = dict.fromkeys(fastce.EvaluatedRows._fields, "row")
    rest = {"targets": "labels"}
    yield Case("evaluate", evaluated_rows, whole | {"targets": "row"}, results, **rest)
    options = {"softcap": 5.0}
    yield Case("evaluate, softcap", evaluated_rows, whole | {"targets": "row"}, results, options=options, **rest)
    given = whole | {"target_logits": "whole"}
    kl, fused = fastce.kl_divergence, fastce.kl_divergence_with_grad
    every = given | {"sample_weight": "row", "upstream": "row"}
    results = {"loss": "row", "grad": "whole"}
    for targets in ("logits", "probabilities"):
        options = {"targets": targets}
        rest = {"loose": frozenset(["grad", "loss"])}
        yield Case(f"kl_divergence, {targets}", kl, given, {"loss": "row"}, options=options | none, **rest)
        yield Case(f"kl_divergence_with_grad, {targets}", fused, given, both, options=options, **rest)
        capped = options | {"softcap": 5.0}
        yield Case(f"kl_divergence_with_grad, {targets}, softcap", fused, given, both, options=capped, **rest)
        options = options | none | {"temperature": 0.7}
        yield Case(f"kl_divergence_with_grad, {targets}, options", fused, every, results, options=options, **rest)
    yield Case("predict", fastce.predict, whole, {"class": "row"})


CASES = list(_cases())
BY_NAME = {case.name: case for case in CASES}


def each_case(condition: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Parametrises a test with every case that meets the condition."""
    return pytest.mark.parametrize("case", [case for case in CASES if condition(case)], ids=str)


def takes_out(case: Case) -> bool:
    return case.out is not None
