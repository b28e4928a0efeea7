"""The fuzzer of tests/fuzz.py for a short time on each instruction set, and that it finds what it is there for.

`FASTCE_FUZZ=600` runs it for 600 seconds, with other cases each time. Without it the cases are the same each time, as
many as there is time for."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from isa import AVAILABLE
from oracle import needs_longdouble

import fastce

pytest.importorskip("ml_dtypes")
import fuzz  # noqa: E402  -- it needs ml_dtypes

SECONDS = float(os.environ.get("FASTCE_FUZZ", 20))


@needs_longdouble
@pytest.mark.parametrize("isa", AVAILABLE)
def test_random_calls(isa: str) -> None:
    seed = AVAILABLE.index(isa)
    if "FASTCE_FUZZ" in os.environ:
        seed = int(np.random.SeedSequence().generate_state(1)[0])
    failures = fuzz.fuzz(isa, SECONDS / len(AVAILABLE), seed)
    assert not failures, f"seed {seed}\n{failures}"


def found(kind: str, cases: int = 300) -> str | None:
    """The first failure of so many cases."""
    return next((failure for n in range(cases) if (failure := fuzz.failure_of(f"{kind}:{n}"))), None)


@needs_longdouble
def test_a_wrong_number_is_found_and_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastce.softmax

    def wrong(*arguments: Any, **options: Any) -> Any:
        p = right(*arguments, **options)
        p.flat[-1] = np.nextafter(p.flat[-1], 2) * 1.00001
        return p

    assert found("softmax", 10) is None
    monkeypatch.setattr(fastce, "softmax", wrong)
    failure = found("softmax")
    assert failure is not None
    case = failure.rsplit(maxsplit=1)[1]
    assert fuzz.failure_of(case) == failure
    monkeypatch.undo()
    assert fuzz.failure_of(case) is None


def test_an_error_that_comes_too_late_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fastce.softmax

    def wrong(*arguments: Any, out: Any = None, **options: Any) -> Any:
        if type(out) is np.ndarray and out.flags.writeable:
            out[...] = 0
        return right(*arguments, out=out, **options)

    assert found("errors", 100) is None
    monkeypatch.setattr(fastce, "softmax", wrong)
    failure = found("errors", 3000)
    assert failure is not None and "out was written to" in failure
