"""fastce.integrations.mpi on 1 to 4 processes: mpi_program.py runs on each and compares with the whole array."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mpi4py", reason="mpi4py is not installed")
PROGRAM = Path(__file__).with_name("mpi_program.py")
MPIEXEC = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")


@pytest.mark.slow
@pytest.mark.skipif(MPIEXEC is None, reason="there is no mpiexec")
@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_processes_give_the_result_of_one(processes: int, tmp_path: Path) -> None:
    command = [str(MPIEXEC), "-n", str(processes), sys.executable, "-P", str(PROGRAM)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("is done") == processes  # their lines may be mixed
