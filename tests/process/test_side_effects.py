"""What import and calls leave alone: other modules, the floating-point environment of every thread, memory beside the
arrays; and that results do not depend on what memory held before."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scripts import CONFIG


def test_import_pulls_in_nothing_but_numpy(run: Callable[..., Any]) -> None:
    new = run(
        "",
        prelude="""
import json, sys
import numpy
before = set(sys.modules)
import fastce
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
""",
    )
    # Cython registers modules for the types that its extensions share. They have no files.
    assert [name for name in new if not re.fullmatch(r"_?cython_[\w.]+", name)] == ["fastce"]


def test_subnormal_numbers_survive_import_and_calls(run: Callable[..., Any]) -> None:
    kept, loss, grad = run(
        """
        import threading
        x = np.full((4096, 1000), -100, np.float32)
        x[:, 0] = 0  # each other class has the probability exp(-100), about 3.8e-44, which is subnormal
        loss, grad = fastce.cross_entropy_with_grad(x, np.zeros(4096, int), reduction="none", num_threads=3)
        kept = []
        def check():
            kept.append(float(np.float32(1e-38) * np.float32(0.1)))
        check()
        thread = threading.Thread(target=check)
        thread.start()
        thread.join()
        report([kept, [float(loss.min()), float(loss.max())], [float(grad[:, 1:].min()), float(grad[:, 1:].max())]])
        """
    )
    assert kept == [float(np.float32(1e-38) * np.float32(0.1))] * 2
    assert min(kept) > 0
    assert grad == [pytest.approx(np.exp(-100.0), abs=2.0**-149)] * 2  # within one subnormal step, on every thread
    assert loss[0] == loss[1] > 0


@pytest.mark.skipif(
    not (sys.platform == "linux" and os.uname().machine == "x86_64"),
    reason="reads MXCSR through glibc's fegetenv, x86-64",
)
def test_floating_point_control_register_is_unchanged(run: Callable[..., Any]) -> None:
    before, after_import, after_calls, in_new_thread = run(
        """
        import ctypes, json, threading
        import numpy as np
        libm = ctypes.CDLL("libm.so.6")
        def control():
            env = (ctypes.c_uint32 * 8)()  # fenv_t: seven words of x87 state, then MXCSR
            assert libm.fegetenv(ctypes.byref(env)) == 0
            return [env[0] & 0xFFFF, env[7] & ~0x3F]  # without MXCSR's sticky flags, which any inexact result sets
        seen = [control()]
        import fastce
        seen.append(control())
        x = np.zeros((4096, 1000), np.float32)
        for threads in (1, 3):
            fastce.cross_entropy_with_grad(x, np.zeros(4096, int), num_threads=threads)
        seen.append(control())
        thread = threading.Thread(target=lambda: seen.append(control()))
        thread.start()
        thread.join()
        print(json.dumps(seen))
        """,
        prelude="",
    )
    assert before[1] == 0x1F80  # all exceptions masked, round to nearest, no flush-to-zero, no denormals-are-zero
    assert after_import == after_calls == in_new_thread == before


# ---------------------------------------------------------------------------------------------------------------------
# Memory beside the arrays
# ---------------------------------------------------------------------------------------------------------------------

PAGES = """
import ctypes, mmap
libc, PAGE = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

