"""The polynomials of fastce's kernels: measures their errors and finds their coefficients.

    python bench/minimax.py                         the error of every polynomial, and that of the best one found here
    python bench/minimax.py --find exp f32 16       its coefficients, for EXP_STEPS of 16
    python bench/minimax.py --find log1p f64
    python bench/minimax.py --find exp f32 4 --degree 3

The coefficients in use are read from the header. An error is relative to the function that the polynomial serves, in
eps of the dtype. It is that of the polynomial alone: the coefficients are rounded, the arithmetic is not (50 digits).
The kernels' arithmetic adds its own rounding. Needs mpmath.

    exp      1 + r + r^2*Q(r)       relative to exp(r), |r| <= ln(2)/(2*EXP_STEPS)
    log1p    2*(s + s*z*Q(z))       relative to log(1 + e), z = s^2, s = e/(2 + e), 0 <= e <= 1
    tanh     y + y*u*Q(u)           relative to tanh(y), u = y^2, 0 <= y <= 5/8
    excess   u^2*Q(u)               relative to exp(u) - 1 - u, |u| <= 1/2

A polynomial is found with Remez's algorithm. Then its coefficients are rounded one by one, lowest first, and after each
the others are found anew, so that they make up for what rounding has changed."""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mpmath
from mpmath import mpf

HEADER = "_simd/vector_math.h"
DIGITS = 50
BITS = {"f32": 24, "f64": 53}
MEASURED, FITTED = 300, 1000  # points at which an error is measured, before the largest is refined; points of a fit
MOST_STEPS = 50  # of Remez's algorithm; some five are taken

Numbers = list[Any]  # of mpmath


class Polynomial(NamedTuple):
    function: str  # "exp", "log1p", "excess" or "tanh"
    dtype: str  # "f32" or "f64"
    steps: int  # EXP_STEPS; 1 for the others
    coefficients: list[float]  # constant first
    claimed: float | None  # the error in eps that the header states

    @property
    def name(self) -> str:
        return f"{self.function} {self.dtype}" + (f" {self.steps}" if self.function == "exp" else "")


# ---------------------------------------------------------------------------------------------------------------------
# The header
# ---------------------------------------------------------------------------------------------------------------------


def header() -> Path | None:
    """Beside this folder, or else in the installed package."""
    folders = [Path(__file__).resolve().parent.parent / "fastce"]
    spec = importlib.util.find_spec("fastce")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent)
    return next((path for folder in folders if (path := folder / HEADER).is_file()), None)


def shipped(text: str) -> Iterator[Polynomial]:
    """The polynomials in a header's text. Each follows a line with the conditions under which it is compiled."""
    inside, before, where = "", "", None
    found: list[tuple[tuple[str, str, int], list[float], float | None]] = []
    for line in text.splitlines():
        if function := re.match(
            r"CE_INLINE \w+ FN\((exp|log1p|excess|tanh)(?:s|_scaled|_excess)?\)\((?:const )?VEC", line
        ):
            inside = function[1]
        elif line.startswith("}"):
            inside = before = ""
        elif not inside:
            before += line  # comments above the function
        elif line.startswith("#"):
            where = None
            steps = re.match(r"#(?:el)?if (!?)CE_F32 && EXP_STEPS == (\d+)", line)
            either = re.match(r"#(?:if CE_F32|(else))\b", line) if inside != "exp" else None
            if steps or either:
                dtype = "f64" if (steps or either)[1] else "f32"
                claim = re.search(r"([\d.]+) eps", line) or re.search(rf"([\d.]+) eps in float{dtype[1:]}", before)
                where = inside, dtype, int(steps[2]) if steps else 1
                found.append((where, [], float(claim[1]) if claim else None))
        elif where:
            found[-1][1].extend(
                float.fromhex(number) for number in re.findall(r"SET1\((-?0x[0-9a-f.]+p[-+]\d+)f?\)", line)
            )
    for (function, dtype, steps), coefficients, claimed in found:
        yield Polynomial(function, dtype, steps, coefficients[::-1], claimed)


# ---------------------------------------------------------------------------------------------------------------------
# What is approximated: f on an interval, and the weight that turns an error of Q into one relative to the function
# ---------------------------------------------------------------------------------------------------------------------


