"""ggml's own matrix products on the CPU: `ggml_mul_mat` of the llama.cpp that is used, by ctypes, in this process.

Weights stay as they are in a file, quantized too; for each product ggml brings the inputs to the type that its kernels
want beside these weights (ggml's `vec_dot_type`: F16 beside F16, Q8_0, Q8_1 or Q8_K beside quantized ones), as
llama.cpp and rwkv.cpp do.

ggml's own threads wait for each other by spinning, which costs far more than it gains when the cores are busy. So each
thread here is one of Python's, has its share of the rows of every matrix, and lets ggml compute that with one thread:
who waits sleeps, and the result for one input does not depend on the number of threads.

ggml ends the whole process when an assertion of its own fails, so shapes, types and sizes are checked here first.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ggufy.core.errors import ToolError
from ggufy.llama import ggml
from ggufy.llama.ggml import ByteArray, F32Array, GgmlType

_LIBRARIES = ("libggml.so", "libggml.dylib", "ggml.dll", "libggml.so.0", "libggml.0.dylib")
_CPU = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_F32 = 0
_ALIGNMENT = 64  # bytes, of what is faster when it is aligned; ggml wants 32 for a buffer
_POINTER, _NUMBER, _WIDE, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    """`ggml_init_params` of ggml.h."""

    _fields_ = [("mem_size", _SIZE), ("mem_buffer", _POINTER), ("no_alloc", ctypes.c_bool)]


_FUNCTIONS: tuple[tuple[str, Any, list[Any]], ...] = (
    ("ggml_init", _POINTER, [_InitParams]),
    ("ggml_free", None, [_POINTER]),
    ("ggml_tensor_overhead", _SIZE, []),
    ("ggml_graph_overhead_custom", _SIZE, [_SIZE, ctypes.c_bool]),
    ("ggml_new_tensor_2d", _POINTER, [_POINTER, _NUMBER, _WIDE, _WIDE]),
    ("ggml_mul_mat", _POINTER, [_POINTER, _POINTER, _POINTER]),
    ("ggml_new_graph_custom", _POINTER, [_POINTER, _SIZE, ctypes.c_bool]),
    ("ggml_build_forward_expand", None, [_POINTER, _POINTER]),
    ("ggml_backend_cpu_buffer_from_ptr", _POINTER, [_POINTER, _SIZE]),
    ("ggml_backend_buffer_free", None, [_POINTER]),
    ("ggml_backend_tensor_alloc", _NUMBER, [_POINTER, _POINTER, _POINTER]),
    ("ggml_backend_graph_compute", _NUMBER, [_POINTER, _POINTER]),
    ("ggml_backend_free", None, [_POINTER]),
    ("ggml_backend_get_device", _POINTER, [_POINTER]),
    ("ggml_backend_dev_backend_reg", _POINTER, [_POINTER]),
    ("ggml_backend_reg_get_proc_address", _POINTER, [_POINTER, ctypes.c_char_p]),
    ("ggml_backend_init_by_type", _POINTER, [_NUMBER, ctypes.c_char_p]),
    ("ggml_backend_load_all_from_path", None, [ctypes.c_char_p]),
)


def empty_bytes(size: int) -> ByteArray:
    """Memory for weights, of zeros, aligned as `Kernels` want it; pages that are never written take none."""
    return np.frombuffer(mmap.mmap(-1, max(1, size)), dtype=np.uint8)[:size]


def aligned(offset: int) -> int:
    """The next offset into such memory at which a matrix should begin."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Matrix:
    """Weights [rows, columns] of a type that ggml knows, as bytes row by row in memory of `empty_bytes`."""

    raw: ByteArray
    rows: int
    columns: int
    type: str  # ggml's name in upper case: F32, F16, Q5_1, …


@functools.cache
def load(folder: Path) -> Kernels:
    """The kernels of the llama.cpp in `folder`, once a process. Raises ToolError when that build has none to call."""
    return Kernels(folder)


