"""How the arguments lie in memory changes no result, and no argument is modified. For every array argument of every
function."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import BY_NAME, CASES, DTYPES, F32, F64, SHAPES, Case, each_case, takes_out
from layouts import AWKWARD, BITWISE, LAYOUTS, NOT_ONE_STRIDE, WALKABLE, Layout
from numpy.lib.stride_tricks import as_strided

import fastce

SHAPES_3D = [(4, 5, 3), (3, 50, 10), (2, 7, 300), (1, 5, 10), (4, 1, 70)]


def variants(case: Case, plain: dict[str, np.ndarray], layout: Layout) -> list[tuple[str, dict[str, np.ndarray]]]:
    """All arguments laid out so, then one at a time while the others stay as they are."""
    laid_out = {name: layout(a.copy()) if a.ndim else a for name, a in plain.items()}
    if not laid_out[case.main].dtype.isnative:  # statistics have the dtype that the forward gave them
        laid_out |= {name: a for name, a in plain.items() if name in ("row_max", "tail")}
    one_each = [(name, plain | {name: laid_out[name]}) for name in plain if len(plain) > 1]
    return [("all arguments", laid_out), *one_each]


def assert_unmodified(arguments: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> None:
    for name in plain:
        np.testing.assert_array_equal(arguments[name], plain[name], err_msg=f"{name} was modified")


def assert_memory_order(case: Case, got: dict[str, Any], arguments: dict[str, np.ndarray]) -> None:
    """A gradient lies in memory as the logits do, but in memory of its own, without gaps or repeated elements."""
    if case.out and case.results[case.out] == "whole":
        result, main = got[case.out], arguments[case.main]
        assert result.strides == np.empty_like(main).strides
        assert not np.shares_memory(result, main)


def moved(case: Case, name: str, array: Any, axis: int) -> Any:
    """The same array with the axis of the classes last."""
    kind = (case.arguments | case.results)[name]
    return np.ascontiguousarray(np.moveaxis(array, axis, -1)) if kind == "whole" else array


def flat_shape(case: Case, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return case.shape_of(name, (int(np.prod(shape[:-1])), shape[-1]))


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case()
def test_layout_of_arguments_changes_no_result(case: Case, layout: str) -> None:
    for shape in SHAPES:
        for dtype in DTYPES:
            plain = case.make(shape, dtype)
            want = case(plain)
            for which, arguments in variants(case, plain, LAYOUTS[layout]):
                about = f"of {which}, {shape} {dtype.__name__}"
                got = case(arguments)
                case.assert_same(got, want, about, bitwise=layout in BITWISE)
                assert_unmodified(arguments, plain)
                if layout in WALKABLE:
                    assert_memory_order(case, got, arguments)


@pytest.mark.parametrize("layout", LAYOUTS)
@each_case(takes_out)
def test_layout_of_out_changes_no_result(case: Case, layout: str) -> None:
    for shape in SHAPES:
        plain = case.make(shape)
        want = case(plain)
        out = LAYOUTS[layout](np.full(case.shape_of(case.out, shape), 9, F32))
        if layout in AWKWARD and layout != "subclass":
            with pytest.raises(ValueError, match=r"^out(\[[01]\])? "):
                case(plain, out=out)
            continue
        around = out if out.base is None else out.base
        untouched = np.isnan(around).sum()
        got = case(plain, out=out)
        assert got[case.out] is out
        case.assert_same(got, want, f"{shape}")
        assert np.isnan(around).sum() == untouched, "written beside out"


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -2, -4])
@pytest.mark.parametrize(
    "layout", ["contiguous", "Fortran", "every second row", "all reversed", "unaligned", "unaligned, Fortran"]
)
@each_case()
def test_every_axis_of_every_layout(case: Case, layout: str, axis: int) -> None:
    shape = (3, 4, 5, 6)
    plain = case.make(shape, axis=axis)
    last = {name: moved(case, name, a, axis) for name, a in plain.items()}
    want = case(last)
    for which, arguments in variants(case, plain, LAYOUTS[layout]):
        got = case(arguments, axis=axis)
        assert_memory_order(case, got, arguments)
        case.assert_same({name: moved(case, name, got[name], axis) for name in got}, want, f"of {which}")
        if case.out:
            like = np.zeros(case.shape_of(case.out, shape, axis), F32)
            out = like if "unaligned" in layout else LAYOUTS[layout](like)
            got = case(arguments, axis=axis, out=out)
            assert got[case.out] is out
            case.assert_same({name: moved(case, name, got[name], axis) for name in got}, want, f"of {which}, out")


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("layout", NOT_ONE_STRIDE)
@each_case()
def test_rows_without_a_common_stride(case: Case, layout: str, axis: int) -> None:
    for shape in SHAPES_3D:
        plain = case.make(shape, axis=axis)
        want = case(plain, axis=axis)
        lay_out = lambda a: NOT_ONE_STRIDE[layout](a) if a.ndim == 3 else a  # noqa: E731
        for which, arguments in variants(case, plain, lay_out):
            got = case(arguments, axis=axis)
            case.assert_same(got, want, f"of {which}, {shape}")
            assert_unmodified(arguments, plain)
            assert_memory_order(case, got, arguments)
        if axis == -1:  # the same rows, as a matrix
            flat = {name: np.reshape(a, flat_shape(case, name, shape)) for name, a in plain.items()}
            got = {name: np.reshape(part, case.shape_of(name, shape)) for name, part in case(flat).items()}
            case.assert_same(got, want, f"of a matrix, {shape}")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
@each_case(lambda case: takes_out(case) and case.results[case.out] == "whole")
def test_results_keep_the_order_of_the_axes_in_memory(case: Case, order: tuple[int, int, int]) -> None:
    shape = (4, 5, 6)
    for axis in (0, 1, 2, -1):
        plain = case.make(shape, axis=axis)
        want = case(plain, axis=axis)
        inverse = np.argsort(order)
        arguments = plain | {case.main: np.ascontiguousarray(plain[case.main].transpose(order)).transpose(inverse)}
        got = case(arguments, axis=axis)
        assert got[case.out].transpose(order).flags.c_contiguous
        case.assert_same(got, want, f"axis={axis}")


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 1, 2, 3, 7), (1,) * 6 + (7,)])
@pytest.mark.parametrize("dtype", DTYPES)
@each_case()
def test_any_number_of_dimensions(case: Case, shape: tuple[int, ...], dtype: type) -> None:
    arguments = case.make(shape, dtype)
    got = case(arguments)
    for name in got:
        assert np.shape(got[name]) == case.shape_of(name, shape)
    flat = {name: np.reshape(a, flat_shape(case, name, shape)) for name, a in arguments.items()}
    want = {name: np.reshape(part, case.shape_of(name, shape)) for name, part in case(flat).items()}
    case.assert_same(got, want, bitwise=True)
    if len(shape) == 1 and "targets" in case.arguments and case.targets == "labels":
        case.assert_same(case(arguments | {"targets": int(arguments["targets"])}), want, bitwise=True)


@pytest.mark.parametrize("axes", ["rows", "classes", "both"])
@pytest.mark.parametrize("shape", [(33, 10), (6, 300)])
@each_case()
def test_broadcast_arguments(case: Case, shape: tuple[int, int], axes: str) -> None:
    plain = case.make(shape)
    broadcast = {}
    for name, array in plain.items():
        if array.ndim == 2:
            small = {"rows": array[:1], "classes": array[:, :1], "both": array[:1, :1]}[axes]
        else:
            small = array[:1]
        broadcast[name] = np.broadcast_to(small, array.shape)
    copies = {name: a.copy() for name, a in broadcast.items()}
    for which, arguments in [("all", broadcast), *((name, copies | {name: broadcast[name]}) for name in broadcast)]:
        got = case(arguments)
        case.assert_same(got, case(copies), f"of {which}")
        assert_memory_order(case, got, arguments)


@each_case()
def test_arguments_that_overlap_themselves(case: Case) -> None:
    shape = (60, 40)
    plain = case.make(shape)
    arguments = dict(plain)
    for name in (name for name, a in plain.items() if a.shape == shape and a.dtype.kind == "f"):
        windows = as_strided(plain[name].ravel()[:100].copy(), shape, (4, 4), writeable=False)
        arguments[name] = windows
    case.assert_same(case(arguments), case({name: a.copy() for name, a in arguments.items()}))


@pytest.mark.parametrize("mode", ["r", "c", "r+"])
@each_case()
def test_memory_mapped_arguments(case: Case, tmp_path: Path, mode: Any) -> None:
    plain = case.make((40, 30))
    for name, array in plain.items():
        np.save(tmp_path / f"{name}.npy", array)
    mapped = {name: np.load(tmp_path / f"{name}.npy", mmap_mode=mode) for name in plain}
    want = case(plain)
    got = case(mapped)
    case.assert_same(got, want, bitwise=True)
    assert all(type(part) in (np.ndarray, F32, F64) for part in got.values())
    if mode == "r+" and case.out and case.results[case.out] == "whole":  # the gradient goes into the file
        got = case(mapped, out=mapped[case.main])
        assert got[case.out] is mapped[case.main]
        mapped[case.main].flush()
        np.testing.assert_array_equal(np.load(tmp_path / f"{case.main}.npy"), want[case.out])


@pytest.mark.parametrize("stride", [3, 2**62, -(2**63)])
@each_case()
def test_stride_of_a_single_row_is_not_used(case: Case, stride: int) -> None:
    plain = case.make((1, 50))
    arguments = {name: as_strided(a, strides=(stride, a.itemsize)) if a.ndim == 2 else a for name, a in plain.items()}
    options = {}
    if case.out and case.results[case.out] == "whole":
        options["out"] = as_strided(np.zeros((1, 50), F32), strides=(stride, 4))
    case.assert_same(case(arguments, **options), case(plain), bitwise=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 10, 41, 48, 65, 96, 97, 131, 300, 2047, 2049, 4096, 4099])
def test_place_in_memory_changes_no_bit(classes: int, dtype: type) -> None:
    """Vectors begin elsewhere, and more or fewer of them reach over the end of a row."""
    shape = (9, classes)
    cases = [case for case in CASES if case.main in ("logits", "x") and takes_out(case)]
    cases.append(BY_NAME["cross_entropy, labels"])

    def spoiled(plain: np.ndarray) -> np.ndarray:
        plain[0, : classes // 2] = plain[1] = plain[2, -1] = -np.inf
        plain[5, classes // 2] = np.nan
        return plain

    def at(offset: int, array: np.ndarray) -> np.ndarray:
        room = np.empty(array.size + 32, array.dtype)
        begin = -room.ctypes.data // room.itemsize % 16 + offset
        a = room[begin : begin + array.size].reshape(array.shape)
        a[...] = array
        return a

    for case in cases:
        arguments = case.make(shape, dtype)
        plain = spoiled(arguments[case.main])
        if "row_max" in arguments:  # of these logits
            stats = fastce.cross_entropy(plain, arguments["targets"], return_stats=True)[1]
            arguments |= {"row_max": stats.row_max, "tail": stats.tail}
        want = case(arguments | {case.main: at(0, plain)})
        in_place = case.out and case.results[case.out] == "whole"
        for offset in range(1, 16):
            given = at(offset, plain)
            case.assert_same(case(arguments | {case.main: given}), want, f"at {offset}", bitwise=True)
            if case.out:
                out = at(7 * offset % 16, np.empty_like(want[case.out]))
                case.assert_same(case(arguments | {case.main: given}, out=out), want, f"at {offset}", bitwise=True)
            if in_place:
                case.assert_same(case(arguments | {case.main: given}, out=given), want, f"at {offset}", bitwise=True)


@pytest.mark.parametrize("shape", [(1100, 1000), (70, 20_000), (67_000, 21)], ids=str)
@pytest.mark.parametrize("with_probabilities", [False, True])
def test_large_arrays_with_contiguous_rows_anywhere_in_memory(shape: tuple[int, int], with_probabilities: bool) -> None:
    """Their gradients are written past the caches where lines are whole, and beside `out` nothing is written."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(shape).astype(F32)
    logits[1, 2:] = -np.inf
    logits[-1, 0] = np.nan
    labels = rng.integers(shape[1], size=shape[0])
    labels[3] = labels[-1] = -100
    targets = fastce.softmax(rng.standard_normal(shape).astype(F32)) if with_probabilities else labels
    options = {"label_smoothing": 0.1, "reduction": "none"}
    want = fastce.cross_entropy_with_grad(logits, targets, **options)

    def at(offset: int, values: np.ndarray | float) -> tuple[np.ndarray, list[np.ndarray]]:
        room = np.full(logits.size + 64, 7, F32)
        begin = -room.ctypes.data // room.itemsize % 16 + 16 + offset
        before, a, after = np.split(room, [begin, begin + logits.size])
        a[...] = np.ravel(np.broadcast_to(values, shape), order="F")
        return a.reshape(shape, order="F"), [before, after]

    first = None
    for offset, num_threads in [(0, 1), (4, 3), (1, 1), (15, 2)]:
        given, out, beside = at(offset, logits)[0], *at(offset, 9)
        loss, grad = fastce.cross_entropy_with_grad(given, targets, out=out, num_threads=num_threads, **options)
        assert all((part == 7).all() for part in beside), "written beside out"
        np.testing.assert_allclose(loss, want[0], rtol=1e-5)
        np.testing.assert_allclose(grad, want[1], rtol=1e-4, atol=1e-7)
        in_place = fastce.cross_entropy_with_grad(given, targets, out=given, num_threads=num_threads, **options)
        first = first or (loss, grad)
        for got in ((loss, grad), in_place):
            for a, b in zip(got, first, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [fastce.softmax_grad, fastce.log_softmax_grad], ids=lambda f: f.__name__)
def test_large_products_are_the_same_at_every_alignment_and_in_place(function: Any, dtype: type) -> None:
    """The first is written past the caches, in whole lines where they are aligned. In place nothing is."""
    rng, shape = np.random.default_rng(0), (300, 7001)
    upstream, x = (rng.standard_normal(shape, F32).astype(dtype) for _ in range(2))
    forward = fastce.softmax if function is fastce.softmax_grad else fastce.log_softmax
    y = forward(x, axis=0)
    in_place = y.copy()
    want = function(upstream, in_place, axis=0, out=in_place)
    memory = np.full(y.size + 32, 7, dtype)
    for offset in (1, 2, 7, 15):
        out = memory[offset : offset + y.size].reshape(shape)
        np.testing.assert_array_equal(function(upstream, y, axis=0, out=out, num_threads=1 + offset % 2), want)
        assert (memory[:offset] == 7).all() and (memory[offset + y.size :] == 7).all()
        memory[:] = 7
