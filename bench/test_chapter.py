"""Time softmax and related functions with pytest-benchmark: fastce, and NumPy or SciPy. Results are verified first."""

from __future__ import annotations

import chapter
import pytest
from peers import THREADS

pytest.importorskip("scipy", reason="SciPy is what these are compared with")
SHAPE = (4096, 1000)
NAMES = [pair.name for pair in chapter.pairs(2, 3)]


@pytest.mark.parametrize("side", ["fastce-1", f"fastce-{THREADS[1]}", "other"])
@pytest.mark.parametrize("name", NAMES)
def test_speed(name: str, side: str, benchmark, pytestconfig) -> None:
    rows, classes = (16, 100) if pytestconfig.getoption("--benchmark-disable") else SHAPE
    pair = next(pair for pair in chapter.pairs(rows, classes) if pair.name == name)
    pair.verify()
    benchmark.group = f"{name}, {rows} x {classes}"
    label = pair.theirs_name if side == "other" else side.replace("-", ", ") + " thread(s)"
    benchmark.extra_info |= {"side": label, "size": pair.size, "bytes": 8 * pair.size}
    benchmark(pair.theirs if side == "other" else lambda: pair.ours(int(side.rpartition("-")[2])))