def interval(function: str, steps: int) -> tuple[Any, Any]:
    if function == "exp":
        half = mpmath.ln2 / (2 * steps)
        return -half, half
    ends = {"log1p": (mpf(0), mpf(1) / 9), "excess": (mpf(-1) / 2, mpf(1) / 2), "tanh": (mpf(0), mpf(25) / 64)}
    return ends[function]


def ideal(function: str, x: Any) -> tuple[Any, Any]:
    """What Q would be at x != 0 if it were exact, and the weight of its error."""
    if function == "exp":
        return (mpmath.expm1(x) - x) / x**2, x**2 / mpmath.exp(x)
    if function == "excess":
        excess = mpmath.expm1(x) - x
        return excess / x**2, x**2 / excess
    s = mpmath.sqrt(x)
    exact = mpmath.atanh(s) if function == "log1p" else mpmath.tanh(s)
    return (exact - s) / (s * x), s * x / exact


def argument(function: str, x: Any) -> str:
    """x as the kernels' callers see it."""
    if function == "exp":
        return f"r = {mpmath.nstr(x, 4)}"
    if function == "excess":
        return f"u = {mpmath.nstr(x, 4)}"
    s = mpmath.sqrt(x)
    if function == "tanh":
        return f"y = {mpmath.nstr(s, 4)}"
    return f"e = {mpmath.nstr(2 * s / (1 - s), 4)}"


def points(low: Any, high: Any, count: int) -> Numbers:
    """Denser towards the ends, which belong to them, and without 0, where no error of Q counts."""
    middle, half = (low + high) / 2, (high - low) / 2
    x = [middle - half * mpmath.cospi(mpf(k) / (count - 1)) for k in range(count)]
    return [at for at in x if abs(at) > half * mpf(10) ** -20]


# ---------------------------------------------------------------------------------------------------------------------
# Errors and fits
# ---------------------------------------------------------------------------------------------------------------------


def value(coefficients: Numbers, x: Any) -> Any:
    q = mpf(0)
    for c in reversed(coefficients):
        q = q * x + c
    return q


def measure(p: Polynomial) -> tuple[float, Any]:
    """The largest error in eps, and where it is."""
    with mpmath.workdps(DIGITS):

        def error(x: Any) -> Any:
            q, weight = ideal(p.function, x)
            return abs(weight * (value(p.coefficients, x) - q))

        x = points(*interval(p.function, p.steps), MEASURED)
        errors = [error(at) for at in x]
        k = errors.index(max(errors))
        low, high = x[max(k - 1, 0)], x[min(k + 1, len(x) - 1)]
        for _ in range(25):  # each takes a third off; there is one maximum in between
            third = (high - low) / 3
            if error(low + third) < error(high - third):
                low += third
            else:
                high -= third
        best = max((x[k], (low + high) / 2), key=error)
        return float(error(best) * mpf(2) ** (BITS[p.dtype] - 1)), best


def remez(x: Numbers, f: Numbers, weight: Numbers, degree: int) -> Numbers:
    """The polynomial whose largest weighted error at the points x is the least, constant first."""
    size = degree + 2
    at = [round((len(x) - 1) * mpf(k) / (size - 1)) for k in range(size)]
    for _ in range(MOST_STEPS):
        system, right = mpmath.matrix(size, size), mpmath.matrix(size, 1)
        for i, k in enumerate(at):
            for j in range(degree + 1):
                system[i, j] = weight[k] * x[k] ** j
            system[i, degree + 1] = (-1) ** i
            right[i] = weight[k] * f[k]
        *coefficients, level = mpmath.lu_solve(system, right)
        errors = [w * (value(coefficients, t) - v) for t, v, w in zip(x, f, weight, strict=True)]
        if max(map(abs, errors)) <= abs(level) * (1 + mpf(10) ** -10):
            return coefficients
        extrema: list[int] = []  # the largest of each run of one sign
        for k, e in enumerate(errors):
            if extrema and (errors[extrema[-1]] > 0) == (e > 0):
                if abs(e) > abs(errors[extrema[-1]]):
                    extrema[-1] = k
            else:
                extrema.append(k)
        # The smallest goes; one within goes with the smaller of its neighbours, so that signs still alternate.
        while len(extrema) > size:
            sizes = [abs(errors[k]) for k in extrema]
            k = sizes.index(min(sizes[0], sizes[-1]) if len(extrema) == size + 1 else min(sizes))
            first = k - (0 < k < len(extrema) - 1 and sizes[k - 1] < sizes[k + 1])
            del extrema[first : first + (2 if 0 < k < len(extrema) - 1 else 1)]
        if len(extrema) < size:
            break
        at = extrema
    raise ArithmeticError(f"no polynomial of degree {degree} was found")


