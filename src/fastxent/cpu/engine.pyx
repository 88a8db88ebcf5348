"""The CPU engine: binds arrays to a job, chooses threads, loops over blocks of rows.

Design
a) This file loops; it neither checks (``_check.py``) nor computes (``kernels/``).
b) Arrays come as typed memoryviews of a fixed number of axes: [outer, inner, class] and [outer, inner]. They need no
   NumPy C-API, so one module serves every CPython of the stable ABI. The kernels are told the type of the elements, so
   all types but the commonest are viewed as unsigned words of their size, also those that no buffer can carry
   (bfloat16). ``const`` views take read-only arrays; that outputs are writable has been checked.
c) Rows are taken in blocks whose size depends on the shape alone. Each block leaves one partial sum, and these are
   added in the order of the blocks: the same bits for any number of threads and any schedule. That sum is compensated
   (formulas.h), so that it is as exact for a million blocks as for one.
d) The number of threads is decided on each call (DESIGN 3.2). A fixed ``num_threads`` would override the limits of
   threadpoolctl and joblib, so it is always at most ``omp_get_max_threads()`` unless the user asked for more.
e) Blocks run in slices of bounded time; between slices signals are looked at, so that Ctrl-C works. Time is measured,
   not foreseen: the same work may take fifteen times longer where its outputs are memory that nobody has touched yet.
   Threads take the blocks one after another, look at the clock before they take more, and compute what they have taken:
   what a slice leaves undone is always the end, and the next one goes on there.
f) Scratch memory is taken once, before the parallel region, which can therefore fail only before anything is
   written.
g) Calls on small arrays cost what Python costs. So ``Everyday`` takes the calls that nearly all calls are (whole arrays
   of the usual types, nothing but logits and target) from the loss to the kernels in one step. It knows no errors:
   whatever is unusual, or wrong, it leaves to the long way. Where nothing of the user's is written, the targets of
   binary losses are looked at in the pass that computes.
"""

from cpython.buffer cimport PyBUF_FORMAT, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.math cimport INFINITY, isfinite, isnan
from libc.stdlib cimport free, malloc


# The glue is most of what Cython generates, and small matters more there than fast. No vectors: two fields stored at
# once with SSE, between kernels that use AVX, cost a small call 0.1 us.
cdef extern from *:
    """
    #if defined(__GNUC__) && !defined(__clang__)
    #pragma GCC optimize("Os", "no-tree-slp-vectorize")
    #endif
    """


cdef extern from "kernels/kernels.h" nogil:
    enum:
        FX_CROSS_ENTROPY, FX_FOCAL, FX_SOFTMAX, FX_LOG_SOFTMAX, FX_LOGSUMEXP
        FX_BINARY_CROSS_ENTROPY, FX_BINARY_FOCAL, FX_SIGMOID, FX_LOG_SIGMOID
        FX_LOGITS, FX_LOG_PROBS, FX_PROBS
        FX_INT8, FX_INT16, FX_INT32, FX_INT64, FX_UINT8, FX_UINT16, FX_UINT32, FX_UINT64
        FX_FLOAT16, FX_BFLOAT16, FX_FLOAT32, FX_FLOAT64
        FX_BAD_TARGET
        FX_BAD_WEIGHT
        FX_ALIGNMENT

    ctypedef struct fx_array:
        void *data
        ptrdiff_t outer
        ptrdiff_t inner
        ptrdiff_t klass

    ctypedef struct fx_job:
        int64_t n_outer, n_inner, n_classes
        fx_array logits, target, sample_weight, pos_weight, loss, grad, hess
        const void *class_weight
        double label_smoothing, divisor, gamma, alpha
        int64_t ignore_index
        int has_ignore_index, task, inputs, real_type, target_type, sample_weight_type, unsurveyed
        int regime, stream
        int64_t rows_per_block, n_blocks_per_outer, n_blocks
        size_t scratch_bytes

    ctypedef struct fx_table:
        const char *level
        int lanes
        void (*plan)(fx_job *job) noexcept nogil
        double (*survey)(const fx_job *job, int64_t block, int *flaws) noexcept nogil
        double (*compute)(const fx_job *job, int64_t block, void *scratch) noexcept nogil
        void (*elementary)(int which, const void *x, void *y, int64_t n) noexcept nogil

    ctypedef struct fx_level:
        const char *level
        const fx_table *float32
        const fx_table *float64

    const fx_level FX_LEVELS[]
    int fx_usable(const fx_level *level)
    int64_t fx_stream_bytes


