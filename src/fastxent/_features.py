"""The features of a linear model, dense or sparse: blocks of rows, and their products with coefficients."""

from __future__ import annotations

import mmap
from importlib import import_module
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fastxent import _check, _dispatch

Array = npt.NDArray[Any]

# With fewer rows the products lose more than the cache gives, as each of them goes through all coefficients.
LEAST_ROWS = 1024
# float32 gradients of rows this long are made as their transpose: up to twice as fast with the sgemm of OpenBLAS 0.3.30 at
# AVX-512 (48 against 70 ms for 60000 x 784 x 10), and never slower by more than 3 %; of shorter rows it is slower.
LONG_FLOAT32 = 1 << 10
# Modes of files in memory whose pages can be given back without losing what was written to them.
SHARED = ("r", "r+", "w+")


def features(X: Any) -> tuple[Dense | Sparse, np.dtype[Any], tuple[int, int]]:
    """Return X, the dtype of the arithmetic, and the shape of X."""
    rule = "be a NumPy array or a SciPy CSR array"
    if _dispatch.is_cupy(X):
        _check.fail(TypeError, "X", rule, _dispatch.kind(X))
    is_sparse = scipy_module("sparse").issparse(X)
    if is_sparse and X.format != "csr":
        _check.fail(TypeError, "X", rule, f"{X.format}: pass X.tocsr()")
    array = X if is_sparse or isinstance(X, np.ndarray) else np.asarray(X)
    if array.dtype.kind not in "buif" or array.dtype.itemsize > 8:
        _check.fail(TypeError, "X", "be real numbers of at most 64 bits", array.dtype)
    if array.ndim != 2 or array.shape[1] == 0:
        _check.fail(
            ValueError, "X", "have shape (n_samples, n_features) with at least 1 feature", f"shape {array.shape}"
        )
    dtype = np.dtype(np.float32 if array.dtype.kind == "f" and array.dtype.itemsize == 4 else np.float64)
    return (Sparse if is_sparse else Dense)(array, dtype), dtype, array.shape


def scipy_module(module: str) -> Any:
    """Import a part of scipy."""
    try:
        return import_module(f"scipy.{module}")
    except ImportError as error:
        raise ImportError('fastxent.linear needs scipy: pip install "fastxent[linear]"') from error


class Dense:
    """Rows of an array; products by BLAS, added where the result is."""

    least_rows = LEAST_ROWS

    def __init__(self, array: Array, dtype: np.dtype[Any]):
        self.array, self.dtype = array, dtype
        self.row_bytes = array.shape[1] * dtype.itemsize
        long_float32 = dtype.itemsize == 4 and self.row_bytes >= LONG_FLOAT32
        self.order: Literal["C", "F"] = "F" if long_float32 else "C"  # of the sums that `add` adds to
        self.gemm: Any = scipy_module("linalg.blas").get_blas_funcs("gemm", dtype=dtype)
        self.file = _file_of(array)

    def rows(self, some: slice) -> Array:
        """Return a block in C order, copied if it is not."""
        return np.ascontiguousarray(self.array[some], self.dtype)

    def dense(self, x: Array) -> Array:
        """Return a block as an array."""
        return x

    def factor(self, coef: Array) -> Array:
        """Return coefficients as `multiply` wants them."""
        return coef

    def multiply(self, x: Array, coef: Array, out: Array) -> None:
        """``out += x @ coef.T``, in BLAS' column-major view of it."""
        self.gemm(1.0, coef.T, x.T, 1.0, out.T, 1, 0, 1)

    def add(self, x: Array, residuals: Array, total: Array) -> None:
        """``total += residuals.T @ x``, in either order of memory."""
        if total.flags.c_contiguous:
            self.gemm(1.0, x.T, residuals.T, 1.0, total.T, 0, 1, 1)
        else:
            self.gemm(1.0, residuals.T, x.T, 1.0, total, 0, 1, 1)

    def forget(self) -> None:
        """Give the pages of a file back, which else would stay in memory as long as there is room."""
        if self.file is not None:
            self.file.madvise(mmap.MADV_DONTNEED)


class Sparse:
    """Rows of a CSR matrix."""

    def __init__(self, matrix: Any, dtype: np.dtype[Any]):
        self.matrix, self.dtype = matrix, dtype
        self.array_type = type(matrix)
        self.row_bytes = 0
        # The product back is a new array of the size of the coefficients: the logits of a block may well take as much.
        self.least_rows = matrix.shape[1]
        self.order: Literal["C", "F"] = "C"

    def rows(self, some: slice) -> Any:
        """Return a block that shares the memory of the matrix."""
        first, last = self.matrix.indptr[some.start], self.matrix.indptr[some.stop]
        numbers = self.matrix.data[first:last].astype(self.dtype, copy=False)
        indptr = self.matrix.indptr[some.start : some.stop + 1] - first
        shape = (some.stop - some.start, self.matrix.shape[1])
        matrix: Any = self.array_type((numbers, self.matrix.indices[first:last], indptr), shape=shape, copy=False)
        return matrix

    def dense(self, x: Any) -> Array:
        """Return a block as an array."""
        array: Array = x.toarray()
        return array

    def factor(self, coef: Array) -> Array:
        """Return coefficients as `multiply` wants them."""
        return np.ascontiguousarray(coef.T)

    def multiply(self, x: Any, coef: Array, out: Array) -> None:
        """``out += x @ coef``."""
        out += x @ coef

    def add(self, x: Any, residuals: Array, total: Array) -> None:
        """``total += residuals.T @ x``."""
        total += (x.T @ residuals).T

    def forget(self) -> None:
        """Nothing to give back."""


def _file_of(array: Array) -> mmap.mmap | None:
    """Return the file that an array shows, if its pages may be given back."""
    memory: Any = array
    while isinstance(memory, np.ndarray):
        memory = memory.base
    is_file = isinstance(memory, mmap.mmap) and getattr(array, "mode", "") in SHARED
    return memory if is_file and hasattr(memory, "madvise") else None