def rounded(number: Any, dtype: str) -> Any:
    with mpmath.workprec(BITS[dtype]):
        return +number


def find(function: str, dtype: str, steps: int, degree: int) -> Polynomial:
    with mpmath.workdps(DIGITS):
        x = points(*interval(function, steps), FITTED)
        f, weight = map(list, zip(*(ideal(function, at) for at in x), strict=True))
        coefficients: list[float] = []
        for lowest in range(degree + 1):
            c = rounded(remez(x, f, weight, degree - lowest)[0], dtype)
            coefficients.append(float(c))
            # (f - c)/x is what the other coefficients approximate.
            f = [(v - c) / at for v, at in zip(f, x, strict=True)]
            weight = [w * abs(at) for w, at in zip(weight, x, strict=True)]
        return Polynomial(function, dtype, steps, coefficients, None)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def c_literal(number: float, dtype: str) -> str:
    digits, exponent = number.hex().split("p")
    digits = digits.rstrip("0").removesuffix(".") if "." in digits else digits
    return f"{digits}p{exponent}{'f' if dtype == 'f32' else ''}"


def describe(p: Polynomial, title: str) -> None:
    error, where = measure(p)
    print(f"{p.name}, {title}: error {error:.5f} eps at {argument(p.function, where)}")
    for c in reversed(p.coefficients):
        print(f"    {c_literal(c, p.dtype)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--find",
        nargs="+",
        metavar=("FUNCTION", "DTYPE"),
        help="exp, log1p, excess or tanh, f32 or f64, EXP_STEPS",
    )
    parser.add_argument("--degree", type=int, help="of Q; default: that of the polynomial in the header")
    options = parser.parse_args()
    path = header()
    polynomials = list(shipped(path.read_text(encoding="utf-8"))) if path else []
    if options.find:
        function, dtype, *steps = (*options.find, "") if len(options.find) == 1 else options.find
        wrong_steps = len(steps) != (function == "exp") or not all(n.isdecimal() and int(n) for n in steps)
        if function not in ("exp", "log1p", "excess", "tanh") or dtype not in BITS or wrong_steps:
            parser.error("--find takes: exp f32|f64 EXP_STEPS, or: log1p|excess|tanh f32|f64")
        key = function, dtype, int(steps[0]) if steps else 1
        here = [p for p in polynomials if (p.function, p.dtype, p.steps) == key]
        if not here and options.degree is None:
            parser.error("the header has no such polynomial: give --degree")
        for p in here:
            describe(p, "in the header")
        degree = len(here[0].coefficients) - 1 if options.degree is None else options.degree
        describe(find(*key, degree), f"found, degree {degree}")
        return 0
    if not polynomials:
        print("no header of fastce with polynomials was found", file=sys.stderr)
        return 1
    print(f"{path}\nerrors in eps; degrees are those of Q\n")
    print(f"{'':12}{'degree':>6}{'stated':>9}{'measured':>10}  {'at':14}{'found':>9}  at")
    for p in polynomials:
        degree = len(p.coefficients) - 1
        (error, where), found = measure(p), find(p.function, p.dtype, p.steps, degree)
        best, best_where = measure(found)
        stated = "-" if p.claimed is None else f"{p.claimed:g}"
        more = "" if p.claimed is None or error <= p.claimed else "   MORE THAN STATED"
        at, best_at = argument(p.function, where), argument(p.function, best_where)
        print(f"{p.name:12}{degree:6}{stated:>9}{error:10.5f}  {at:14}{best:9.5f}  {best_at}{more}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
