"""From a call to a launch: which kernel, which variant of it, how many threads, how much shared memory.

Nothing here needs a GPU or CuPy. What is decided depends on the shape and the architecture, never on the number of
multiprocessors: the partial sums, and so the bits of every result, are the same on all GPUs of an architecture.

The regimes of ``rows.cu``, by the bytes of a row without gaps:

- up to ``TILE_ROW``: tiles of many rows, a few threads or a warp for each of them;
- up to what fits into the stages of a block, or of a cluster of blocks: a row, or a slice of one, to a block;
- longer rows, and strides: every pass reads memory.

How a row is shared out depends neither on whether there is a Hessian nor on the task: sums keep their order, and what is
computed beside does not change a bit.

Every variant takes time to compile, of the one who calls it first and of the tests, which compile all. So a define is
what loops and registers depend on in calls that are common; the rest a kernel looks up in its job.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

# As in kernels: numbers.cuh, rows.cu, elements.cu.
TASKS = {
    "cross_entropy": 0,
    "focal": 1,
    "softmax": 2,
    "log_softmax": 3,
    "logsumexp": 4,
    "binary_cross_entropy": 5,
    "binary_focal": 6,
    "sigmoid": 7,
    "log_sigmoid": 8,
}
INPUTS = {"logits": 0, "log_probs": 1, "probs": 2}
TYPES = {
    "int8": 0,
    "int16": 1,
    "int32": 2,
    "int64": 3,
    "uint8": 4,
    "uint16": 5,
    "uint32": 6,
    "uint64": 7,
    "bool": 4,
    "float16": 8,
    "bfloat16": 9,
    "float32": 10,
    "float64": 11,
}
ITEM_SIZES = (1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8)
INT64, UINT8, UINT16, FLOAT16, FLOAT32, FLOAT64 = 3, 4, 5, 8, 10, 11
ANY = 12  # looked up for every number: a branch that all threads take alike
ROWS = ("port.cuh", "numbers.cuh", "formulas.cuh", "rows.cu")
ELEMENTS = ("port.cuh", "numbers.cuh", "formulas.cuh", "binary.cuh", "elements.cu")
TOTALS = ("port.cuh", "numbers.cuh", "totals.cu")

KIB = 1024
# Shared memory by compute capability, from the newest on: the most for a block, and for all blocks of a multiprocessor
# (CUDA C++ Programming Guide, Technical Specifications per Compute Capability). A block takes 1 KiB more than it asks for.
SHARED_MEMORY = (
    (120, 99 * KIB, 100 * KIB),
    (90, 227 * KIB, 228 * KIB),
    (89, 99 * KIB, 100 * KIB),
    (87, 163 * KIB, 164 * KIB),
    (86, 99 * KIB, 100 * KIB),
    (80, 163 * KIB, 164 * KIB),
)
OLDEST = 80
BULK_COPIES = 90  # and clusters
REGISTERS = 65536
LARGEST_CLUSTER = 8
LARGEST_GRID = 2**31 - 1

TILE_ROW = 4 * KIB
TILE = 16 * KIB
TILE_THREADS = 256
# Slices that leave room for two blocks with three stages each.
GOOD_SLICE = 36 * KIB
# Up to this many bytes of a row, or slice of one, a block has so many threads.
THREADS_OF_SLICE = ((8 * KIB, 128), (GOOD_SLICE, 256), (math.inf, 512))
MOST_STAGES = 3
# Blocks walk through several tiles, so that the next one is on its way; few enough that all multiprocessors have some.
TILES_PER_BLOCK = 8
ENOUGH_BLOCKS = 1024
# Few classes are taken one by one, many as vectors.
SINGLE_CLASSES = 32
PART_OF_A_WARP = 0  # as GROUP: 1 to 32 threads, as the job says
# Instructions of a thread and accesses to shared memory, counted in the source; 4 warps issue in a cycle.
INSTRUCTIONS_OF_CLASS, INSTRUCTIONS_OF_ROW, ACCESSES_OF_CLASS, ISSUED_PER_CYCLE = 32, 120, 4, 128
# So many at once hide the latency of loads and exponentials; where the kernel knows no better, the second.
AT_WORK = (3, 4, 5)
ITEMS = 4
# Registers of a thread for float32 and float64, by what is computed; some more where indices and strides are long.
REGISTERS_OF_ROW = {
    "plain": (64, 104),
    "index": (96, 104),
    "soft": (104, 104),
    "focal distribution": (104, 128),
    "activation": (56, 104),
}
REGISTERS_OF_STRIDES = 24
ELEMENTS_THREADS, ELEMENTS_VECTORS = 256, 4
# The same, by the bytes of a logit: of values and gradients, and of Hessians and focal losses.
REGISTERS_OF_ELEMENT = {2: (80, 96), 4: (80, 80), 8: (128, 128)}
REGISTERS_OF_WIDE_TARGETS = 40
COUNTED_PER_BLOCK = 8192


class Plan(NamedTuple):
    """One launch: the variant of a kernel, and its geometry."""

    kernel: str
    sources: tuple[str, ...]
    defines: tuple[tuple[str, int], ...]
    grid: int
    threads: int
    shared_memory: int
    tile_rows: int = 1
    tiles_per_block: int = 1
    stage_bytes: int = 0
    partials: int = 1
    cluster: int = 1
    stages: int = 0
    group: int = 1

    def define(self, name: str) -> int:
        """Return the value of one of the defines."""
        return dict(self.defines)[name]


class Rows(NamedTuple):
    """What a launch of ``rows`` depends on, arrays seen as [outer, inner, class]."""

    task: str
    type: int
    n_outer: int
    n_inner: int
    n_classes: int
    inputs: str = "logits"
    is_soft: bool = False
    target_type: int = INT64
    hessian: bool = False
    # "packed": rows without gaps, one after the other; "rows": without gaps, but apart; "classes" and "inner": neither,
    # and which axis of the logits has the smaller stride.
    layout: str = "packed"


@lru_cache
def shared_memory_of(capability: int) -> tuple[int, int]:
    """Bytes of shared memory for a block, and for a multiprocessor."""
    return next(
        (block, processor) for oldest, block, processor in SHARED_MEMORY if capability >= oldest or oldest == OLDEST
    )


def round_up(n: int, multiple: int) -> int:
    """Return the next multiple."""
    return -(-n // multiple) * multiple


@lru_cache(maxsize=1024)
def bank_conflicts(group: int, n_classes: int, size: int) -> int:
    """How many words of one bank a warp asks for at once where ``group`` threads share a row in shared memory."""
    words: dict[int, set[int]] = {}
    for lane in range(32 if size < 8 else 16):
        word = (lane // group * n_classes + lane % group) * size // 4
        words.setdefault(word % 32, set()).add(word)
    return max(len(w) for w in words.values())


@lru_cache(maxsize=1024)
def group_of(n_classes: int, size: int) -> tuple[int, int]:
    """(threads that share a row of a tile, classes that they take at once)."""
    if n_classes > SINGLE_CLASSES:
        width = 16 // size
        vectors = n_classes // width
        return min(32, 1 << max(vectors // 2, 1).bit_length() - 1), width
    groups = [g for g in (1, 2, 4, 8, 16, 32) if g < 2 * n_classes]
    return min(groups, key=lambda g: cycles_of_row(g, n_classes, size)), 1


def cycles_of_row(group: int, n_classes: int, size: int) -> float:
    """Estimate of a multiprocessor's cycles for a row of few classes: that of its busier half, and a little of the other."""
    rounds = -(-n_classes // group)
    issuing = group * (rounds * INSTRUCTIONS_OF_CLASS + INSTRUCTIONS_OF_ROW) / ISSUED_PER_CYCLE
    accessing = rounds * ACCESSES_OF_CLASS * bank_conflicts(group, n_classes, size) / (32 / group)
    return max(issuing, accessing) + min(issuing, accessing) / 4


@lru_cache(maxsize=1024)
def items_of(n_classes: int) -> int:
    """How many classes a thread that has a row to itself has at work; few go to waste in the last round."""
    if n_classes <= max(AT_WORK):
        return max(n_classes, 2)
    return min(AT_WORK, key=lambda n: (-n_classes % n, -n))


@lru_cache
def control_bytes(soft: bool, cluster: int, threads: int, size: int) -> int:
    """Size of the struct Control of ``rows.cu``."""
    pair = 16 if size == 8 else 8
    return round_up(4 * 8 + 32 * 8 + 2 * (6 if soft else 3) * cluster * (threads // 32) * pair, 128)


def threads_of(slice_bytes: float) -> int:
    """Threads of a block that has a slice of a row."""
    return next(threads for most, threads in THREADS_OF_SLICE if slice_bytes <= most)


def tile_bytes(n_rows: int, row_bytes: int) -> int:
    """Room for rows without gaps, wherever they begin and end in vectors of 16 bytes."""
    return round_up(n_rows * row_bytes + 30, 128)


def stages_of(control: int, stage: int, capability: int, most: int = MOST_STAGES) -> int:
    """How many stages fit, 0 if none does."""
    room = shared_memory_of(capability)[0] - control
    return max(min(most, room // stage), 0)


@lru_cache(maxsize=4096)
def rows(call: Rows, capability: int, has_clusters: bool = True) -> Plan:
    """Plan a call of the softmax family."""
    size = ITEM_SIZES[call.type]
    row_bytes = call.n_classes * size
    bulk = capability >= BULK_COPIES
    soft = call.is_soft or call.inputs != "logits"
    n_rows = call.n_outer * call.n_inner
    target = target_of(call, soft)
    cluster, stages, group, width, tile_rows, stage, outputs = 1, 0, 1, 1, 1, 0, 1
    threads = TILE_THREADS
    if call.layout == "packed" and row_bytes <= TILE_ROW:
        group, width = group_of(call.n_classes, size)
        control = control_bytes(True, 1, threads, size)
        while not stages_of(control, 2 * tile_bytes(threads // group, row_bytes), capability):
            group *= 2  # so that there is room for a Hessian
        outputs = 2 if call.hessian else 1
        at_once = threads // group
        # Where rows are few, rather more blocks than full tiles.
        fair = n_rows // ENOUGH_BLOCKS
        tile_rows = max(min(TILE // row_bytes, fair) // at_once, 1) * at_once
        stage = tile_bytes(tile_rows, row_bytes)
        stages = stages_of(control, stage * outputs, capability)
    elif call.layout in ("packed", "rows") and row_bytes > TILE_ROW // 4:
        for cluster in (1, 2, 4, 8) if bulk and has_clusters else (1,):
            stage = round_up(-(-(row_bytes + 30) // cluster) + 16, 128)
            if stage <= GOOD_SLICE:
                break
        threads = max(threads_of(stage), TILE_THREADS if soft else 0)
        # On few devices of those that should have them clusters cannot be launched.
        group = threads = min(threads, TILE_THREADS) if bulk and cluster == 1 else threads
        width = 16 // size
        stages = stages_of(control_bytes(True, cluster, threads, size), stage, capability)
    if stages == 0:
        # Threads are neighbours where the numbers are.
        cluster, width, stage, threads = 1, 1, 0, TILE_THREADS
        if call.layout == "inner":
            group = 1
        elif row_bytes > 2 * TILE_ROW:
            group = threads = TILE_THREADS if soft else 512  # for which there are 128 registers
        else:
            group = min(32, 1 << max(call.n_classes // 2, 1).bit_length() - 1)
        tile_rows = threads // group
    # Exponentials of labels' rows take most of the time, so that it shows if some are computed in vain.
    is_alone = group == 1 and not soft
    items = width if width > 1 else items_of(call.n_classes) if is_alone else ITEMS
    n_tiles = call.n_outer * -(-call.n_inner // tile_rows)
    tiles_per_block = min(max(n_tiles // ENOUGH_BLOCKS, 1), TILES_PER_BLOCK)
    blocks = -(-n_tiles // tiles_per_block)
    # A block with one stage has the multiprocessor to itself; all of them ask for as much as those that have most sums.
    shared = control_bytes(soft or stages == 1, cluster, threads, size) + stages * stage * outputs
    assert n_rows >= 1
    assert blocks * cluster <= LARGEST_GRID
    return Plan(
        "rows",
        ROWS,
        defines_of_rows(
            call.task,
            call.type,
            call.inputs,
            soft,
            target,
            call.hessian,
            threads,
            group,
            cluster,
            width,
            items,
            stages > 0,
            bulk,
        ),
        blocks * cluster,
        threads,
        shared,
        tile_rows,
        tiles_per_block,
        stage,
        blocks,
        cluster,
        stages,
        group,
    )


def most_classes_of_cluster(capability: int) -> int:
    """Return how many classes of float32 the largest cluster holds, each block as much as it can."""
    threads = threads_of(math.inf)
    stage = (shared_memory_of(capability)[0] - control_bytes(True, LARGEST_CLUSTER, threads, 4)) // 128 * 128
    return (LARGEST_CLUSTER * (stage - 16) - 30) // 4


def target_of(call: Rows, soft: bool) -> int:
    """Type of the targets, as far as a variant knows it: labels, or probabilities like logits, and nothing unusual."""
    is_usual = call.task == "cross_entropy" and call.inputs == "logits" and not call.hessian
    if soft and not (is_usual and (call.target_type < FLOAT16 or call.target_type == call.type)):
        return ANY
    return call.target_type if call.target_type >= FLOAT16 else INT64


@lru_cache(maxsize=4096)
def defines_of_rows(
    task: str,
    type_: int,
    inputs: str,
    soft: bool,
    target: int,
    hessian: bool,
    threads: int,
    group: int,
    cluster: int,
    width: int,
    items: int,
    staged: bool,
    bulk: bool,
) -> tuple[tuple[str, int], ...]:
    """The variant of ``rows``."""
    if TASKS[task] > TASKS["focal"]:
        kind = "activation"
    elif soft or task == "focal":
        kind = "focal distribution" if soft and task == "focal" else "soft"
    else:
        kind = "index" if hessian or cluster > 1 else "plain"
    registers = REGISTERS_OF_ROW[kind][type_ == FLOAT64] + (0 if staged else REGISTERS_OF_STRIDES)
    defines = {
        "TYPE": type_,
        # A row's log(sum exp) is what its log_softmax returns.
        "TASK": min(TASKS[task], TASKS["log_softmax"]),
        "INPUTS": INPUTS[inputs],
        "SOFT": int(soft),
        "TARGET": target,
        "HESSIAN": int(hessian or target == ANY),
        "THREADS": threads,
        "GROUP": group if group == threads or (group == 1 and not soft) else PART_OF_A_WARP,
        "CLUSTER": cluster,
        "WIDTH": width,
        "ITEMS": items,
        "STAGED": int(staged),
        "BULK": int(bulk and staged),
        # So many blocks shall find registers; they may not find shared memory.
        "BLOCKS": max(REGISTERS // (threads * registers), 1),
    }
    return tuple(defines.items())


@lru_cache(maxsize=4096)
def elements(
    task: str, type_: int, n: int, *, target_type: int, inputs: str = "logits", hessian: bool = False, flat: bool = True
) -> Plan:
    """Plan an elementwise call; ``flat``: arrays without gaps."""
    size = ITEM_SIZES[type_]
    width = 16 // size if flat else 1
    # A vector may be cut at either end; others take the same elements one by one.
    vectors = -(-n * size // 16) + 1
    blocks = -(-vectors // (ELEMENTS_THREADS * ELEMENTS_VECTORS))
    is_loss = TASKS[task] <= TASKS["binary_focal"]
    target = target_of_elements(type_, target_type, flat) if is_loss else INT64
    needs_hessian = hessian or (is_loss and (target == ANY or inputs != "logits"))
    wide = target == ANY or ITEM_SIZES[target] > max(size, 4)
    more = (needs_hessian or task == "binary_focal") and not wide
    registers = REGISTERS_OF_ELEMENT[size][more] + REGISTERS_OF_WIDE_TARGETS * wide
    defines = {
        "TYPE": type_,
        "TASK": TASKS[task],
        "INPUTS": INPUTS[inputs],
        "TARGET": target,
        "HESSIAN": int(needs_hessian),
        "THREADS": ELEMENTS_THREADS,
        "CLUSTER": 1,
        "WIDTH": width,
        "BULK": 0,
        "BLOCKS": REGISTERS // (ELEMENTS_THREADS * registers),
    }
    assert blocks <= LARGEST_GRID
    return Plan("elements", ELEMENTS, tuple(defines.items()), blocks, ELEMENTS_THREADS, 256, partials=blocks)


def target_of_elements(type_: int, target_type: int, flat: bool) -> int:
    """Type of the targets, as far as a variant knows it; 0 and 1 are the same in both integers of a size."""
    target = target_type if target_type >= FLOAT16 else UINT8 + target_type % 4
    return target if flat and target != UINT16 and (target < FLOAT16 or target in (type_, FLOAT32)) else ANY


def _totals(type_: int, threads: int, **more: int) -> tuple[tuple[str, int], ...]:
    return tuple({"TYPE": type_, "THREADS": threads, "CLUSTER": 1, "BULK": 0, "BLOCKS": 1, **more}.items())


@lru_cache(maxsize=4096)
def divisor(counted: str, type_: int, n_rows: int, n_classes: int, *, classes_are_neighbours: bool = True) -> Plan:
    """Plan the divisor of the mean; ``counted``: "labels", "distributions" or "elements" (then of rows of one class)."""
    threads, group = TILE_THREADS, 1
    if counted == "distributions" and classes_are_neighbours:
        group = threads if n_classes > TILE_ROW else 32 if n_classes > 8 else 1
    per_row = n_classes if counted == "distributions" else 1
    at_once = threads // group
    tile_rows = max(COUNTED_PER_BLOCK // per_row // at_once, 1) * at_once
    blocks = -(-n_rows // tile_rows)
    number = ("labels", "distributions", "elements").index(counted)
    # The type is that of class weights.
    real = FLOAT64 if type_ == FLOAT64 and counted != "elements" else FLOAT32
    defines = _totals(real, threads, COUNTED=number, GROUP=group)
    return Plan("divisor", TOTALS, defines, blocks, threads, 256, tile_rows, partials=blocks)


@lru_cache(maxsize=1)
def total() -> Plan:
    """Plan the sum of the partial sums."""
    threads = 1024
    return Plan("add_up", TOTALS, _totals(FLOAT32, threads, GROUP=threads), 1, threads, 256)
