"""Forks: a child of a process that has used threads computes the same, on one thread, and never hangs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from scripts import PRELUDE, needs_fork, needs_openmp, needs_proc

# The alarm ends a child that hangs. The parent sees that in the exit status.
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
        threads = os_threads()  # OpenMP's pool is alive here. A child that relied on it would wait for ever.
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
