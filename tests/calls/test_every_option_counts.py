"""No option is accepted and ignored. A signature that contains an option without a rule is refused when the package is
imported, and each option of each public function changes what a call returns, or where it returns it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from functions import FAMILIES

import fastce
from fastce import _kernels

RNG = np.random.default_rng(0)
X = RNG.standard_normal((4, 3))
P = fastce.softmax(X)
LABELS = np.array([0, 2, 1, 2])
STATS = fastce.cross_entropy(X, LABELS, return_stats=True)[1]
BLOCK = fastce.block_stats(X, LABELS, class_offset=0, num_classes=3)

# A value of each option that must change the results of a call whose other options are the defaults; for options that
# need others, the others too.
CHANGES: dict[str, dict[str, Any]] = {
    "activation": {"activation": "softmax"},
    "axis": {"axis": 0},
    "class_offset": {"class_offset": 1, "num_classes": 4},  # the latter matters to smoothed labels alone
    "dtype": {"dtype": np.int8},
    "ignore_index": {"ignore_index": 2},
    "keepdims": {"keepdims": True},
    "label_smoothing": {"label_smoothing": 0.3},
    "linear_bias": {"linear_bias": [0.0, 1.0, 3.0]},
    "normalizer": {"normalizer": 7.0},
    "num_classes": {"num_classes": 9},  # of smoothed labels
    "out": {"out": None},  # made for each call
    "pos_weight": {"pos_weight": [1.0, 2.0, 3.0]},
    "reduction": {"reduction": "sum"},
    "return_rows": {"return_rows": True},
    "return_stats": {"return_stats": True},
    "sample_weight": {"sample_weight": [1.0, 2.0, 3.0, 4.0]},
    "softcap": {"softcap": 0.5},
    "stats": {"stats": fastce.SoftmaxStats(STATS.row_max + 1, STATS.tail)},
    "targets": {"targets": "probabilities"},
    "temperature": {"temperature": 2.0},
    "subnormals": {"subnormals": "flush"},  # where numbers are small
    "top_k": {"top_k": 2},
    "upstream": {"upstream": 3.0},
    "weight": {"weight": [1.0, 2.0, 3.0]},
    "z_loss": {"z_loss": 0.5},
}
ARGUMENTS: dict[str, Any] = {
    "logits": X, "x": X, "y": P, "targets": LABELS, "upstream": X[::-1].copy(), "labels": LABELS, "num_classes": 3,
    "target_logits": P, "vectors": X[::-1].copy(), "hidden": X, "linear_weight": 3 * X[:3], "class_offset": 0,
    "stats": BLOCK, "a": BLOCK, "b": fastce.block_stats(X + 1, LABELS, class_offset=0, num_classes=3),
}  # fmt: skip
FUNCTIONS = [getattr(fastce, name) for name in fastce.__all__ if inspect.isroutine(getattr(fastce, name))]
FUNCTIONS.remove(fastce.show_config)
OPTIONS = [
    (function, name)
    for function in FUNCTIONS
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY
]


@pytest.mark.parametrize("name", sorted({row.name for family in FAMILIES for row in family.functions}))
def test_the_families_have_each_option(name: str) -> None:
    """So the tests that compare with exact values are given it. That num_threads and stats change nothing, and what
    return_stats, keepdims and subnormals do, is tested apart."""
    rows = [(family, row) for family in FAMILIES for row in family.functions if row.name == name]
    in_families = {option for family, row in rows for option in row.options | set(family.fixed)}
    options = {option for function, option in OPTIONS if function.__name__ == name}
    assert in_families == options - {"num_threads", "stats", "return_stats", "keepdims", "subnormals"}


def test_a_signature_with_an_option_that_has_no_rule_is_refused() -> None:
    def cross_entropy(logits: Any, targets: Any, *, weight: Any = None, tempreature: float = 1.0) -> Any:
        """An option that does not exist."""

    with pytest.raises(TypeError, match="cross_entropy has an option 'tempreature', for which there is no rule"):
        _kernels.function("cross_entropy", "loss")(cross_entropy)


def test_a_call_takes_only_what_the_signature_contains() -> None:
    """Rules of options that another function has are not applied either."""

    @_kernels.function("cross_entropy", "loss")
    def only_weight(logits: Any, targets: Any, *, weight: Any = None) -> Any:
        """One option."""

    assert not np.array_equal(only_weight(X, LABELS, weight=[1, 1, 2]), only_weight(X, LABELS))
    with pytest.raises(TypeError, match="only_weight.* unexpected keyword argument 'z_loss'"):
        only_weight(X, LABELS, z_loss=0.1)


def returned(function: Callable[..., Any], **options: Any) -> list[np.ndarray]:
    arguments = {
        name: ARGUMENTS[name]
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is parameter.empty
    }
    if function in (fastce.binary_cross_entropy, fastce.binary_cross_entropy_with_grad):
        arguments["targets"] = P
    for key in ("targets", "labels") if "axis" in options and function is not fastce.one_hot else ():
        if arguments.get(key) is LABELS:
            arguments[key] = LABELS[:3]
            if "stats" in arguments:
                arguments["stats"] = fastce.BlockStats(*(part[:3] for part in BLOCK))
    result = function(**(arguments | options))
    flat = result if isinstance(result, tuple) else (result,)
    parts = [part for item in flat for part in (item if isinstance(item, tuple) else (item,))]
    return [np.asarray(repr(part) if isinstance(part, fastce.Evaluation) else part) for part in parts]


def assert_linear_grads_are_written(usual: list[np.ndarray], accumulate: bool) -> None:
    out = fastce.LinearGrads(np.ones_like(usual[1]), np.ones_like(usual[2]), None)
    got = returned(fastce.linear_cross_entropy_with_grad, out=out, accumulate=accumulate)
    assert got[1] is out.hidden and got[2] is out.weight
    np.testing.assert_allclose(out.hidden, usual[1] + accumulate, rtol=1e-14)
    np.testing.assert_allclose(out.weight, usual[2] + accumulate, rtol=1e-14)


@pytest.mark.parametrize(("function", "name"), OPTIONS, ids=[f"{f.__name__}-{name}" for f, name in OPTIONS])
def test_each_option_changes_something(function: Callable[..., Any], name: str) -> None:
    if name in ("num_threads", "chunk_bytes"):  # results are the same for every number, but a wrong one is an error
        with pytest.raises(ValueError, match=f"{name} is 0"):
            returned(function, **{name: 0})
        return
    # Where a sigmoid is of each element, the axis matters only to the shape of weights.
    others = {"activation": "softmax"} if name == "axis" and "binary" in function.__name__ else {}
    if name == "label_smoothing" and function is fastce.cross_entropy_hvp:  # the sum of the targets matters, which is 1
        others = CHANGES["weight"]
    if name == "num_classes" or (name == "weight" and function is fastce.grad_from_stats):
        # The stats contain the weights of labels that are not smoothed.
        others = CHANGES["label_smoothing"]
    if name == "axis" and "num_classes" in inspect.signature(function).parameters:
        others = {"num_classes": 4}
    if name == "subnormals":
        parameters = inspect.signature(function).parameters
        others = {"x": 500 * X} if "x" in parameters else {"upstream": 1e-300 * (X if "y" in parameters else 1)}
    usual = returned(function, **others)
    if function is fastce.linear_cross_entropy_with_grad and name in ("out", "accumulate"):
        assert_linear_grads_are_written(usual, name == "accumulate")
        return
    if name == "out":
        if function is fastce.cross_entropy_grad_hess:
            pair = np.empty_like(usual[0]), np.empty_like(usual[1])
            assert all(a is out for a, out in zip(returned(function, out=pair), pair, strict=True))
            np.testing.assert_array_equal(pair, usual)
            return
        out = np.empty_like(usual[-1])
        assert any(a is out for a in returned(function, out=out))
        np.testing.assert_array_equal(out, usual[-1])
        return
    changed = returned(function, **others, **CHANGES[name])
    same = len(changed) == len(usual) and all(
        a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b) for a, b in zip(changed, usual, strict=True)
    )
    assert not same, f"{name} was ignored"
