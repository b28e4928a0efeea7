"""Threads: callers from several threads of Python, and how many threads a call uses. The automatic choice obeys the
limits that are set from outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripts import PRELUDE, TIME_LIMIT, needs_openmp, needs_proc, needs_two_cpus

TESTS = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("options", ["", "num_threads=1", "num_threads=2"])
def test_concurrent_callers_get_what_one_caller_gets(run: Callable[..., Any], options: str) -> None:
    assert run(
        f"""
        from concurrent.futures import ThreadPoolExecutor
        inputs = [(BIG[i:1000 + 100 * i], LABELS[i:1000 + 100 * i]) for i in range(6)]
        def call(pair):
            loss, grad = fastce.cross_entropy_with_grad(*pair{options and ", " + options})
            forward, stats = fastce.cross_entropy(*pair, return_stats=True{options and ", " + options})
            return [loss.tobytes(), grad.tobytes(), forward.tobytes(), *(part.tobytes() for part in stats)]
        alone = [call(pair) for pair in inputs]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(call, inputs * 4))
        report(together == alone * 4)
        """
    )


def test_many_callers_of_everything(run: Callable[..., Any]) -> None:
    """Sixteen threads of Python call every function with every kind of `num_threads`, each in an order of its own."""
    different = run(
        f"""
        import random, threading
        sys.path.insert(0, {str(TESTS)!r})
        from calling import CASES
        calls = []
        for case in CASES:
            for shape, dtype in (((65, 10), np.float32), ((3, 4500), np.float64)):
                arguments = case.make(shape, dtype)
                calls.append((case, arguments, case(arguments, num_threads=1)))
        different, together = [], threading.Barrier(16)
        def call_all(number):
            order = random.Random(number)
            together.wait()
            for case, arguments, want in order.sample(calls, len(calls) // 2):
                threads = order.choice([None, 1, 2, 3, 7])
                try:
                    case.assert_same(case(arguments, num_threads=threads), want, bitwise=True)
                except Exception as error:
                    different.append(f"{{case}}, num_threads={{threads}}: {{error}}")
        callers = [threading.Thread(target=call_all, args=(number,)) for number in range(16)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        report(different)
        """
    )
    assert not different


def test_calls_release_the_gil(run: Callable[..., Any]) -> None:
    # Python does not switch threads within this switch interval. The other thread wakes when this one releases the GIL:
    # during the call, or after it if the call keeps the GIL.
    woken, begun, ended = run(
        """
        import threading, time
        wanted, woken = threading.Event(), []
        def other():
            wanted.wait()
            woken.append(time.perf_counter())
        thread = threading.Thread(target=other)
        thread.start()
        x = np.zeros((40000, 1000), np.float32)
        t, out = np.zeros(40000, np.int64), np.ones_like(x)
        sys.setswitchinterval(1000)
        wanted.set()
        begun = time.perf_counter()
        fastce.cross_entropy_with_grad(x, t, out=out, num_threads=1)
        ended = time.perf_counter()
        thread.join()
        report([woken[0], begun, ended])
        """
    )
    assert woken < ended


# ---------------------------------------------------------------------------------------------------------------------
# How many threads are used
# ---------------------------------------------------------------------------------------------------------------------

# The functions of libgomp and libomp that begin a parallel region. Here each ends the process.
NO_PARALLEL_REGION = """
#include <unistd.h>
#define ENDS(name) void name(void) { _exit(77); }
ENDS(GOMP_parallel)
ENDS(GOMP_parallel_loop_static)
ENDS(GOMP_parallel_loop_dynamic)
ENDS(GOMP_parallel_loop_guided)
ENDS(GOMP_parallel_loop_runtime)
ENDS(GOMP_parallel_loop_nonmonotonic_dynamic)
ENDS(GOMP_parallel_loop_nonmonotonic_guided)
ENDS(GOMP_parallel_loop_nonmonotonic_runtime)
ENDS(GOMP_parallel_loop_maybe_nonmonotonic_runtime)
ENDS(GOMP_parallel_sections)
ENDS(__kmpc_fork_call)
"""


@needs_openmp
@pytest.mark.skipif(sys.platform != "linux", reason="replaces functions of the OpenMP runtime with LD_PRELOAD")
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the functions that it replaces")
def test_one_thread_opens_no_parallel_region(run: Callable[..., Any], tmp_path: Path) -> None:
    source, library = tmp_path / "no_parallel_region.c", tmp_path / "no_parallel_region.so"
    source.write_text(NO_PARALLEL_REGION)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=TIME_LIMIT)
    assert (
        run(
            """
        result(num_threads=1)
        result(num_threads=1, reduction="none")
        _, stats = fastce.cross_entropy(BIG, LABELS, num_threads=1, return_stats=True)
        fastce.cross_entropy_grad(BIG, LABELS, num_threads=1, stats=stats)
        fastce.cross_entropy_with_grad(BIG[:32, :10], LABELS[:32] % 10)  # little work: automatically one thread
        report("no region")
        """,
            LD_PRELOAD=str(library),
        )
        == "no region"
    )
    with pytest.raises(AssertionError, match="exit status 77"):
        run("result(num_threads=2)", LD_PRELOAD=str(library))


@needs_openmp
@needs_proc
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_num_threads_is_taken_as_given(run: Callable[..., Any], threads: int) -> None:
    assert run(
        f"""
        before = os_threads()
        for _ in range(3):
            result(num_threads={threads})
            result(num_threads={threads}, reduction="none")
            _, stats = fastce.cross_entropy(BIG, LABELS, num_threads={threads}, return_stats=True)
            fastce.cross_entropy_grad(BIG, LABELS, num_threads={threads}, stats=stats)
        report(os_threads() - before)
        """
    ) == (threads - 1)


AUTOMATIC = """
before = os_threads()
result()
report([os_threads() - before + 1, fastce.show_config(mode="dicts")["threads"]])
"""


@needs_openmp
@needs_proc
@needs_two_cpus
def test_automatic_choice_uses_the_cpus(run: Callable[..., Any]) -> None:
    used, automatic = run(AUTOMATIC)
    assert used == automatic
    assert 2 <= automatic <= len(os.sched_getaffinity(0))


@needs_openmp
@needs_proc
@needs_two_cpus
def test_automatic_choice_is_one_thread_for_small_work(run: Callable[..., Any]) -> None:
    assert (
        run(
            """
            before = os_threads()
            fastce.cross_entropy_with_grad(BIG[:32, :10].copy(), LABELS[:32] % 10)
            report(os_threads() - before)
            """
        )
        == 0
    )


@needs_openmp
@needs_proc
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_automatic_choice_obeys_omp_num_threads_and_the_cpus(run: Callable[..., Any], limit: int) -> None:
    used, automatic = run(AUTOMATIC, OMP_NUM_THREADS=str(limit))
    assert used == automatic <= limit
    if hasattr(os, "sched_getaffinity"):
        assert automatic <= len(os.sched_getaffinity(0))


@needs_openmp
@needs_proc
@needs_two_cpus
def test_automatic_choice_obeys_affinity_at_every_call(run: Callable[..., Any]) -> None:
    assert run(
        """
        cpus = os.sched_getaffinity(0)
        seen = [os_threads()]
        for allowed in ({min(cpus)}, cpus):
            os.sched_setaffinity(0, allowed)
            result()
            seen += [os_threads()]
        report([count - seen[0] for count in seen[1:]])
        """,
        OMP_NUM_THREADS="2",
    ) == [0, 1]


@needs_openmp
@needs_proc
@needs_two_cpus
def test_automatic_choice_obeys_threadpoolctl(run: Callable[..., Any]) -> None:
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is what is obeyed here")
    assert run(
        """
        from threadpoolctl import threadpool_limits
        before = os_threads()
        with threadpool_limits(limits=1):
            result()
            limited = os_threads() - before
        result()
        report([limited, os_threads() - before])
        """,
        OMP_NUM_THREADS="2",
    ) == [0, 1]


# Replaces the files of the control group that fastce reads when it is imported.
CONTROL_GROUP = """
import builtins, io
files, real_open = {files!r}, builtins.open
def faked_open(file, *arguments, **keywords):
    if not str(file).startswith("/sys/fs/cgroup"):
        return real_open(file, *arguments, **keywords)
    if str(file) not in files:
        raise FileNotFoundError(file)
    return io.StringIO(files[str(file)])
builtins.open = faked_open
"""
CFS = "/sys/fs/cgroup/cpu/cpu.cfs_{}_us"


@needs_openmp
@needs_proc
@needs_two_cpus
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/sys/fs/cgroup/cpu.max": "100000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"/sys/fs/cgroup/cpu.max": "100001 100000\n"}, 2),
        ({"/sys/fs/cgroup/cpu.max": "max 100000\n"}, 2),
        ({CFS.format("quota"): "100000\n", CFS.format("period"): "100000\n"}, 1),
        ({CFS.format("quota"): "-1\n", CFS.format("period"): "100000\n"}, 2),
        ({}, 2),
    ],
)
def test_automatic_choice_obeys_the_quota_of_the_control_group(
    run: Callable[..., Any], files: dict[str, str], expected: int
) -> None:
    prelude = CONTROL_GROUP.format(files=files) + PRELUDE
    assert run(AUTOMATIC, prelude=prelude, OMP_NUM_THREADS="2") == [expected, expected]


def test_labels_that_another_thread_changes_are_never_used_as_an_index_unchecked(run: Callable[..., Any]) -> None:
    """The labels are checked before the kernels run, and written to while they run. A call may raise, or return
    anything, but it reads and writes nothing outside of its arrays."""
    assert run(
        """
        import threading, time
        x = np.zeros((20000, 10), np.float32)
        for dtype in (np.int64, np.int32):
            labels, stop = np.zeros(20000, dtype), threading.Event()
            def change():
                while not stop.is_set():
                    labels[:] = np.iinfo(dtype).max // 2
                    labels[:] = 0
            thread = threading.Thread(target=change)
            thread.start()
            end = time.monotonic() + 2
            while time.monotonic() < end:
                for options in ({}, {"label_smoothing": 0.1, "weight": np.ones(10)}):
                    try:
                        loss, grad = fastce.cross_entropy_with_grad(x, labels, num_threads=1, **options)
                    except IndexError:
                        pass
            stop.set()
            thread.join()
        report(True)
        """
    )