cdef extern from "threads.h" nogil:
    int FX_OPENMP
    int fx_forked
    int fx_max_threads()
    int fx_thread_limit()
    int fx_in_parallel()
    void fx_watch_forks()
    int64_t fx_milliseconds()
    ptrdiff_t fx_take(ptrdiff_t *next, ptrdiff_t n)


cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1


ctypedef fused word:
    float
    double
    int64_t
    uint8_t
    uint16_t
    uint32_t
    uint64_t

# Below this many logits a thread is not worth waking: about 50 microseconds of work.
cdef int64_t GRAIN = 65536
# Below this the GIL is kept: releasing it costs more than it gives (about 10 microseconds of work).
cdef int64_t KEEP_GIL_BELOW = 16384
# Milliseconds of a slice: Ctrl-C is noticed that soon, or when the block is done that each thread is at.
cdef int64_t SLICE = 30
# Logits that a thread computes between two looks at the clock: at most a few milliseconds of work, for focal losses on
# the slowest level into memory that the machine has to find first.
cdef int64_t LOOK = 65536

TASKS = {
    "cross_entropy": FX_CROSS_ENTROPY, "focal": FX_FOCAL, "softmax": FX_SOFTMAX, "log_softmax": FX_LOG_SOFTMAX,
    "logsumexp": FX_LOGSUMEXP, "binary_cross_entropy": FX_BINARY_CROSS_ENTROPY, "binary_focal": FX_BINARY_FOCAL,
    "sigmoid": FX_SIGMOID, "log_sigmoid": FX_LOG_SIGMOID,
}
INPUTS = {"logits": FX_LOGITS, "log_probs": FX_LOG_PROBS, "probs": FX_PROBS}
# By kind and size of the dtype; a bool is read as an unsigned byte, and bfloat16 is of no kind NumPy knows.
cdef dict TYPES = {
    ("i", 1): FX_INT8, ("i", 2): FX_INT16, ("i", 4): FX_INT32, ("i", 8): FX_INT64, ("u", 1): FX_UINT8,
    ("b", 1): FX_UINT8, ("u", 2): FX_UINT16, ("u", 4): FX_UINT32, ("u", 8): FX_UINT64,
    ("f", 2): FX_FLOAT16, ("V", 2): FX_BFLOAT16, ("f", 4): FX_FLOAT32, ("f", 8): FX_FLOAT64,
}
cdef dict TYPE_OF_DTYPE = {}  # what was looked up once, by the dtype itself
REGIMES = ("tile", "short_rows", "rows", "long_rows", "plain_rows", "elements")
BAD_TARGET = FX_BAD_TARGET
BAD_WEIGHT = FX_BAD_WEIGHT

cdef const fx_level *LEVEL = NULL
cdef int REQUESTED_THREADS = 0  # 0: automatic
cdef int LEFT_OUT = 0           # of the automatic number
cdef int CPU_LIMIT = 1          # affinity and quota; set by _config


# ---- levels ----

def usable_levels():
    """Names of the instruction-set levels this machine runs, best first."""
    names = []
    cdef int i = 0
    while FX_LEVELS[i].level != NULL:
        if fx_usable(&FX_LEVELS[i]):
            names.append(FX_LEVELS[i].level.decode())
        i += 1
    return tuple(names)


def use_level(str name):
    """Compute with this level from now on."""
    global LEVEL
    cdef int i = 0
    while FX_LEVELS[i].level != NULL:
        if FX_LEVELS[i].level.decode() == name and fx_usable(&FX_LEVELS[i]):
            LEVEL = &FX_LEVELS[i]
            return
        i += 1
    raise ValueError(f"level must be one of {list(usable_levels())}; got {name!r}")


def level():
    """Name of the level in use."""
    return LEVEL.level.decode()


# ---- threads ----

def has_openmp():
    """Whether the extension was built with OpenMP."""
    return bool(FX_OPENMP)


def configure_threads(int requested, int left_out, int cpu_limit):
    """Set the number of threads: ``requested``, or where that is 0 the automatic one less ``left_out``."""
    global REQUESTED_THREADS, LEFT_OUT, CPU_LIMIT
    REQUESTED_THREADS = requested
    LEFT_OUT = left_out
    CPU_LIMIT = cpu_limit


