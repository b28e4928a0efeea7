"""fastce as a citizen of its process: forks, threads of Python and of OpenMP, limits set from outside, the choice of
the instruction set, the floating-point environment. What could hang or must start fresh runs in an interpreter of its
own with a hard time limit, in an empty working directory, so that it imports what is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastce

TIME_LIMIT = 60  # seconds; the longest of these takes about two

CONFIG = fastce.show_config(mode="dicts")
LIMITS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "OMP_DYNAMIC", "FASTCE_ISA", "PYTHONPATH")

needs_openmp = pytest.mark.skipif(CONFIG["openmp"] is None, reason="fastce was built without OpenMP")
needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/task"), reason="counts threads in Linux's /proc/self/task"
)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork does not exist on this platform")
needs_two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="shows that a second thread is used, for which this process would need a second CPU",
)

# Every script below starts with this. BIG is work enough for the automatic choice to use threads.
PRELUDE = """
import json, os, sys
import numpy as np
import fastce

rng = np.random.default_rng(3)
BIG = rng.standard_normal((4096, 1000), dtype=np.float32) * 8
LABELS = rng.integers(0, 1000, 4096)

def os_threads():
    return len(os.listdir("/proc/self/task"))

def result(**options):
    loss, grad = fastce.cross_entropy_with_grad(BIG, LABELS, **options)
    return loss.tobytes() + grad.tobytes()

def report(value):
    print(json.dumps(value))
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Any]:
    """Runs a script in a fresh interpreter; gives what it reported, or fails with what it said."""

    def run(script: str, *, prelude: str = PRELUDE, **environment: str) -> Any:
        inherited = {name: value for name, value in os.environ.items() if name not in LIMITS}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", prelude + textwrap.dedent(script)],
                cwd=tmp_path,
                env=inherited | environment,
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT,
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"hung: no end after {TIME_LIMIT} s")
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
        return json.loads(done.stdout.splitlines()[-1])

    return run


# --- fork -------------------------------------------------------------------------------------------------------------

# A child that hangs is killed by its alarm, which the parent sees in its exit status.
FORK = f"""{PRELUDE}
import signal

def in_child(function):
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        signal.alarm(20)
        os.write(writer, b"same" if function() == EXPECTED else b"other")
        os._exit(0)
    os.close(writer)
    said = os.read(reader, 10)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {{os.waitstatus_to_exitcode(status)}}"
    return said.decode()

EXPECTED = result(num_threads=2)
"""


@needs_fork
@needs_openmp
@needs_proc
@pytest.mark.parametrize("options", ["", "num_threads=1", "num_threads=2"])
def test_forked_child_of_a_process_that_used_threads_computes_the_same(run: Callable[..., Any], options: str) -> None:
    threads, said = run(
        f"""
        threads = os_threads()  # OpenMP's pool is alive, so a child that relied on it would wait for ever
        report([threads, in_child(lambda: result({options}))])
        """,
        prelude=FORK,
    )
    assert threads >= 2
    assert said == "same"


@needs_fork
@needs_openmp
@needs_proc
def test_forked_child_stays_on_one_thread_and_the_parent_keeps_its_threads(run: Callable[..., Any]) -> None:
    child, grandchild, parent = run(
        """
        def one_thread():
            result()
            return EXPECTED if os_threads() == 1 and fastce.show_config(mode="dicts")["threads"] == 1 else b""
        child = in_child(one_thread)
        grandchild = in_child(lambda: EXPECTED if in_child(one_thread) == "same" else b"")
        report([child, grandchild, result(num_threads=2) == EXPECTED])
        """,
        prelude=FORK,
    )
    assert child == "same"
    assert grandchild == "same"
    assert parent


@needs_fork
def test_multiprocessing_fork_after_use(run: Callable[..., Any]) -> None:
    said = run(
        """
        import multiprocessing
        def work(_):
            return result() == EXPECTED
        with multiprocessing.get_context("fork").Pool(2) as pool:
            report(pool.map_async(work, range(4)).get(timeout=30))
        """,
        prelude=FORK,
    )
    assert said == [True] * 4


@needs_fork
def test_fork_while_another_thread_is_computing(run: Callable[..., Any]) -> None:
    said, same = run(
        """
        import threading
        stop, busy, same = threading.Event(), threading.Event(), []
        def compute():
            while not stop.is_set():
                busy.set()
                same.append(result(num_threads=2) == EXPECTED)
        thread = threading.Thread(target=compute)
        thread.start()
        said = []
        for _ in range(5):
            busy.clear()
            busy.wait()
            said.append(in_child(result))
        stop.set()
        thread.join()
        report([said, all(same) and len(same) >= 5])
        """,
        prelude=FORK,
    )
    assert said == ["same"] * 5
    assert same


