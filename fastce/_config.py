"""The version, and what is chosen when the package is imported: the instruction set and the limit on threads."""

from __future__ import annotations

import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np


def not_built() -> str:
    """Why the compiled module cannot be imported, where it is missing."""
    here = Path(__file__).resolve().parent
    if any(here.glob("_kernels*.so")) or any(here.glob("_kernels*.pyd")):
        return ""
    return (
        f"the sources in {here} are not built, and they hide an installed copy of the package, if there is one. "
        "Start Python in another folder, or build the sources in place: python -m pip install -e ."
    )


try:
    from . import _kernels
except ImportError as error:
    raise ImportError(not_built() or str(error)) from error

__version__ = "0.1.0"


def cpu_quota() -> int:
    """CPUs that the control group's quota amounts to, rounded up; 0 if there is none."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:  # version 2
            quota, period = file.read().split()
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:  # version 1
                quota = file.read()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
                period = file.read()
        except OSError:
            return 0
    try:
        return max(0, math.ceil(int(quota) / int(period)))
    except (ValueError, ZeroDivisionError):
        return 0  # "max", or -1: no limit


def select_isa() -> str:
    """The instruction set that FASTCE_ISA asks for, or the best one."""
    wish = os.environ.get("FASTCE_ISA")
    chosen = _kernels.select(wish or None)
    if chosen is None:
        raise ImportError(
            f"FASTCE_ISA is {wish!r}, expected one that this build and this processor have: "
            f"{', '.join(_kernels.available())}"
        )
    return str(chosen)


_kernels.limit_threads(cpu_quota())
ISA = select_isa()


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print or return what this build of fastce is and what it uses on this machine.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print the configuration or to return it.

    Returns
    -------
    config : dict or None
        With ``mode="dicts"``: version, isa (the instruction set in use; the environment variable FASTCE_ISA selects
        another one before the import), isa_available (best first), openmp (version date; None without OpenMP), threads
        (how many a large call would use), pause, compiler, python, numpy.

        Calls with ``num_threads=None`` observe whether threads pay. Where a call took longer than one thread would
        have, because other programs use the processors too, the next calls from the same Python thread use one
        thread. pause is for how many seconds of computing they still do.

    Raises
    ------
    ValueError
        `mode` is neither "stdout" nor "dicts".

    Examples
    --------
    >>> import fastce
    >>> fastce.show_config(mode="dicts")["isa"] in ("avx512", "avx2", "baseline")
    True
    """
    config = {
        "version": __version__,
        "isa": ISA,
        "isa_available": _kernels.available(),
        "openmp": _kernels.openmp,
        "threads": _kernels.automatic_threads(),
        "pause": _kernels.pause(),
        "compiler": _kernels.compiler,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if mode == "dicts":
        return config
    if mode != "stdout":
        raise ValueError(f"mode is {mode!r}, expected 'stdout' or 'dicts'")
    for name, value in config.items():
        if isinstance(value, list):
            value = ", ".join(value)
        elif isinstance(value, float):
            value = f"{value:.3f} s"
        sys.stdout.write(f"{name + ':':15}{value}\n")
    return None