def openmp_max_threads():
    """What OpenMP would use: ``OMP_NUM_THREADS``, threadpoolctl and joblib change it."""
    return fx_max_threads()


def openmp_thread_limit():
    """The most threads OpenMP may use in this process."""
    return fx_thread_limit()


def forked():
    """Whether this process was forked from one that had imported fastxent, and so stays serial."""
    return bool(fx_forked)


def in_parallel():
    """Whether the caller is inside an OpenMP parallel region."""
    return bool(fx_in_parallel())


cdef int available_threads() noexcept nogil:
    cdef int n
    if not FX_OPENMP or fx_forked or fx_in_parallel():
        return 1
    if REQUESTED_THREADS > 0:
        return REQUESTED_THREADS
    n = min(fx_max_threads(), CPU_LIMIT) - LEFT_OUT
    return max(n, 1)


def threads():
    """The number of threads a large call would use now."""
    return available_threads()


cdef int threads_for(int64_t work, int64_t n_blocks) noexcept nogil:
    cdef int64_t n = min(<int64_t> available_threads(), min(work // GRAIN, n_blocks))
    return <int> max(n, 1)


# ---- binding arrays ----

cdef int type_of(object dtype) except -1:
    cdef object found = TYPE_OF_DTYPE.get(dtype)
    if found is None:
        found = TYPE_OF_DTYPE[dtype] = TYPES[dtype.kind, dtype.itemsize]
    return found


cdef int bind_words(fx_array *array, object values, word _) except -1:
    """An array [outer, inner, class] or [outer, inner]; strides in elements."""
    cdef const word[:, :, :] view
    cdef const word[:, :] rows
    if values.ndim == 3:
        view = values
        array.data = <void *> &view[0, 0, 0]
        array.outer = view.strides[0] // <ptrdiff_t> sizeof(word)
        array.inner = view.strides[1] // <ptrdiff_t> sizeof(word)
        array.klass = view.strides[2] // <ptrdiff_t> sizeof(word)
    else:
        rows = values
        array.data = <void *> &rows[0, 0]
        array.outer = rows.strides[0] // <ptrdiff_t> sizeof(word)
        array.inner = rows.strides[1] // <ptrdiff_t> sizeof(word)
    return 0


cdef int bind(fx_array *array, object values) except -1:
    """Bind an array, if there is one, and return the type of its elements."""
    cdef int kind
    if values is None:
        return 0
    kind = type_of(values.dtype)
    if kind == FX_FLOAT32:
        bind_words[float](array, values, 0)
    elif kind == FX_FLOAT64:
        bind_words[double](array, values, 0)
    elif kind == FX_INT64:
        bind_words[int64_t](array, values, 0)
    elif kind == FX_UINT64:
        bind_words[uint64_t](array, values, 0)
    elif kind == FX_INT32 or kind == FX_UINT32:
        bind_words[uint32_t](array, values.view("u4"), 0)
    elif kind == FX_INT8 or kind == FX_UINT8:
        bind_words[uint8_t](array, values.view("u1"), 0)
    else:
        bind_words[uint16_t](array, values.view("u2"), 0)
    return kind


# ---- the loop ----

cdef struct Walk:  # over all blocks, which the threads share
    const fx_table *table
    const fx_job *job
    double *partial
    char *scratch
    bint survey
    int n_threads
    ptrdiff_t next       # block that nobody has taken
    ptrdiff_t at_once    # blocks to take at a time
    ptrdiff_t per_look   # blocks between two looks at the clock
    int64_t begin        # of the slice


cdef int walk_alone(Walk *walk, int thread) noexcept nogil:
    """Take and finish blocks until none is left or the slice is over; return the flaws found."""
    cdef char *scratch = walk.scratch + <size_t> thread * walk.job.scratch_bytes
    cdef int64_t block, first, last, passed
    cdef ptrdiff_t unwatched = 0
    cdef int flaws = 0
    while True:
        first = walk.next
        if walk.n_threads > 1:
            first = fx_take(&walk.next, walk.at_once)
        else:
            walk.next += walk.at_once
        last = min(first + walk.at_once, walk.job.n_blocks)
        for block in range(first, last):
            if walk.survey:
                walk.partial[block] = walk.table.survey(walk.job, block, &flaws)
            else:
                walk.partial[block] = walk.table.compute(walk.job, block, scratch)
        if last == walk.job.n_blocks:
            return flaws
        unwatched += walk.at_once
        if unwatched >= walk.per_look:
            unwatched = 0
            passed = fx_milliseconds() - walk.begin
            if passed >= SLICE or passed < 0:  # some clocks can be set
                return flaws


cdef int walk_together(Walk *walk) noexcept nogil:
    cdef int thread, flaws = 0
    if walk.n_threads == 1:
        return walk_alone(walk, 0)
    for thread in prange(walk.n_threads, num_threads=walk.n_threads, schedule="static", chunksize=1):
        flaws |= walk_alone(walk, thread)
    return flaws


cdef double run(const fx_table *table, const fx_job *job, int *flaws) except? -1:
    """Survey all blocks (``flaws`` given: it gets what is found) or compute them; the sum of what they return."""
    cdef int64_t rows = job.n_outer * job.n_inner, work = rows * job.n_classes, block
    cdef int n_threads, found = 0
    cdef char *memory = NULL
    cdef double total = 0, low = 0, next_total, part
    cdef size_t bytes_needed
    cdef Walk walk
    walk.table = table
    walk.job = job
    walk.survey = flaws != NULL
    if walk.survey and job.target_type < FX_FLOAT16 and job.task < FX_BINARY_CROSS_ENTROPY:
        work = rows
    walk.n_threads = n_threads = threads_for(work, job.n_blocks)
    walk.next = 0
    walk.at_once = walk.per_look = job.n_blocks
    if work > LOOK:
        walk.per_look = max(LOOK // max(work // job.n_blocks, 1), 1)
        # One thread has nobody to share with, and the survey of a block is short.
        walk.at_once = walk.per_look if n_threads == 1 else max(walk.per_look // 8, 1) if walk.survey else 1
    bytes_needed = <size_t> job.n_blocks * sizeof(double) + FX_ALIGNMENT
    if not walk.survey:
        bytes_needed += <size_t> n_threads * job.scratch_bytes
    memory = <char *> malloc(bytes_needed)
    if memory == NULL:
        raise MemoryError(f"fastxent could not allocate {bytes_needed} bytes")
    try:
        walk.scratch = memory + (FX_ALIGNMENT - <uintptr_t> memory % FX_ALIGNMENT)
        walk.partial = <double *> walk.scratch
        if not walk.survey:
            walk.partial = <double *> (walk.scratch + <size_t> n_threads * job.scratch_bytes)
        while True:
            if work < KEEP_GIL_BELOW:
                found |= walk_together(&walk)
            else:
                if job.n_blocks > walk.per_look:
                    walk.begin = fx_milliseconds()
                with nogil:
                    found |= walk_together(&walk)
            if walk.next >= job.n_blocks:
                break
            PyErr_CheckSignals()
        for block in range(job.n_blocks):
            next_total = total + walk.partial[block]
            part = next_total - total
            low += (total - (next_total - part)) + (walk.partial[block] - part)
            total = next_total
        if flaws != NULL:
            flaws[0] |= found
    finally:
        free(memory)
    return total + low if isfinite(total) else total


cdef int set_options(fx_job *job, str task, double label_smoothing, ignore_index, str inputs, double gamma,
                     alpha) except -1:
    """The part of a job that a loss knows beforehand."""
    job.task = TASKS[task]
    job.inputs = INPUTS[inputs]
    job.label_smoothing = label_smoothing
    job.divisor = 1
    job.gamma = gamma
    job.alpha = -1 if alpha is None else alpha
    if ignore_index is not None:
        job.has_ignore_index = 1
        job.ignore_index = ignore_index
    return 0


cdef class Job:
    """One call over arrays [outer, inner, class], bound and planned; it keeps the arrays alive."""

    cdef fx_job job
    cdef const fx_table *table
    cdef object arrays

    def __cinit__(self, str task, logits, *, grad=None, hess=None, loss=None, target=None, sample_weight=None,
                  class_weight=None, pos_weight=None, double label_smoothing=0.0, ignore_index=None,
                  str inputs="logits", double gamma=0.0, alpha=None):
        cdef fx_job *job = &self.job
        cdef fx_array weights
        self.arrays = (logits, grad, hess, loss, target, sample_weight, class_weight, pos_weight)
        job.n_outer, job.n_inner, job.n_classes = logits.shape
        set_options(job, task, label_smoothing, ignore_index, inputs, gamma, alpha)
        job.real_type = bind(&job.logits, logits)
        self.table = LEVEL.float64 if job.real_type == FX_FLOAT64 else LEVEL.float32
        bind(&job.grad, grad)
        bind(&job.hess, hess)
        bind(&job.loss, loss)
        job.target_type = bind(&job.target, target)
        job.sample_weight_type = bind(&job.sample_weight, sample_weight)
        bind(&job.pos_weight, pos_weight)
        if class_weight is not None:
            bind(&weights, class_weight[None])
            job.class_weight = weights.data
        self.table.plan(job)

    def survey(self):
        """(the divisor of the mean, flaws found); looks at target and weights, writes nothing."""
        cdef int flaws = 0
        divisor = run(self.table, &self.job, &flaws)
        return divisor, flaws

    def compute(self, double divisor):
        """Write the results; gradient and Hessian are divided by ``divisor``. Returns the sum of the losses."""
        self.job.divisor = divisor
        return run(self.table, &self.job, NULL)

    @property
    def plan(self):
        """What was planned, for tests and benchmarks."""
        return {"regime": REGIMES[self.job.regime], "stream": bool(self.job.stream),
                "rows_per_block": self.job.rows_per_block, "n_blocks": self.job.n_blocks,
                "scratch_bytes": self.job.scratch_bytes, "level": self.table.level.decode()}


# ---- the everyday call ----

cdef int usual_type(const Py_buffer *view) noexcept:
    """The type of a native, aligned array without gaps; -1 if it is another."""
    cdef Py_ssize_t step = view.itemsize
    cdef int axis
    cdef char letter = view.format[0]
    if view.format[1] != 0 or <uintptr_t> view.buf % <uintptr_t> view.itemsize != 0 or view.len == 0:
        return -1
    for axis in range(view.ndim - 1, -1, -1):
        if view.strides[axis] != step and view.shape[axis] != 1:
            return -1
        step *= view.shape[axis]
    if letter == b"f":
        return FX_FLOAT32
    if letter == b"d":
        return FX_FLOAT64
    if (letter == b"l" or letter == b"q") and view.itemsize == 8:
        return FX_INT64
    if (letter == b"i" or letter == b"l") and view.itemsize == 4:
        return FX_INT32
    if letter == b"?" or letter == b"B":
        return FX_UINT8
    return -1


cdef bint are_apart(const Py_buffer *a, const Py_buffer *b) noexcept:
    return <char *> a.buf + a.len <= <char *> b.buf or <char *> b.buf + b.len <= <char *> a.buf


cdef bint same_shape(const Py_buffer *a, const Py_buffer *b) noexcept:
    cdef int axis
    if a.ndim != b.ndim:
        return False
    for axis in range(a.ndim):
        if a.shape[axis] != b.shape[axis]:
            return False
    return True


cdef class Everyday:
    """The everyday calls of one loss, see g)."""

    cdef fx_job options
    cdef bint is_mean, is_elementwise
    cdef object array_type, empty_like

    def __cinit__(self, str task, array_type, empty_like, *, bint mean, double label_smoothing, ignore_index=None,
                  str inputs="logits", double gamma=0.0, alpha=None):
        set_options(&self.options, task, label_smoothing, ignore_index, inputs, gamma, alpha)
        self.is_mean = mean
        self.is_elementwise = self.options.task >= FX_BINARY_CROSS_ENTROPY
        self.array_type = array_type
        self.empty_like = empty_like

    def value(self, logits, target):
        """Return the value, or None if this is no everyday call or something is wrong."""
        return self.evaluate(logits, target, None, False)

    def value_and_grad(self, logits, target, grad_out):
        """Return value and gradient, or None likewise; nothing is written then."""
        return self.evaluate(logits, target, grad_out, True)

    cdef object evaluate(self, logits, target, grad, bint want_gradient):
        cdef Py_buffer z, t, g
        cdef int held = 0
        cdef bint nothing_to_lose = grad is None
        if type(logits) is not self.array_type or type(target) is not self.array_type:
            return None
        try:
            # What cannot be taken is left to the long way. What comes out of the computation, an interrupt, is not.
            try:
                PyObject_GetBuffer(logits, &z, PyBUF_FORMAT | PyBUF_STRIDES)
                held = 1
                PyObject_GetBuffer(target, &t, PyBUF_FORMAT | PyBUF_STRIDES)
                held = 2
                if not self.is_everyday(&z, &t):
                    return None
                if want_gradient:
                    if grad is None:
                        grad = self.empty_like(logits)
                    elif type(grad) is not self.array_type:
                        return None
                    PyObject_GetBuffer(grad, &g, PyBUF_FORMAT | PyBUF_STRIDES)
                    held = 3
            except (BufferError, ValueError, MemoryError):
                return None
            value = self.evaluate_buffers(&z, &t, &g if held == 3 else NULL, nothing_to_lose)
        finally:
            if held > 0:
                PyBuffer_Release(&z)
            if held > 1:
                PyBuffer_Release(&t)
            if held > 2:
                PyBuffer_Release(&g)
        return value if value is None or not want_gradient else (value, grad)

    cdef bint is_everyday(self, const Py_buffer *z, const Py_buffer *t) noexcept:
        """Whether logits and target are of usual types and belong together."""
        cdef int target_type = usual_type(t)
        if usual_type(z) < FX_FLOAT32 or target_type < 0:
            return False
        if self.is_elementwise:
            return same_shape(z, t)
        return z.ndim == 2 and t.ndim == 1 and t.shape[0] == z.shape[0] and target_type < FX_FLOAT16

    cdef object evaluate_buffers(self, const Py_buffer *z, const Py_buffer *t, const Py_buffer *g,
                                 bint nothing_to_lose):
        cdef fx_job job = self.options
        cdef const fx_table *table
        cdef double divisor, total
        cdef int flaws = 0
        job.real_type = usual_type(z)
        job.target_type = usual_type(t)
        if self.is_elementwise:
            job.n_outer, job.n_inner, job.n_classes = 1, 1, z.len // z.itemsize
            job.target.inner, job.target.klass = job.n_classes, 1
        else:
            job.n_outer, job.n_inner, job.n_classes = 1, z.shape[0], z.shape[1]
            job.target.inner = 1
        job.logits.data, job.logits.inner, job.logits.klass = z.buf, job.n_classes, 1
        job.target.data = t.buf
        if g != NULL:
            if (usual_type(g) != job.real_type or g.readonly or not same_shape(z, g) or not are_apart(t, g)
                    or g.buf != z.buf and not are_apart(z, g)):
                return None
            job.grad.data, job.grad.inner, job.grad.klass = g.buf, job.n_classes, 1
        table = LEVEL.float64 if job.real_type == FX_FLOAT64 else LEVEL.float32
        table.plan(&job)
        # Large targets are read once only where nothing is lost if one of them turns out to be wrong.
        job.unsurveyed = nothing_to_lose and self.is_elementwise and not job.has_ignore_index
        divisor = job.n_classes if job.unsurveyed else run(table, &job, &flaws)
        if flaws or self.is_mean and not 0 < divisor < INFINITY:
            return None
        job.divisor = divisor if self.is_mean else 1
        total = run(table, &job, NULL)
        if job.unsurveyed and isnan(total):
            run(table, &job, &flaws)
        return None if flaws else total / job.divisor


def elementary(str function, x, y):
    """For tests: y = exp(x) for x <= 0, log1p(x) for x >= 0, and log1p(x) and log(x) for fractions."""
    cdef const float[::1] x_float
    cdef const double[::1] x_double
    cdef float[::1] y_float
    cdef double[::1] y_double
    cdef int which = ("exp", "log1p", "log1p_of_fraction", "log").index(function)
    if x.itemsize == 4:
        x_float = x
        y_float = y
        LEVEL.float32.elementary(which, &x_float[0], &y_float[0], x_float.shape[0])
    else:
        x_double = x
        y_double = y
        LEVEL.float64.elementary(which, &x_double[0], &y_double[0], x_double.shape[0])


def kernel_addresses():
    """For tests: where FX_LEVELS and fx_stream_bytes lie in memory."""
    return <uintptr_t> &FX_LEVELS[0], <uintptr_t> &fx_stream_bytes


fx_watch_forks()
use_level(usable_levels()[0])
