"""The errors of the kernels' polynomials, as bench/minimax.py measures them, are at most what their header states."""

from __future__ import annotations

import pytest

minimax = pytest.importorskip("minimax", reason="there is no bench/ beside these tests", exc_type=ModuleNotFoundError)

HEADER = minimax.header()
POLYNOMIALS = list(minimax.shipped(HEADER.read_text(encoding="utf-8"))) if HEADER else []


@pytest.mark.skipif(HEADER is None, reason="the header is not here")
def test_every_polynomial_is_read():
    assert {p.name: len(p.coefficients) for p in POLYNOMIALS} == {
        "exp f32 16": 2,
        "exp f32 8": 2,
        "exp f32 1": 5,
        "exp f64 16": 5,
        "exp f64 2": 8,
        "exp f64 1": 10,
        "log1p f32": 4,
        "log1p f64": 10,
        "tanh f32": 5,
        "tanh f64": 11,
        "excess f32": 6,
        "excess f64": 12,
    }


@pytest.mark.parametrize("polynomial", POLYNOMIALS, ids=lambda p: p.name)
def test_error_is_at_most_what_the_header_states(polynomial):
    assert polynomial.claimed is not None, f"{HEADER} states no error"
    error, where = minimax.measure(polynomial)
    assert error <= polynomial.claimed, f"at {minimax.argument(polynomial.function, where)}"


@pytest.mark.parametrize("name", ["exp f32 8", "log1p f32", "excess f32"])
def test_what_is_found_is_about_as_good_as_what_is_used(name):
    for polynomial in POLYNOMIALS:
        if polynomial.name == name:
            used = minimax.measure(polynomial)[0]
            found = minimax.find(*polynomial[:3], len(polynomial.coefficients) - 1)
            assert 0.5 * used < minimax.measure(found)[0] < 1.1 * used