# --- threads of Python ------------------------------------------------------------------------------------------------


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


def test_calls_release_the_gil(run: Callable[..., Any]) -> None:
    # With an endless switch interval the other thread runs only when this one lets go of the GIL by itself: it wakes
    # before the call has ended, or, were the GIL kept, after it.
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


# --- how many threads are used ----------------------------------------------------------------------------------------


# Every entry of a parallel region in libgomp and libomp, replaced by the end of the process.
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
        fastce.cross_entropy_with_grad(BIG[:32, :10], LABELS[:32] % 10)  # small work: one thread by itself
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


# A control group as fastce finds it at import: these files stand for the real ones.
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


# --- the same bits for every number of threads ------------------------------------------------------------------------


def bits(*arrays: Any) -> list[bytes]:
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(1, 1), (2, 3), (7, 10), (129, 10), (5000, 3), (33, 64), (65, 1000), (2000, 1000), (3, 50257), (1, 2**20)]
)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_results_do_not_depend_on_the_number_of_threads(dtype: type, shape: tuple[int, int], reduction: str) -> None:
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal(shape) * 10).astype(dtype)
    targets = rng.integers(0, shape[1], shape[0])
    targets[::5] = -100 if shape[0] > 1 else 0
    upstream = rng.standard_normal(shape[0]) if reduction == "none" else 0.37

    def everything(num_threads: int) -> list[bytes]:
        options = {"reduction": reduction, "num_threads": num_threads}
        loss, stats = fastce.cross_entropy(logits, targets, return_stats=True, **options)
        fused = fastce.cross_entropy_with_grad(logits, targets, upstream=upstream, **options)
        with_stats = fastce.cross_entropy_grad(logits, targets, upstream=upstream, stats=stats, **options)
        alone = fastce.cross_entropy_grad(logits, targets, upstream=upstream, **options)
        return bits(loss, *stats, *fused, with_stats, alone)

    expected = everything(1)
    for num_threads in (2, 3, 7):
        assert everything(num_threads) == expected, f"num_threads={num_threads}"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_results_with_every_option_do_not_depend_on_the_number_of_threads(dtype: type, axis: int, kind: str) -> None:
    rng = np.random.default_rng(12)
    shape = (130, 21, 67)
    rest = shape[:axis] + shape[axis + 1 :]
    logits = (rng.standard_normal(shape) * 10).astype(dtype)
    options: dict[str, Any] = {
        "weight": rng.random(shape[axis]),
        "sample_weight": rng.random(rest),
        "label_smoothing": 0.1,
        "z_loss": 1e-3,
        "axis": axis,
    }
    targets = rng.integers(0, shape[axis], rest) if kind == "labels" else rng.random(shape)
    expected = bits(*fastce.cross_entropy_with_grad(logits, targets, num_threads=1, **options))
    for num_threads in (2, 3, 7):
        found = bits(*fastce.cross_entropy_with_grad(logits, targets, num_threads=num_threads, **options))
        assert found == expected, f"num_threads={num_threads}"


def test_more_threads_than_rows_are_harmless() -> None:
    logits, targets = np.random.default_rng(13).standard_normal((3, 70000)), np.array([0, 1, 69999])
    one = fastce.cross_entropy_with_grad(logits, targets, num_threads=1)
    many = fastce.cross_entropy_with_grad(logits, targets, num_threads=64)
    assert bits(*many) == bits(*one)


# --- instruction sets -------------------------------------------------------------------------------------------------

# Errors against long double, as multiples of the contract's bounds: (4 + distance from the row's maximum) * eps for the
# gradient off the label. The confident rows' loss is exp(-40) * 32, and would be 0 if it were formed by subtraction.
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


# --- what import and calls leave alone --------------------------------------------------------------------------------


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
    # Cython registers modules of its own for the types that its extensions share; they are not imported from anywhere.
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
# Memory that is not ours
# ---------------------------------------------------------------------------------------------------------------------

PAGES = """
import ctypes, mmap
libc, PAGE = ctypes.CDLL(None, use_errno=True), mmap.PAGESIZE

def between(a, at_end):
    \"""A copy that ends, or begins, where a page does beside which no access is allowed.\"""
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
                for activation in ("sigmoid", "softmax"):
                    fastce.binary_cross_entropy_with_grad(y, u, activation=activation, axis=axis, out=out)
                assert fastce.cross_entropy_with_grad(y, t, axis=axis, out=y)[1] is y
report("kept within")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="sets the protection of pages by mprotect")
@pytest.mark.parametrize("isa", CONFIG["isa_available"])
def test_nothing_beside_the_arrays_is_touched(run: Callable[..., Any], isa: str) -> None:
    """Vectors reach over the ends of rows; here an access beside an array would end the process."""
    assert run(PAGES, FASTCE_ISA=isa) == "kept within"