def between(a, at_end):
    \"""A copy at the end or at the begin of pages, between two pages that must not be accessed.\"""
    inside = max(1, -(-a.nbytes // PAGE)) * PAGE
    memory = mmap.mmap(-1, inside + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place in (address, address + PAGE + inside):
        assert libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(PAGE), 0) == 0, ctypes.get_errno()
    begin = PAGE + (inside - a.nbytes if at_end else 0)
    copy = np.ndarray(a.shape, a.dtype, memory, begin)
    copy[...] = a
    return copy

for classes in [*range(1, 20), 31, 33, 41, 47, 49, 63, 65, 95, 97, 100, 127, 129, 257, 2047, 2049, 4095, 4097, 8193]:
    for dtype in (np.float32, np.float64):
        x = rng.standard_normal((11, classes)).astype(dtype)
        labels = rng.integers(0, classes, 11)
        labels[[0, 6, 10]] = -100
        c = rng.random(x.shape).astype(dtype)
        want = fastce.cross_entropy_with_grad(x, labels)
        for at_end in (False, True):
            for shape in [(11, classes), (classes, 11)]:    # the second: classes along the first axis
                axis = shape.index(classes)
                y, t, u = between(x.reshape(shape), at_end), between(labels, at_end), between(c.reshape(shape), at_end)
                out = between(np.empty_like(y), at_end)
                weight = between(np.ones(classes), at_end)
                for options in ({}, {"label_smoothing": 0.1}, {"weight": weight, "label_smoothing": 0.1}):
                    loss, grad = fastce.cross_entropy_with_grad(y, t, axis=axis, out=out, **options)
                    if not options and axis:
                        assert loss == want[0] and (grad == want[1]).all()
                    stats = fastce.cross_entropy(y, t, axis=axis, return_stats=True, **options)[1]
                    fastce.cross_entropy_grad(y, t, axis=axis, stats=stats, out=out, **options)
                    fastce.cross_entropy_with_grad(y, u, axis=axis, out=out, **options)
                for f in (fastce.softmax, fastce.log_softmax):
                    f(y, axis=axis, out=out)
                fastce.softmax_grad(u, y, axis=axis, out=out)
                fastce.log_softmax_grad(u, y, axis=axis, out=out)
                assert (fastce.predict(y, axis=axis) == y.argmax(axis)).all()
                for activation in ("sigmoid", "softmax"):
                    fastce.binary_cross_entropy_with_grad(y, u, activation=activation, axis=axis, out=out)
                assert fastce.cross_entropy_with_grad(y, t, axis=axis, out=y)[1] is y
report("kept within")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="sets the protection of pages by mprotect")
@pytest.mark.parametrize("isa", CONFIG["isa_available"])
def test_nothing_beside_the_arrays_is_touched(run: Callable[..., Any], isa: str) -> None:
    """Vectors may reach over the end of a row, but not over the end of the array: that would end the process."""
    assert run(PAGES, FASTCE_ISA=isa) == "kept within"


# ---------------------------------------------------------------------------------------------------------------------
# Memory that was not written to
# ---------------------------------------------------------------------------------------------------------------------

# Rows that do not fill the vectors of a tile, whose other lanes are scratch. Some probabilities are subnormal, some are
# near the number below which they are flushed: what is flushed there depends on the coefficients of a whole tile.
DIGEST = """
import hashlib
digests = {}

def results(dtype, rows, classes, axis, weighted, options):
    x = (rng.standard_normal((rows, classes)) * 30).astype(dtype)
    x[::2, 1:] = x[::2, :1] - np.linspace(*((86, 104) if dtype is np.float32 else (707, 746)), classes - 1)
    labels = np.arange(rows) % classes
    c, one_hot = np.full_like(x, 0.3), np.eye(classes, dtype=dtype)[labels]
    x, c, one_hot = (np.ascontiguousarray(np.moveaxis(a, 1, axis)) for a in (x, c, one_hot))
    own = options | {"axis": axis}
    given = own | {"upstream": 0.9, "reduction": "sum"}
    labelled = {"weight": np.linspace(0.5, 2, classes), "label_smoothing": 0.1} if weighted else {}
    for targets in (labels, one_hot):
        loss, grad, stats = fastce.cross_entropy_with_grad(x, targets, return_stats=True, **given, **labelled)
        yield from (loss, grad, *stats)
        yield fastce.cross_entropy_grad(x, targets, stats=stats, **given, **labelled)
    if not weighted:
        yield fastce.softmax(x, **own)
        yield from fastce.entropy_with_grad(x, **given)
        if "subnormals" not in options:
            yield from fastce.kl_divergence_with_grad(x, c, **given)
    if not options:
        yield fastce.log_softmax(x, **own)
        yield from fastce.cross_entropy_grad_hess(x, labels, **given, **labelled)
        yield fastce.cross_entropy_hvp(x, labels, c, **given, **labelled)
        yield from fastce.binary_cross_entropy_with_grad(x, c, activation="softmax", **given)

def near_the_smallest(dtype, axis):
    x = np.zeros((100, 7))
    x[:, 1] = -rng.random(100)
    smallest = (100 if dtype is np.float32 else 900) * np.log(2)
    x[:, 2:] = -smallest + np.log1p(np.exp(x[:, 1:2]))
    x = x.astype(dtype)
    x[:, 2:] += np.arange(-2, 3, dtype=dtype) * np.spacing(dtype(smallest))
    return fastce.softmax(np.ascontiguousarray(np.moveaxis(x, 1, axis)), axis=axis, subnormals="flush")

for name, options in {"plain": {}, "flush": {"subnormals": "flush"}, "softcap": {"softcap": 3.0}}.items():
    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        for axis, weighted in ((1, False), (0, False), (1, True), (0, True)):
            arrays = [near_the_smallest(dtype, axis) for _ in range(20)]
            for rows, classes in ((1, 3), (5, 10), (117, 7), (37, 40)):
                arrays += results(dtype, rows, classes, axis, weighted, options)
            for array in arrays:
                digest.update(np.ascontiguousarray(array).tobytes())
    digests[name] = digest.hexdigest()
report(digests)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sets what glibc fills allocated memory with")
def test_results_do_not_depend_on_what_memory_held_before(run: Callable[..., Any]) -> None:
    want = run(DIGEST)
    for filled in (0x41, 0x7F):  # numbers of about 10, and nearly the largest
        assert run(DIGEST, MALLOC_PERTURB_=str(0xFF ^ filled)) == want
