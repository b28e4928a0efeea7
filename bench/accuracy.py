"""Measure the errors of every function under every instruction set of this processor, and print a markdown table.

    python bench/accuracy.py [--smoke]     # takes about half a minute, and needs the packages of the extra `test`

Results are compared with the oracles of the tests, which compute in long double, on a fixed list of inputs: random,
far apart, confident, right and wrong rows, rows at an offset, many classes, all options together; with classes along
the rows of memory and across them.

A bound is a constant plus what a number's own logits add, such as 4 + gap. A cell contains the largest share of a bound
that an error took, times the constant: where the bound is 4 + gap, an error of 4 + gap eps counts as 4. The exit status
is 1 if an error is larger than its bound."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fastce

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from functions import DTYPES, FAMILIES, LOSSES, MAPS, ONE_TERM, Family, numbers  # noqa: E402
from isa import AVAILABLE, computed_with  # noqa: E402
from oracle import LD, OPTION_ULPS, Number  # noqa: E402
from rows import GAPS, confident, on_grid, options_of  # noqa: E402

NAMES = {
    "index": "cross_entropy of labels",
    "probabilities": "cross_entropy of probabilities",
    "sigmoid": "binary_cross_entropy, sigmoid",
    "two_term": "binary_cross_entropy, softmax",
    "softmax": {"p": "softmax", "logp": "log_softmax", "lse": "logsumexp"},
    "softmax_grad": "softmax_grad",
    "log_softmax_grad": "log_softmax_grad",
    "entropy": "entropy",
    "kl": "kl_divergence of logits",
    "kl_probabilities": "kl_divergence of probabilities",
    "hess_index": "cross_entropy_grad_hess of labels",
    "hess_probabilities": "cross_entropy_grad_hess of probabilities",
    "hvp_index": "cross_entropy_hvp of labels",
    "hvp_probabilities": "cross_entropy_hvp of probabilities",
}
RESULTS = {"loss": "loss", "grad": "gradient", "hess": "Hessian", "hvp": "product"}
MANY_CLASSES = 2**17


def name_of(family: Family, result: str) -> str:
    name = NAMES[family.name]
    if isinstance(name, dict):
        return name[result]
    return name if "upstream" in family.names else f"{name}: {RESULTS[result]}"


def logits_of(dtype: Any, smoke: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Rows, and labels for them or None for targets of other kinds."""
    for classes in (3,) if smoke else (2, 3, 10, 17, 65, 1000, 5003):
        rows = 100 if classes <= 100 else 7
        for scale in (0.3, 1, 15):
            x = (numbers((rows, classes), dtype, classes) * scale).astype(dtype)
            yield x, None
            yield x, np.arange(rows) % classes
    for classes in (4,) if smoke else (2, 10, 130):
        for spread in (False, True):
            x, top = confident(GAPS[dtype][:: 3 if dtype is np.float32 else 20], classes, dtype, spread=spread)
            yield x, top
            yield x, (top + 1) % classes
    for offset in () if smoke else (1e4, -1e6, 1e8):
        plain = -np.random.default_rng(4).exponential(4, (60, 10))
        yield on_grid(plain, offset, dtype)[1], np.arange(60) % 10
    if not smoke:
        x = np.full((2, MANY_CLASSES), -0.1, dtype)
        x[:, 7] = 0
        x[1] = np.random.default_rng(5).normal(size=MANY_CLASSES)
        yield x, np.array([7, 7])


def cases(smoke: bool) -> Iterator[tuple[Family, tuple[np.ndarray, ...], dict[str, Any]]]:
    """Of each family: its arrays, by rows, and options."""
    for dtype in DTYPES:
        for x, labels in logits_of(dtype, smoke):
            for family in FAMILIES:
                if x.shape[1] == MANY_CLASSES and family not in (*ONE_TERM, MAPS):
                    continue
                arrays = family.arguments(x, labels)
                yield family, arrays, {}
                if family in LOSSES and x.shape[1] < MANY_CLASSES:
                    yield family, arrays, options_of(family, x)


def share(got: np.ndarray, want: Number, more: float) -> float:
    """The largest share of its bound that an error takes, where any error is one beyond a bound of 0."""
    info = np.finfo(got.dtype)
    allowed = ((want.ulps + more) * want.size + want.extra) * LD(info.eps) + want.floor * LD(info.smallest_subnormal)
    error = np.where(got == want.value.astype(got.dtype), 0, np.abs(got.astype(LD) - want.value))
    with np.errstate(all="ignore"):
        shares = np.where(error == 0, 0, error / allowed)
    return float(np.nan_to_num(shares, nan=np.inf).max(initial=0))


def measured(smoke: bool) -> tuple[dict[tuple[str, str], dict[str, float]], dict[str, float]]:
    """The largest errors, by function and dtype and by instruction set; and the constants of the bounds."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    expected: list[tuple[Family, tuple[str, ...], Any, float, Any]] = []
    for family, arrays, options in cases(smoke):
        want, more = family.exact(*arrays, **options), OPTION_ULPS if options else 0
        for axis in (-1, 0):
            turn = np.ascontiguousarray if axis == -1 else lambda a: np.ascontiguousarray(a.T)
            lying = tuple(turn(a) for a in arrays)
            for function in family.functions:
                given = {k: turn(v) if np.ndim(v) == 2 else v for k, v in function.taken(options).items()}
                given |= {"axis": axis, "num_threads": 1} | family.fixed
                given |= {"reduction": "none"} if family.is_reduced else {}
                calls.append((function.name, lying, given))
                expected.append((family, function.returns, want, more, axis))
    worst: dict[tuple[str, str], dict[str, float]] = {}
    constants: dict[str, float] = {}
    for isa in AVAILABLE:
        with tempfile.TemporaryDirectory() as folder:
            results = computed_with(isa, calls, Path(folder))
        for got, (family, returns, want, more, axis) in zip(results, expected, strict=True):
            for result, value in zip(returns, got if len(returns) > 1 else (got,), strict=True):
                number, name = getattr(want, result), name_of(family, result)
                value = value.T if axis == 0 and value.ndim == 2 else value
                errors = worst.setdefault((name, value.dtype.name), dict.fromkeys(AVAILABLE, 0.0))
                constants[name] = number.ulps
                errors[isa] = max(errors[isa], number.ulps * share(value, number, more))
    return worst, constants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few inputs, to see whether it runs")
    arguments = parser.parse_args()
    worst, constants = measured(arguments.smoke)
    columns = [(dtype, isa) for dtype in ("float32", "float64") for isa in AVAILABLE]
    print(f"| largest error, in eps | bound | {' | '.join(f'{dtype} {isa}' for dtype, isa in columns)} |")
    print(f"|---|---|{'---|' * len(columns)}")
    for name, bound in constants.items():
        print(f"| {name} | {bound:g} | {' | '.join(f'{worst[name, dtype][isa]:.2f}' for dtype, isa in columns)} |")
    config = fastce.show_config(mode="dicts")
    print(f"\nfastce {config['version']}, {config['compiler']}, NumPy {config['numpy']}.")
    return int(any(error > constants[name] for (name, _), errors in worst.items() for error in errors.values()))


if __name__ == "__main__":
    sys.exit(main())
