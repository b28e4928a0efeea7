"""The functions that compute, one row for each and each kind of targets: what its arguments are called and how they are
made, which options it takes, what it returns, and what that should be. Tests of every function take their parameters
from here. (`one_hot` and `predict` are exact and have tests of their own.)

A family is a set of functions of the same arguments, whose results one call of an oracle tells. For example::

    arrays = family.arguments(numbers((7, 3), np.float32))
    check(family, arrays, weight=[1, 2, 3])             # every function of the family, within the contract

    got = function(*arrays, out=out)["grad"]            # one of them, its results by name
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest
from oracle import (
    LD,
    Number,
    assert_within,
    exact,
    exact_binary,
    exact_log_softmax_grad,
    exact_softmax,
    exact_softmax_grad,
)
from oracle_curvature import exact_grad_hess, exact_hvp
from oracle_divergence import exact_divergence
from oracle_entropy import exact_entropy

import fastce

F32, F64 = np.float32, np.float64
DTYPES = [F32, F64]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f64"])

# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


def numbers(shape: tuple[int, ...], dtype: Any = F32, seed: int = 0) -> np.ndarray:
    """Between -7 and 7: what is computed in two ways then differs by 2*(4 + 14) eps at most."""
    return np.random.default_rng(seed).uniform(-7, 7, shape).astype(dtype)


def labels_for(shape: tuple[int, ...], seed: int = 1, axis: int = -1) -> np.ndarray:
    """Class indices for logits of that shape. One of them is ignored."""
    labels = np.random.default_rng(seed).integers(shape[axis], size=np.delete(shape, axis))
    if labels.size > 4:
        labels.flat[3] = -100
    return labels


def soft_targets(shape: tuple[int, ...], dtype: Any = F32, seed: int = 1) -> np.ndarray:
    """In [0, 1], some of them 0 and 1."""
    return np.clip(np.random.default_rng(seed).uniform(-0.4, 1.4, shape), 0, 1).astype(dtype)


def one_hot_rows(labels: Any, classes: int, dtype: Any, axis: int = -1) -> np.ndarray:
    """The rows that such labels stand for. Those of an ignored label hold nothing but 0."""
    hot = np.asarray(labels)[..., None] == np.arange(classes)
    return np.ascontiguousarray(np.moveaxis(hot, -1, axis)).astype(dtype)


def softmax_of(x: np.ndarray, axis: int = -1, *, log: bool = False) -> np.ndarray:
    """softmax(x) or log_softmax(x), rounded once: what the products are given as y."""
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        m = x.max(axis=axis, keepdims=True).astype(LD)
        e = np.exp(x - m)
        at_top = np.cumsum(x == m, axis=axis) == 1  # the first maximum
        at_top &= x == m
        tail = np.where(at_top, 0, e).sum(axis=axis, keepdims=True)
        y = (x - m) - np.log1p(tail) if log else e / (1 + tail)
    return y.astype(x.dtype if x.dtype.kind == "f" else F64)


def _with_labels(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
    return x, labels_for(x.shape, seed, axis) if labels is None else np.asarray(labels)


def _with_rows(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
    if labels is not None:
        return x, one_hot_rows(labels, x.shape[axis], x.dtype, axis)
    # With one class that is not certain, the two-term form is infinite.
    return x, np.ones_like(x) if x.shape[axis] == 1 else soft_targets(x.shape, x.dtype, seed)


def _with_target_logits(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
    """Labels are the only class that is not masked; a row whose label is ignored has targets that are all the same."""
    if labels is None:
        return x, numbers(x.shape, x.dtype, seed)
    hot = one_hot_rows(labels, x.shape[axis], bool, axis)
    return x, np.where(hot | ~hot.any(axis=axis, keepdims=True), 0, -np.inf).astype(x.dtype)


def _alone(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
    return (x,)


def _with_upstream(log: bool) -> Callable[..., tuple[np.ndarray, ...]]:
    def make(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
        hot = labels is not None
        upstream = one_hot_rows(labels, x.shape[axis], x.dtype, axis) if hot else numbers(x.shape, x.dtype, seed)
        return upstream, softmax_of(x, axis, log=log)

    return make


def _with_vectors(make: Callable[..., tuple[np.ndarray, ...]]) -> Callable[..., tuple[np.ndarray, ...]]:
    def with_vectors(x: np.ndarray, labels: Any, axis: int, seed: int) -> tuple[np.ndarray, ...]:
        return *make(x, labels, axis, seed), numbers(x.shape, x.dtype, seed + 1)

    return with_vectors


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    name: str
    names: tuple[str, ...]  # of its arrays, in the order of the call
    make: Callable[..., tuple[np.ndarray, ...]]
    oracle: Callable[..., NamedTuple]  # its fields are what the functions return, and more
    options: frozenset[str]  # of any of the functions, beside out and num_threads
    fixed: dict[str, Any] = field(default_factory=dict, hash=False)  # options that make the family what it is

    def arguments(self, x: np.ndarray, labels: Any = None, *, axis: int = -1, seed: int = 1) -> tuple[np.ndarray, ...]:
        """For the logits x and the labels, if given, as they are or as one-hot rows. Else with random targets."""
        return self.make(x, labels, axis, seed)

    def exact(self, *arrays: np.ndarray, **options: Any) -> Any:
        if self.is_reduced:
            options = {"reduction": "none"} | options
        return self.oracle(*arrays, **self.fixed, **options)

    @property
    def functions(self) -> list[Function]:
        return [function for function in FUNCTIONS if function.family is self]

    @property
    def by_row(self) -> bool:
        """The classes of a row depend on each other."""
        return self.name != "sigmoid"

    @property
    def is_loss(self) -> bool:
        return self.is_reduced and self not in CURVATURE

    @property
    def is_reduced(self) -> bool:
        """It has the options of losses."""
        return "reduction" in self.options

    @property
    def has_labels(self) -> bool:
        """Its targets are class indices."""
        return "ignore_index" in self.options


@dataclass(frozen=True)
class Function:
    name: str  # of the attribute of fastce, and of fastce.reference
    family: Family
    returns: tuple[str, ...]
    out: str | None  # which of the results is written to `out`. None: it takes none
    options: frozenset[str]  # beside num_threads, which all take

    def __call__(self, *arrays: Any, package: Any = fastce, **options: Any) -> dict[str, Any]:
        """The results by name. Losses are not reduced unless a reduction is given."""
        if "reduction" in self.options:
            options = {"reduction": "none"} | options
        got = getattr(package, self.name)(*arrays, **self.family.fixed, **options)
        return dict(zip(self.returns, got if len(self.returns) > 1 else (got,), strict=True))

    def taken(self, options: dict[str, Any]) -> dict[str, Any]:
        """Those of the options that it takes."""
        return {key: value for key, value in options.items() if key in self.options or key == "num_threads"}

    @property
    def id(self) -> str:
        return self.name if self.name == self.family.name else f"{self.name}-{self.family.name}"


_OF_LOSSES = frozenset({"weight", "sample_weight", "reduction", "normalizer", "axis", "upstream"})
_OF_ONE_TERM = _OF_LOSSES | {"label_smoothing", "z_loss", "temperature", "softcap"}
_OF_PRODUCTS = frozenset({"axis", "temperature"})
_OF_SOFTMAX = _OF_PRODUCTS | {"softcap"}
_OF_ENTROPIES = frozenset({"temperature", "softcap", "sample_weight", "reduction", "normalizer", "axis", "upstream"})

# The values of which tests take every combination. A "random" one has a number for each class or row.
VALUES: dict[str, tuple[Any, ...]] = {
    "weight": (None, "random"),
    "pos_weight": (None, "random"),
    "sample_weight": (None, "random"),
    "label_smoothing": (0.0, 0.1, 1.0),
    "z_loss": (0.0, 1e-2),
    "temperature": (1.0, 0.7),
    "softcap": (None, 5.0),
}

INDEX = Family("index", ("logits", "targets"), _with_labels, exact, _OF_ONE_TERM | {"ignore_index"})
PROBABILITIES = Family("probabilities", ("logits", "targets"), _with_rows, exact, _OF_ONE_TERM)
SIGMOID = Family("sigmoid", ("logits", "targets"), _with_rows, exact_binary, _OF_LOSSES | {"pos_weight"})
TWO_TERM = Family(
    "two_term", ("logits", "targets"), _with_rows, exact_binary, _OF_LOSSES, fixed={"activation": "softmax"}
)
DIVERGENCE = Family(
    "kl", ("logits", "target_logits"), _with_target_logits, exact_divergence, _OF_ENTROPIES, {"targets": "logits"}
)
RELATIVE_ENTROPY = Family(
    "kl_probabilities", ("logits", "target_logits"), _with_rows, exact_divergence, _OF_ENTROPIES,
    {"targets": "probabilities"},
)  # fmt: skip
MAPS = Family("softmax", ("x",), _alone, exact_softmax, _OF_SOFTMAX)
SOFTMAX_GRAD = Family("softmax_grad", ("upstream", "y"), _with_upstream(False), exact_softmax_grad, _OF_PRODUCTS)
LOG_SOFTMAX_GRAD = Family(
    "log_softmax_grad", ("upstream", "y"), _with_upstream(True), exact_log_softmax_grad, _OF_PRODUCTS
)

ENTROPY = Family("entropy", ("logits",), _alone, exact_entropy, _OF_ENTROPIES)

_AND_VECTORS = ("logits", "targets", "vectors")
CURVATURE = [
    Family("hess_index", ("logits", "targets"), _with_labels, exact_grad_hess, _OF_ONE_TERM | {"ignore_index"}),
    Family("hess_probabilities", ("logits", "targets"), _with_rows, exact_grad_hess, _OF_ONE_TERM),
    Family("hvp_index", _AND_VECTORS, _with_vectors(_with_labels), exact_hvp, _OF_ONE_TERM | {"ignore_index"}),
    Family("hvp_probabilities", _AND_VECTORS, _with_vectors(_with_rows), exact_hvp, _OF_ONE_TERM),
]

FAMILIES = [INDEX, PROBABILITIES, SIGMOID, TWO_TERM, MAPS, SOFTMAX_GRAD, LOG_SOFTMAX_GRAD, ENTROPY, DIVERGENCE,
            RELATIVE_ENTROPY, *CURVATURE]  # fmt: skip
LOSSES = [family for family in FAMILIES if family.is_loss and "targets" in family.names]
ONE_TERM = [INDEX, PROBABILITIES]
DIVERGENCES = [DIVERGENCE, RELATIVE_ENTROPY]
PRODUCTS = [SOFTMAX_GRAD, LOG_SOFTMAX_GRAD]


def _functions() -> Iterable[Function]:
    for family in LOSSES:
        name = "cross_entropy" if family in ONE_TERM else "binary_cross_entropy"
        yield Function(name, family, ("loss",), None, family.options - {"upstream"})
        yield Function(f"{name}_with_grad", family, ("loss", "grad"), "grad", family.options | {"out"})
        if family in ONE_TERM:
            yield Function(f"{name}_grad", family, ("grad",), "grad", family.options | {"out"})
    for name, result in (("softmax", "p"), ("log_softmax", "logp"), ("logsumexp", "lse")):
        yield Function(name, MAPS, (result,), result, _OF_SOFTMAX | {"out"})
    yield Function("entropy", ENTROPY, ("loss",), None, _OF_ENTROPIES - {"upstream"})
    yield Function("entropy_with_grad", ENTROPY, ("loss", "grad"), "grad", _OF_ENTROPIES | {"out"})
    for family in DIVERGENCES:
        yield Function("kl_divergence", family, ("loss",), None, family.options - {"upstream"})
        yield Function("kl_divergence_with_grad", family, ("loss", "grad"), "grad", family.options | {"out"})
    for family in PRODUCTS:
        yield Function(family.name, family, ("grad",), "grad", _OF_PRODUCTS | {"out"})
    for family in CURVATURE:
        if "vectors" in family.names:
            yield Function("cross_entropy_hvp", family, ("hvp",), "hvp", family.options | {"out"})
        else:  # its `out` is a pair, which test_curvature.py tests
            yield Function("cross_entropy_grad_hess", family, ("grad", "hess"), None, family.options | {"out"})


FUNCTIONS = list(_functions())


def combinations(family: Family) -> Iterable[dict[str, Any]]:
    """Of the values of its options, without those that are the defaults. In cross-entropy, beside other options,
    temperature and softcap are both given or both not, because they do not meet the others in different places."""
    names = [name for name in VALUES if name in family.options]
    for chosen in itertools.product(*(VALUES[name] for name in names)):
        given = {name: value for name, value in zip(names, chosen, strict=True) if value != VALUES[name][0]}
        if family in ONE_TERM and len(given) > 1 and len({"temperature", "softcap"} & given.keys()) == 1:
            continue
        yield given


def over(rows: list[Family] | list[Function]) -> pytest.MarkDecorator:
    """Parametrise a test with each `family`, or with each `function`."""
    ids = [row.id if isinstance(row, Function) else row.name for row in rows]
    return pytest.mark.parametrize("function" if isinstance(rows[0], Function) else "family", rows, ids=ids)


# ---------------------------------------------------------------------------------------------------------------------
# Comparisons
# ---------------------------------------------------------------------------------------------------------------------


def check(
    family: Family,
    arrays: tuple[np.ndarray, ...],
    *,
    more: float = 0,
    want: Any = None,
    back: Callable[[np.ndarray], np.ndarray] = lambda a: a,
    about: str = "",
    right: dict[tuple[str, bytes], float] | None = None,
    **options: Any,
) -> Any:
    """What every function of the family returns is within the contract, with so many ulps more. For cross-entropy also
    what follows from stats. Returns the exact values; they may be given, for results that are brought `back` first.

    It is one thread that computes, unless options say otherwise: other tests assert that more give the same bits.
    Results that are in `right`, with the ulps they were within, are not compared again; others are added."""
    if want is None:
        want = family.exact(*arrays, **{k: v for k, v in options.items() if k != "num_threads"})
    right = {} if right is None else right

    def compare(function: Function, got: dict[str, Any], more: float) -> None:
        for name, value in got.items():
            number: Number = getattr(want, name)
            value = back(value) if np.ndim(value) else value
            key = name, value.tobytes()
            if right.get(key, np.inf) > more or value.shape != number.value.shape:
                assert_within(value, number, f"{about}{function.id}: {name}", more=more)
                right[key] = more

    for function in family.functions:
        given = {"num_threads": 1} | function.taken(options)
        compare(function, function(*arrays, **given), more)
        if function.name == "cross_entropy_grad":
            forward = family.functions[0]
            options_of_forward = {"reduction": "none"} | forward.taken(given)
            loss, stats = fastce.cross_entropy(*arrays, **options_of_forward, return_stats=True)
            compare(forward, {"loss": loss}, more)
            compare(function, function(*arrays, **given, stats=stats), more + 1)  # stats are rounded once
    return want


def assert_same_bits(family: Family, arrays: tuple[np.ndarray, ...], **options: Any) -> None:
    """Forward alone, backward alone and fused, in one thread and in two."""
    bits: dict[str, bytes] = {}
    for function in family.functions:
        for num_threads in (1, 2):
            for name, value in function(*arrays, num_threads=num_threads, **function.taken(options)).items():
                assert bits.setdefault(name, value.tobytes()) == value.tobytes(), f"{function.id}: {name}"
