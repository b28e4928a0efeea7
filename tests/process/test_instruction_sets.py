"""Instruction sets: the best is chosen at import, FASTCE_ISA forces another, and each is accurate."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from scripts import CONFIG

# Reports the largest error against long double, as a multiple of the contract's bound. That bound is
# (4 + distance from the row's maximum) * eps for the gradient at other classes than the label. The loss of the
# confident rows is 32*exp(-40). A subtraction would give 0.
ACCURACY = """
worst = 0.0
eps = np.finfo(np.float32).eps
for classes in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 1000, 5003):
    x = rng.standard_normal((40, classes), dtype=np.float32) * 8
    t = rng.integers(0, classes, 40)
    loss, grad = fastce.cross_entropy_with_grad(x, t, reduction="sum", num_threads=1)
    gap = x.max(axis=1, keepdims=True).astype(np.longdouble) - x
    e = np.exp(-gap)
    p = e / e.sum(axis=1, keepdims=True)
    wrong = np.abs(grad / p - 1) / (eps * (4 + gap))
    wrong[np.arange(40), t] = 0
    true_loss = (np.log(e.sum(axis=1)) + gap[np.arange(40), t]).sum()
    worst = max(worst, float(wrong.max()), float(abs(loss - true_loss) / (true_loss or 1) / eps / 4))
confident = np.zeros((3, 33), np.float32)
confident[:, 5] = 40
tail = fastce.cross_entropy(confident, np.full(3, 5), reduction="none")
worst = max(worst, float(np.abs(tail / (32 * np.exp(-40.0)) - 1).max() / (eps * 44)))
report([fastce.show_config(mode="dicts")["isa"], worst])
"""


@pytest.mark.parametrize("isa", CONFIG["isa_available"])
def test_every_instruction_set_of_this_cpu_can_be_forced_and_is_accurate(run: Callable[..., Any], isa: str) -> None:
    used, worst = run(ACCURACY, FASTCE_ISA=isa)
    assert used == isa
    assert worst <= 1


def test_best_instruction_set_is_the_default(run: Callable[..., Any]) -> None:
    used, available = run('c = fastce.show_config(mode="dicts"); report([c["isa"], c["isa_available"]])')
    assert used == available[0]
    assert available[-1] == "baseline"


IMPORT_FAILS = """
import json
try:
    import fastce
    print(json.dumps("imported"))
except ImportError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.parametrize("isa", ["sse9", "AVX2 ", "avx2,avx512"])
def test_unknown_instruction_set_is_an_import_error_that_lists_the_valid_ones(
    run: Callable[..., Any], isa: str
) -> None:
    said = run("", prelude=IMPORT_FAILS, FASTCE_ISA=isa)
    assert "FASTCE_ISA" in said
    assert isa in said
    for name in CONFIG["isa_available"]:
        assert re.search(rf"\b{name}\b", said)


@pytest.mark.skipif(
    set(CONFIG["isa_available"]) >= {"baseline", "avx2", "avx512"}, reason="this CPU has every instruction set there is"
)
def test_instruction_set_that_the_cpu_lacks_is_an_import_error(run: Callable[..., Any]) -> None:
    missing = next(name for name in ("avx512", "avx2") if name not in CONFIG["isa_available"])
    said = run("", prelude=IMPORT_FAILS, FASTCE_ISA=missing)
    assert missing in said
    assert "baseline" in said