class Kernels:
    """The loaded libraries. `types` is what matrices can be, by name. One is enough for all threads."""

    def __init__(self, folder: Path):
        base = ggml.load(folder)
        self.types: dict[str, GgmlType] = base.types
        places = (base.path.parent, folder, folder.parent / "lib")
        path = next((at for place in places for name in _LIBRARIES if (at := place / name).is_file()), None)
        try:
            if path is None:
                raise OSError(f"no {_LIBRARIES[0]} beside {base.path.name}")
            base_library, self._library = ctypes.CDLL(str(base.path)), ctypes.CDLL(str(path))
            for name, result, arguments in _FUNCTIONS:
                function = getattr(self._library, name, None) or getattr(base_library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
            self._find_cpu(path.parent)
        except (OSError, AttributeError) as error:
            raise ToolError(
                "{path} cannot be used ({reason}): build llama.cpp again, or unset GGUFY_LLAMA_DIR.",
                path=path or base.path,
                reason=error,
            ) from error

    def __getattr__(self, name: str) -> Any:
        """A function of _FUNCTIONS, which the constructor set; nothing else is missing."""
        raise AttributeError(name)

    def _find_cpu(self, folder: Path) -> None:
        """Loads the CPU code, in a build that has it as a plugin for each kind of CPU."""
        backend = self.ggml_backend_init_by_type(_CPU, None)
        if backend is None:
            self.ggml_backend_load_all_from_path(str(folder).encode())
            backend = self.ggml_backend_init_by_type(_CPU, None)
        if backend is None:
            raise OSError("it has no code for this CPU")
        self.ggml_backend_free(backend)

    def new_backend(self) -> int:
        """A CPU backend that computes with one thread; belongs to one thread at a time."""
        backend: int = self.ggml_backend_init_by_type(_CPU, None)
        registry = self.ggml_backend_dev_backend_reg(self.ggml_backend_get_device(backend))
        address = self.ggml_backend_reg_get_proc_address(registry, b"ggml_backend_set_n_threads")
        ctypes.CFUNCTYPE(None, _POINTER, _NUMBER)(address)(backend, 1)
        return backend


class Workers:
    """Threads that multiply matrices which lie in one piece of memory. `close` ends them."""

    def __init__(self, kernels: Kernels, memory: ByteArray, threads: int):
        """`memory`: of `empty_bytes`; it has to live as long as this does."""
        self.kernels, self.memory = kernels, memory
        self.backends = [kernels.new_backend() for _ in range(max(1, threads))]
        self.weights = kernels.ggml_backend_cpu_buffer_from_ptr(memory.ctypes.data, memory.size)
        self._tasks: list[SimpleQueue[_Task | None]] = [SimpleQueue() for _ in self.backends[1:]]
        self._threads = [threading.Thread(target=_work, args=(tasks,), daemon=True) for tasks in self._tasks]
        for thread in self._threads:
            thread.start()

    def compute(self, graphs: Sequence[_Graph]) -> None:
        """Computes each graph in the thread of its backend, the first in the calling one.

        Raises ToolError if ggml could not, which happens only without memory.
        """
        done: SimpleQueue[int] = SimpleQueue()
        for tasks, graph in zip(self._tasks, graphs[1:], strict=False):
            tasks.put((graph, done))
        statuses = [graphs[0].compute(), *(done.get() for _ in graphs[1:])]
        if failed := next(filter(None, statuses), 0):
            raise ToolError("ggml could not compute ({status}): free some memory and try again.", status=failed)

    def close(self) -> None:
        """Ends the threads. Products that were made with them may not be called any more; a second call does
        nothing."""
        for tasks in self._tasks:
            tasks.put(None)
        for thread in self._threads:
            thread.join()
        for backend in self.backends:
            self.kernels.ggml_backend_free(backend)
        self.kernels.ggml_backend_buffer_free(self.weights)
        self.backends, self.weights, self._tasks = [], None, []


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    while (task := tasks.get()) is not None:
        graph, done = task
        done.put(graph.compute())


class Products:
    """Products of several matrices, each with an input of its own, made together by the threads of `workers`."""

    def __init__(self, workers: Workers, matrices: Sequence[Matrix]):
        """Raises ValueError for matrices that ggml would not take."""
        for matrix in matrices:
            _check(matrix, workers)
        self._workers, self._matrices = workers, matrices
        self._graphs: dict[int, list[_Graph]] = {}  # by number of inputs

    def __call__(self, inputs: Sequence[F32Array]) -> list[F32Array]:
        """F32 [T, columns] for each matrix -> F32 [T, rows] for each."""
        count = len(inputs[0])
        for x, matrix in zip(inputs, self._matrices, strict=True):
            if x.shape != (count, matrix.columns):
                raise ValueError(f"inputs of {x.shape} do not fit a matrix of {matrix.columns} columns")
        if count not in self._graphs:  # one for single tokens is kept, and the last other one
            kept = {1: self._graphs[1]} if 1 in self._graphs else {}
            self._graphs = kept | {count: self._build(count)}
        graphs = self._graphs[count]
        for place, x in zip(graphs[0].inputs, inputs, strict=True):
            place[...] = x
        self._workers.compute(graphs)
        outputs = zip(*(graph.outputs for graph in graphs), strict=True)
        return [np.concatenate(shares, axis=1) for shares in outputs]

    def _build(self, count: int) -> list[_Graph]:
        inputs, places = _arrays([(count, matrix.columns) for matrix in self._matrices])
        backends = self._workers.backends[: min(matrix.rows for matrix in self._matrices)]
        return [
            _Graph(self._workers, backend, [_share(m, i, len(backends)) for m in self._matrices], inputs, places)
            for i, backend in enumerate(backends)
        ]


class _Graph:
    """The products of one thread, with memory for what goes in and comes out."""

    def __init__(
        self, workers: Workers, backend: int, matrices: list[Matrix], memory: ByteArray, inputs: list[F32Array]
    ):
        kernels, self.inputs = workers.kernels, inputs
        out, self.outputs = _arrays([(len(x), m.rows) for x, m in zip(inputs, matrices, strict=True)])
        self._kernels, self._backend, self._memory = kernels, backend, (memory, out)
        nodes = 3 * len(matrices)
        size = kernels.ggml_graph_overhead_custom(nodes, False) + nodes * kernels.ggml_tensor_overhead()
        context = kernels.ggml_init(_InitParams(size, None, True))
        buffers = [kernels.ggml_backend_cpu_buffer_from_ptr(m.ctypes.data, m.size) for m in (memory, out)]
        weakref.finalize(self, _free, kernels, context, buffers)
        self._graph = kernels.ggml_new_graph_custom(context, nodes, False)
        for matrix, x, y in zip(matrices, inputs, self.outputs, strict=True):
            number = kernels.types[matrix.type].number
            w = kernels.ggml_new_tensor_2d(context, number, matrix.columns, matrix.rows)
            given = kernels.ggml_new_tensor_2d(context, _F32, matrix.columns, len(x))
            made = kernels.ggml_mul_mat(context, w, given)
            for buffer, tensor, array in (
                (workers.weights, w, matrix.raw),
                (buffers[0], given, x),
                (buffers[1], made, y),
            ):
                kernels.ggml_backend_tensor_alloc(buffer, tensor, array.ctypes.data)
            kernels.ggml_build_forward_expand(self._graph, made)

    def compute(self) -> int:
        """0 if ggml could."""
        status: int = self._kernels.ggml_backend_graph_compute(self._backend, self._graph)
        return status


_Task = tuple[_Graph, SimpleQueue[int]]


def _free(kernels: Kernels, context: int, buffers: list[int]) -> None:
    for buffer in buffers:
        kernels.ggml_backend_buffer_free(buffer)
    kernels.ggml_free(context)


def _check(matrix: Matrix, workers: Workers) -> None:
    kind = workers.kernels.types.get(matrix.type)
    if kind is None or matrix.columns < 1 or matrix.columns % kind.block or matrix.rows < 1:
        raise ValueError(f"ggml takes no {matrix.rows} rows of {matrix.columns} {matrix.type}")
    start = matrix.raw.ctypes.data - workers.memory.ctypes.data
    size = kind.bytes_of(matrix.rows * matrix.columns)
    step = 4 if matrix.type == "F32" else 2  # of F16 scales and values
    if matrix.raw.size != size or not matrix.raw.flags.c_contiguous or start % step:
        raise ValueError(f"a matrix of {matrix.type} needs {size} bytes at a multiple of {step}")
    if not 0 <= start <= workers.memory.size - size:
        raise ValueError("the matrix is not in the memory of these threads")


def _share(matrix: Matrix, part: int, parts: int) -> Matrix:
    """The rows of one thread."""
    first, last = (matrix.rows * i // parts for i in (part, part + 1))
    bytes_of_row = matrix.raw.size // matrix.rows
    return Matrix(matrix.raw[first * bytes_of_row : last * bytes_of_row], last - first, matrix.columns, matrix.type)


def _arrays(shapes: Sequence[tuple[int, int]]) -> tuple[ByteArray, list[F32Array]]:
    """Aligned F32 arrays in one piece of memory."""
    offsets = [0]
    for rows, columns in shapes:
        offsets.append(aligned(offsets[-1] + 4 * rows * columns))
    memory = empty_bytes(offsets[-1])
    arrays = [
        memory[at : at + 4 * shape[0] * shape[1]].view(np.float32).reshape(shape)
        for at, shape in zip(offsets, shapes, strict=False)
    ]
    return memory, arrays
