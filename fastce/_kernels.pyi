# What Python sees of the compiled module. Only _api.py calls it, and has checked every argument; _kernels.pyx says what
# the arguments are. tests/test_types.py compares this with what is there at run time.
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from numpy.typing import NDArray

_Array = NDArray[Any]
_P = ParamSpec("_P")
_R = TypeVar("_R")

class _Fused(Generic[_P, _R]):
    def __getitem__(self, c_type: str) -> Callable[_P, _R]: ...

def _fused(function: Callable[_P, _R]) -> _Fused[_P, _R]: ...  # one function for each dtype, by its name in C

__pyx_capi__: dict[str, object]  # what _kernels.pxd declares

class Targets: ...

@_fused
def targets(array: _Array, blocks: _Array | None) -> Targets: ...
@_fused
def cross_entropy(
    x: _Array,
    x_blocks: _Array | None,
    positions: int,
    labels: _Array | None,
    targets: Targets | None,
    ignored: int | None,
    weight: _Array | None,
    weight_t: _Array | None,
    smoothing: float,
    z_loss: float,
    factor: float,
    sample: _Array | None,
    upstream: _Array | None,
    with_loss: bool,
    losses: _Array | None,
    row_max: _Array | None,
    tail: _Array | None,
    stats_given: bool,
    threads: int,
    g: _Array | None,
    g_blocks: _Array | None,
) -> float: ...
def plain(logits: _Array, labels: _Array, g: _Array | None, ignored: int, mean: bool, threads: int) -> float | None: ...
@_fused
def softmax(
    x: _Array,
    x_blocks: _Array | None,
    positions: int,
    log: bool,
    y: _Array | None,
    y_blocks: _Array | None,
    lse: _Array | None,
    threads: int,
) -> None: ...
@_fused
def vector_jacobian(
    y: _Array,
    y_blocks: _Array | None,
    positions: int,
    upstream: Targets,
    log: bool,
    g: _Array,
    g_blocks: _Array | None,
    threads: int,
) -> None: ...
@_fused
def two_term(
    x: _Array,
    x_blocks: _Array | None,
    positions: int,
    targets: Targets,
    softmax: bool,
    weight: _Array | None,
    pos_weight: _Array | None,
    factor: float,
    sample: _Array | None,
    upstream: _Array | None,
    losses: _Array | None,
    g: _Array | None,
    g_blocks: _Array | None,
    threads: int,
) -> float: ...
def labels_kept(labels: _Array, classes: int, ignored: int | None) -> int: ...
def automatic_threads() -> int: ...
def limit_threads(quota: int) -> None: ...
def select(name: str | None) -> str | None: ...
def available() -> list[str]: ...

openmp: str | None
compiler: str
