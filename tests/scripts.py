"""Commands, and scripts in an interpreter of their own: for tests that must start fresh, or could hang or crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import fastce

TIME_LIMIT = 120  # seconds; the longest of these takes about ten when nothing else runs
CONFIG = fastce.show_config(mode="dicts")
# Variables that would decide what is tested.
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

# What scripts start with. BIG is enough work for the automatic choice to use threads.
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


def run_command(
    *command: object, folder: Path, stderr: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The command as it ended, run in the folder without the variables in LIMITS."""
    inherited = {name: value for name, value in os.environ.items() if name not in LIMITS}
    try:
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=inherited | environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired as expired:
        pytest.fail(f"hung: no end after {TIME_LIMIT} s\n{expired.stderr or ''}")


def run_script(folder: Path, script: str, *, prelude: str = PRELUDE, **environment: str) -> Any:
    """What the script reported: its last line of output, in JSON. Fails with all that it printed if it ended with an
    error.

    `folder` is an empty directory, so that fastce is imported from where it is installed."""
    done = run_command(sys.executable, "-P", "-c", prelude + textwrap.dedent(script), folder=folder, **environment)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])
