"""Python functions that XLA calls on the CPU with its own memory, without copies: used by jax.py.

`jax.pure_callback` copies every array that goes in or out, which takes longer than the loss. XLA's foreign function
interface (`jax.ffi`) hands over addresses instead. It is a stable C interface, whose structures are declared here for
ctypes: see ``xla/ffi/api/c_api.h`` in the folder `jax.ffi.include_dir`. Structures may get more members at the end,
and those used here have been there from the first version.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from typing import Any

import jax.ffi
import jax.numpy as jnp
import numpy as np

API_VERSION = 0, 1  # major, minor: of the structures below
METADATA, EXECUTE, STRING, INTERNAL = 1, 3, 4, 13  # of several enums
DTYPES = {
    code: np.dtype(dtype)
    for code, dtype in {
        1: np.bool_,
        2: np.int8,
        3: np.int16,
        4: np.int32,
        5: np.int64,
        6: np.uint8,
        7: np.uint16,
        8: np.uint32,
        9: np.uint64,
        10: np.float16,
        11: np.float32,
        12: np.float64,
        16: jnp.bfloat16,
    }.items()
}


# New memory has a page fault for each 4 KiB, which takes longer than the gradient that is written to it. So Linux is
# asked for huge pages, as NumPy does for its own arrays of this size. It is a hint, which changes no contents.
HUGE_PAGES_FROM = 1 << 22
_madvise = None
if hasattr(mmap, "MADV_HUGEPAGE"):
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = c_void_p, c_size_t, c_int


class _Structure(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("extension_start", c_void_p)]


class _ApiVersion(_Structure):
    _fields_ = [("major_version", c_int), ("minor_version", c_int)]


class _Metadata(ctypes.Structure):
    _fields_ = [("struct_size", c_size_t), ("api_version", _ApiVersion), ("traits", c_uint32)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("type", c_int),
        ("next", c_void_p),
        ("metadata", POINTER(_Metadata)),
    ]


class _ErrorCreate(_Structure):
    _fields_ = [("message", c_char_p), ("errc", c_int)]


class _Api(_Structure):
    _fields_ = [
        ("api_version", _ApiVersion),
        ("internal_api", c_void_p),
        ("error_create", ctypes.CFUNCTYPE(c_void_p, POINTER(_ErrorCreate))),
    ]


class _Buffer(_Structure):
    _fields_ = [("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64))]


class _Buffers(_Structure):
    _fields_ = [("size", c_int64), ("types", POINTER(c_int)), ("buffers", POINTER(POINTER(_Buffer)))]


class _Span(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("size", c_size_t)]


class _Attributes(_Structure):
    _fields_ = [
        ("size", c_int64),
        ("types", POINTER(c_int)),
        ("names", c_void_p),
        ("values", POINTER(POINTER(_Span))),
    ]


class _CallFrame(_Structure):
    _fields_ = [
        ("api", POINTER(_Api)),
        ("context", c_void_p),
        ("stage", c_int),
        ("args", _Buffers),
        ("rets", _Buffers),
        ("attributes", _Attributes),
    ]


_Handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_CallFrame))  # returns an error, or NULL
_handlers: list[Any] = []  # XLA keeps their addresses


def register(name: str, function: Callable[[list[Any], list[Any], str], None]) -> None:
    """Let ``jax.ffi.ffi_call(name, ...)(*arrays, options=text)`` call ``function(arrays, results, text)``.

    The function writes to the arrays `results`. The others are read-only. JAX raises what it raises as an error of its
    own.
    """

    def call(pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if frame.extension_start:
                extension = _MetadataExtension.from_address(frame.extension_start)
                if extension.type == METADATA:  # asked once, when it is registered
                    version = extension.metadata.contents.api_version
                    version.major_version, version.minor_version = API_VERSION
                    return None
            if frame.stage == EXECUTE:
                function(_arrays(frame.args, False), _arrays(frame.rets, True), _text(frame.attributes))
            return None
        except BaseException as error:
            message = f"{type(error).__name__}: {error}".encode()
            arguments = _ErrorCreate(ctypes.sizeof(_ErrorCreate), None, message, INTERNAL)
            made: int = frame.api.contents.error_create(ctypes.byref(arguments))
            return made

    handler = _Handler(call)
    _handlers.append(handler)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")


def _arrays(buffers: _Buffers, writeable: bool) -> list[Any]:
    return [_array(buffers.buffers[k].contents, writeable) for k in range(buffers.size)]


def _array(buffer: _Buffer, writeable: bool) -> Any:
    shape, dtype = buffer.dims[: buffer.rank], DTYPES[buffer.dtype]
    count = int(np.prod(shape, dtype=np.intp))
    if not count:
        return np.empty(shape, dtype)
    size = count * dtype.itemsize
    array = np.ndarray(shape, dtype, (ctypes.c_char * size).from_address(buffer.data))
    array.flags.writeable = writeable
    if writeable and size >= HUGE_PAGES_FROM and _madvise is not None:
        start = -(-buffer.data // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise(start, buffer.data + size - start, mmap.MADV_HUGEPAGE)
    return array


def _text(attributes: _Attributes) -> str:
    if attributes.size != 1 or attributes.types[0] != STRING:
        raise TypeError("expected one attribute, a string")
    span = attributes.values[0].contents
    return ctypes.string_at(span.data, span.size).decode()
