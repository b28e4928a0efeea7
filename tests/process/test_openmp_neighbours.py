"""fastce beside libraries that bring their own OpenMP runtime. A wheel of fastce carries a copy of libgomp. The wheels
of scikit-learn and PyTorch carry copies too, and all of them run in one process. Runtimes that disturb each other hang,
abort, or give wrong numbers, so each test runs in a fresh interpreter with a time limit."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import fastce

TIME_LIMIT = 120  # seconds; the longest takes about ten, most of them to import PyTorch

NEIGHBOURS = {"sklearn": "scikit-learn", "torch": "PyTorch"}
ORDERS = [
    order for count in (2, 3) for order in itertools.permutations(["fastce", *NEIGHBOURS], count) if "fastce" in order
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(fastce.show_config(mode="dicts")["openmp"] is None, reason="fastce was built without OpenMP"),
]
needs_proc = pytest.mark.skipif(not os.path.isfile("/proc/self/maps"), reason="reads Linux's /proc/self/maps")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork does not exist on this platform")

# Each function imports its library when it is first called, and computes on two threads. The results of fastce are the
# same to the bit for every number of threads. The expected ones are those of one thread, without a parallel region.
PRELUDE = """
import json, os, signal, sys, threading
import numpy as np

def data():
    rng = np.random.default_rng(5)
    return rng.standard_normal((3000, 100)), rng.integers(0, 100, 3000)

def use_fastce(threads=2):
    import fastce
    loss, grad = fastce.cross_entropy_with_grad(*data(), num_threads=threads)
    return np.append(grad, loss)

def use_sklearn():
    from sklearn.ensemble import HistGradientBoostingClassifier
    x, y = data()
    model = HistGradientBoostingClassifier(max_iter=3, max_leaf_nodes=7, early_stopping=False)
    return model.fit(x[:, :10], y % 3).predict_proba(x[:, :10])

def use_torch():
    import torch
    torch.set_num_threads(2)
    x = torch.tensor(data()[0], requires_grad=True)
    torch.nn.functional.cross_entropy(x, torch.tensor(data()[1])).backward()
    return x.grad.numpy() + (x.detach() @ x.detach().T).tanh().sum(1, keepdim=True).numpy()

USE = {"fastce": use_fastce, "sklearn": use_sklearn, "torch": use_torch}

def check(name, result):
    if name == "fastce":
        np.testing.assert_array_equal(result, EXPECTED)
    else:
        np.testing.assert_allclose(result, FIRST.setdefault(name, result), rtol=1e-9, err_msg=name)

def in_child(function):
    if (pid := os.fork()) == 0:
        signal.alarm(20)  # ends a child that hangs
        try:
            function()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with {status}"

FIRST = {}
ORDER = sys.argv[1:]
"""


def run(tmp_path: Path, order: tuple[str, ...], script: str) -> Any:
    for name in order:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{NEIGHBOURS[name]} is not installed")
    inherited = {name: v for name, v in os.environ.items() if name not in ("PYTHONPATH", "KMP_DUPLICATE_LIB_OK")}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PRELUDE + textwrap.dedent(script), *order],
            cwd=tmp_path,
            env=inherited | {"OMP_NUM_THREADS": "2", "OMP_DYNAMIC": "false"},
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"hung: no end after {TIME_LIMIT} s\n{(expired.stderr or b'').decode()}")
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_results_stay_right_whoever_comes_first(tmp_path: Path, order: tuple[str, ...]) -> None:
    """In turns, then all at once from several threads of Python, then in a forked child, then in turns again."""
    script = """
        results = [(name, USE[name]()) for name in ORDER]  # each library is loaded here, in this order
        EXPECTED = use_fastce(threads=1)
        for _ in range(3):
            results += [(name, USE[name]()) for name in reversed(ORDER)]
        for result in results:
            check(*result)

        raised = []
        def caller(name):
            try:
                for _ in range(3):
                    check(name, USE[name]())
            except BaseException as error:
                raised.append(error)
        callers = [threading.Thread(target=caller, args=[name]) for name in ORDER]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert not raised, raised

        if hasattr(os, "fork"):
            # Every runtime's threads have been started, and none of them is in the child.
            in_child(lambda: [check("fastce", use_fastce(threads)) for threads in (None, 1, 2)])
        for name in ORDER:
            check(name, USE[name]())
        print(json.dumps([len(results), sorted(FIRST)]))
    """
    assert run(tmp_path, order, script) == [4 * len(order), sorted(set(order) - {"fastce"})]


@needs_proc
@pytest.mark.parametrize(
    "order", [("fastce", "sklearn"), ("sklearn", "fastce"), ("torch", "sklearn", "fastce")], ids="-".join
)
def test_limits_set_from_outside_reach_the_runtime_that_fastce_uses(tmp_path: Path, order: tuple[str, ...]) -> None:
    """threadpoolctl finds the runtime of fastce among the others and sets its limit. The automatic choice obeys it."""
    pytest.importorskip("threadpoolctl", reason="threadpoolctl is what sets the limits here")
    script = """
        import ctypes
        from threadpoolctl import threadpool_info, threadpool_limits
        for name in ORDER:
            USE[name]()
        import fastce
        from fastce import _kernels

        # The file of the runtime that this module is linked to: dlsym finds the function, dladdr the file.
        function = ctypes.cast(ctypes.CDLL(_kernels.__file__).omp_get_max_threads, ctypes.c_void_p)
        answer = (ctypes.c_void_p * 4)()
        assert ctypes.CDLL(None).dladdr(function, answer)
        ours = os.path.realpath(ctypes.string_at(answer[0]).decode())

        def limit():
            return next(lib["num_threads"] for lib in threadpool_info() if os.path.realpath(lib["filepath"]) == ours)
        seen = [limit()]
        for threads in (1, 3):
            with threadpool_limits(threads, user_api="openmp"):
                seen += [limit()]
                chosen = fastce.show_config(mode="dicts")["threads"]
                assert chosen == min(threads, len(os.sched_getaffinity(0))), chosen
        print(json.dumps([*seen, limit()]))
    """
    assert run(tmp_path, order, script) == [2, 1, 3, 2]
