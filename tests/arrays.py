"""Arrays that break careless code: memory layouts, lane-edge sizes, rows of every kind."""

import contextlib

import numpy as np

# Half precision: storage whose arithmetic is float32. bfloat16 is another package's.
HALVES = {"float16": np.float16}
with contextlib.suppress(ImportError):
    from ml_dtypes import bfloat16

    HALVES["bfloat16"] = bfloat16

# Around the lane edges of 128, 256 and 512 bit vectors of float32 and float64, the end of the few-classes kernel
# (about 16), the edges of blocks of 2048 classes, and one row that fits in no first-level cache.
N_CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 1000, 2047, 2048, 2049, 4097, 70000)
# Nothing, one, and the edges of blocks of 8 and 16 rows turned on their side.
N_ROWS = (0, 1, 7, 15, 16, 17, 33, 100)
# Elements of binary losses: around the lane edges, the edges of chunks of 1024 and 8192, and several of those.
N_ELEMENTS = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 100, 1000, 1023, 1024, 1025, 8191, 8192, 8193, 20000)
# From logits that hardly matter to logits whose softmax is one-hot.
SCALES = (1e-3, 1.0, 30.0, 1e4)


def _strided(a):
    """Every second element along every axis."""
    big = np.full([2 * n for n in a.shape], 77, dtype=a.dtype)
    view = big[(slice(None, None, 2),) * a.ndim]
    view[...] = a
    return view


def _reversed(a):
    """Negative strides along every axis."""
    backwards = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[backwards])[backwards]


def at_byte(a, offset):
    """C-ordered, `offset` bytes past an address that is a multiple of 64."""
    buffer = np.zeros(a.nbytes + 192, dtype=np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    moved = np.ndarray(a.shape, a.dtype, buffer=buffer, offset=start)
    moved[...] = a
    return moved


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": _strided,
    "reversed": _reversed,
    "offset": lambda a: at_byte(a, a.dtype.itemsize),  # no vector register's alignment
    "misaligned": lambda a: at_byte(a, 1),  # not even the element's
    "read_only": _read_only,
    "byte_swapped": lambda a: a.astype(a.dtype.newbyteorder()),
}
# A gradient can be written into these as they are: not read-only, dtype equal to that of the logits.
WRITABLE_LAYOUTS = {name: LAYOUTS[name] for name in ("C", "F", "strided", "reversed", "offset", "misaligned")}


def random_logits(rng, shape, dtype, scale=1.0, offset=0.0):
    return (scale * rng.standard_normal(shape) + offset).astype(dtype)


def nasty_logits(rng, n_rows, n_classes, dtype):
    """Rows of very different scales, offsets and gaps, cycling, so that one block of rows holds all kinds."""
    logits = rng.standard_normal((n_rows, n_classes))
    kinds = [
        lambda row: row,
        lambda row: 1e-3 * row,
        lambda row: 30 * row,
        lambda row: 1e4 * row,
        lambda row: row + 1e6,  # a common offset
        lambda row: row - 1e8,
        lambda row: 0 * row,  # all equal
        lambda row: np.where(np.arange(len(row)) == len(row) // 2, 17, row / 10),  # one class is sure
        lambda row: np.where(np.arange(len(row)) == len(row) - 1, 60, row),
        lambda row: np.sort(row) - 40,
        lambda row: np.round(row),  # ties
    ]
    for i in range(n_rows):
        logits[i] = kinds[i % len(kinds)](logits[i])
    return logits.astype(dtype)


def nasty_elements(rng, shape, dtype):
    """Logits of binary losses, of very different scales, cycling; both signs of each."""
    size = int(np.prod(shape))
    z = rng.standard_normal(size)
    scales = (1.0, 1e-3, 1e-8, 30.0, 1e4, 0.0, 5.0, 1e30)
    for i, scale in enumerate(scales):
        z[i :: len(scales)] *= scale
    # Where the sure one of two sigmoids is 1 in float32 and float64, and where the other leaves the range of the dtype.
    for i, sure in enumerate((17, -17, 40, -40, 87, -87, 700, -700)):
        z[i :: 5 * len(scales)] = sure + z[i :: 5 * len(scales)] / 1e30
    return z.reshape(shape).astype(dtype)


def binary_target(rng, shape, kind, dtype):
    """Targets of binary losses: "bool", "int", or "soft" with some exact zeros, ones and halves."""
    if kind == "soft":
        target = rng.random(shape)
        corner = rng.random(shape)
        for i, value in enumerate((0, 1, 0.5, 1e-6)):
            target = np.where((0.1 * i < corner) & (corner < 0.1 * (i + 1)), value, target)
        return target.astype(dtype)
    return (rng.random(shape) < 0.5).astype(bool if kind == "bool" else np.int64)


def random_probabilities(rng, shape, dtype, axis=-1):
    """Distributions along `axis`, some of them with exact zeros."""
    mass = rng.gamma(0.5, size=shape)
    mass[rng.random(shape) < 0.2] = 0
    total = mass.sum(axis=axis, keepdims=True)
    return np.divide(mass, total, out=np.zeros(shape), where=total > 0).astype(dtype)


def one_hot(target, n_classes, dtype):
    """Distributions with all mass at the index, classes last."""
    target = np.asarray(target).astype(np.intp)[..., None]
    distribution = np.zeros((*target.shape[:-1], n_classes), dtype)
    np.put_along_axis(distribution, target, 1, -1)
    return distribution
