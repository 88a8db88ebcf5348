"""The plans of the GPU kernels, for every class count: everything fits, and nothing is left out."""

from functools import lru_cache
from itertools import product

import pytest
from gpu import variants
from gpu.variants import DTYPES, LAYOUTS, MOST_CLASSES

from fastxent.gpu import plan as planning
from fastxent.gpu.plan import ITEM_SIZES, KIB, TYPES, Rows

CAPABILITIES = (80, 86, 89, 90, 100, 120)
# Every class count where the regimes change, then steps that no power of two divides.
CLASS_COUNTS = [*range(1, 4200), *range(4200, MOST_CLASSES + 1, 997), MOST_CLASSES]


# The calls whose geometries differ: labels with and without Hessian, masses, and what is looked up in the job.
KINDS = {
    "labels": {},
    "labels, Hessian": {"hessian": True},
    "masses": {"is_soft": True},
    "any": {"inputs": "probs"},
    "any, Hessian": {"inputs": "probs", "hessian": True},
}


def variant(plan):
    return dict(plan.defines)


@lru_cache
def compiled(capability):
    """What `test_gpu_compile` compiles: the variants of the oldest architecture with this one's copies."""
    oldest = planning.BULK_COPIES if capability >= planning.BULK_COPIES else planning.OLDEST
    return {plan.defines for plan in variants.rows_plans(oldest)}


def check_rows(plan, call, capability):
    v = variant(plan)
    size = ITEM_SIZES[call.type]
    block, processor = planning.shared_memory_of(capability)
    assert plan.shared_memory <= block
    assert plan.shared_memory + KIB <= processor
    assert v["THREADS"] == plan.threads <= 1024
    assert plan.threads % 32 == 0
    assert v["BLOCKS"] * plan.threads <= 2048
    assert 64 <= planning.REGISTERS // (v["BLOCKS"] * plan.threads) <= 255 or plan.threads * v["BLOCKS"] == 256
    assert plan.group in (1, 2, 4, 8, 16, 32, plan.threads)
    assert v["GROUP"] in (planning.PART_OF_A_WARP, plan.group)
    assert v["GROUP"] == plan.threads or (plan.group <= 32 and v["CLUSTER"] == 1)
    assert v["WIDTH"] in (1, 16 // size)
    assert plan.grid % v["CLUSTER"] == 0
    assert 1 <= plan.grid <= planning.LARGEST_GRID
    assert plan.partials * v["CLUSTER"] == plan.grid
    tiles = call.n_outer * -(-call.n_inner // plan.tile_rows)
    assert (plan.partials - 1) * plan.tiles_per_block < tiles <= plan.partials * plan.tiles_per_block
    assert plan.tile_rows % (plan.threads // plan.group) == 0
    assert v["STAGED"] == (plan.stages > 0)
    if not plan.stages:
        assert (v["WIDTH"], v["BULK"], plan.stage_bytes) == (1, 0, 0)
        return
    assert v["BULK"] == (capability >= 90)
    assert plan.stages <= 3  # copies that may be pending, and barriers of struct Control
    assert plan.stage_bytes % 16 == 0
    # A window may begin 15 bytes before its rows, and end 15 after them; slices are whole vectors.
    vectors = -(-(plan.tile_rows * call.n_classes * size + 15) // 16)
    assert plan.stage_bytes >= 16 * -(-vectors // v["CLUSTER"])
    outputs = 1 + (call.hessian and plan.group <= 32)  # longer rows need no stage for it
    assert plan.shared_memory >= plan.stages * plan.stage_bytes * outputs
    if plan.group == plan.threads:
        assert plan.tile_rows == 1


def test_the_cluster_that_is_tried_is_as_large_as_any():
    call = Rows("softmax", TYPES["float32"], 1, 1, planning.most_classes_of_cluster(90))
    tried = planning.rows(call, 90)
    assert (tried.cluster, tried.stages) == (planning.LARGEST_CLUSTER, 1)
    others = (
        planning.rows.__wrapped__(call._replace(task=task, n_classes=n, hessian=hessian, is_soft=hessian), 90)
        for task, hessian in (("softmax", False), ("focal", True))
        for n in range(10_000, 500_000, 997)
    )
    assert tried.shared_memory >= max(plan.shared_memory for plan in others if plan.cluster > 1) - planning.KIB
    assert planning.rows(call._replace(n_classes=call.n_classes + 500), 90).cluster == 1


def check_class_counts(call, class_counts, capability):
    """Plans of these class counts fit, and are compiled; what is the same for all of a run is checked at its ends."""
    plan_of, known = planning.rows.__wrapped__, compiled(capability)
    before, last = None, call
    for n_classes in class_counts:
        call = Rows(*call[:4], n_classes, *call[5:])
        plan = plan_of(call, capability)
        if plan != before:
            if before is not None:
                check_rows(before, last, capability)
            check_rows(plan, call, capability)
            assert plan.defines in known, f"{call}: {dict(plan.defines)}"
        before, last = plan, call
    check_rows(before, last, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_plans_fit_and_are_compiled(dtype, capability):
    for kind in ("labels", "any, Hessian"):
        call = Rows("cross_entropy", TYPES[dtype], 1, 1000, 1, **KINDS[kind])
        check_class_counts(call, CLASS_COUNTS, capability)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "kind"), [*product((80, 90), KINDS), *product((86, 120), ("labels", "any, Hessian"))]
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_class_count_has_a_plan_that_fits_and_is_compiled(dtype, capability, kind):
    """All 300 000 of them, for each size of logits and of shared memory (a minute)."""
    call = Rows("cross_entropy", TYPES[dtype], 1, 1000, 1, **KINDS[kind])
    check_class_counts(call, range(1, MOST_CLASSES + 1), capability)


def geometry(plan):
    """All of a plan but what is computed in the loops of its variant."""
    names = ("THREADS", "CLUSTER", "WIDTH", "STAGED", "BULK")
    return (*(plan.define(name) for name in names), plan.tile_rows, plan.stage_bytes, plan.stages, plan.group)


def test_every_call_has_the_geometry_of_one_whose_class_counts_are_all_tested():
    def kind_of(call):
        if planning.target_of(call, soft := call.is_soft or call.inputs != "logits") != planning.ANY:
            return "masses" if soft else "labels, Hessian" if call.hessian else "labels"
        return "any, Hessian" if call.hessian else "any"

    for call in variants.softmax_calls():
        like = Rows("cross_entropy", call.type, 1, 1000, 1, **KINDS[kind_of(call)])
        for n_classes in variants.CLASS_COUNTS[::3]:
            for capability in (80, 90):
                plan = planning.rows(call._replace(n_classes=n_classes), capability)
                assert geometry(plan) == geometry(planning.rows(like._replace(n_classes=n_classes), capability))
                assert plan.defines in compiled(capability)


def test_architectures_between_those_that_are_compiled_have_no_others_variants():
    for capability in (86, 120):  # each size of shared memory
        assert {plan.defines for plan in variants.rows_plans(capability)} <= compiled(capability)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_number_of_rows(layout):
    for n_classes in (1, 2, 10, 33, 1000, 4096, 50257, 128256, 2_000_000):
        for n_outer, n_inner in ((1, 1), (1, 7), (3, 5), (1, 4_000_000), (1000, 1000)):
            for capability in CAPABILITIES:
                call = Rows("cross_entropy", TYPES["float32"], n_outer, n_inner, n_classes, layout=layout)
                plan = planning.rows.__wrapped__(call, capability)
                check_rows(plan, call, capability)
                assert plan.defines in compiled(capability)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_read_once_wherever_a_row_fits(dtype):
    size = ITEM_SIZES[TYPES[dtype]]
    for n_classes in CLASS_COUNTS:
        call = Rows("cross_entropy", TYPES[dtype], 1, 8192, n_classes)
        for capability, clusters, room in ((90, True, 8 * 200), (90, False, 220), (80, True, 160), (86, True, 96)):
            stages = planning.rows.__wrapped__(call, capability, clusters).stages
            assert stages > 0 or n_classes * size > room * KIB


def test_no_cluster_without_hardware_and_none_after_a_failed_probe():
    call = Rows("cross_entropy", TYPES["float32"], 1, 100, 128256)
    assert planning.rows(call, 90).define("CLUSTER") > 1
    assert planning.rows(call, 90, has_clusters=False).define("CLUSTER") == 1
    assert planning.rows(call, 89).define("CLUSTER") == 1


def test_offsets_of_more_than_two_to_the_31_elements():
    call = Rows("cross_entropy", TYPES["bfloat16"], 1, 1 << 20, 128256)
    plan = planning.rows(call, 90)
    check_rows(plan, call, 90)
    plan = planning.elements("binary_cross_entropy", TYPES["float32"], 1 << 33, target_type=TYPES["uint8"])
    assert plan.grid * plan.threads * planning.ELEMENTS_VECTORS * plan.define("WIDTH") >= 1 << 33
    plan = planning.divisor("elements", TYPES["float32"], 1 << 33, 1)
    assert plan.grid * plan.tile_rows >= 1 << 33


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1023, 4095, 4096, 4097, 10**6])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flat", [True, False])
def test_all_elements_are_covered(n, dtype, flat):
    plan = planning.elements("sigmoid", TYPES[dtype], n, target_type=TYPES["int64"], flat=flat)
    run = 16 // ITEM_SIZES[TYPES[dtype]]
    assert plan.define("WIDTH") == (run if flat else 1)
    covered = plan.grid * plan.threads * planning.ELEMENTS_VECTORS * run - (run - 1)  # cut at its beginning
    assert covered >= n


@pytest.mark.parametrize("counted", ["labels", "distributions", "elements"])
def test_all_rows_are_counted(counted):
    for n_rows in (1, 5, 8191, 8192, 8193, 10**6):
        for n_classes in (1, 9, 1000, 5000, 128256):
            plan = planning.divisor(counted, TYPES["float32"], n_rows, n_classes)
            assert (plan.grid - 1) * plan.tile_rows < n_rows <= plan.grid * plan.tile_rows
            assert plan.tile_rows % (plan.threads // plan.define("GROUP")) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hessian_does_not_change_the_order_of_a_sum(dtype):
    counts = [*range(1, 70), *CLASS_COUNTS[70:4200:43], *CLASS_COUNTS[4200::3], 400_000, 900_000]
    names = ("THREADS", "CLUSTER", "WIDTH", "ITEMS")
    for layout, n_classes in product(("packed", "rows", "classes", "inner"), counts):
        for capability, has_clusters in ((80, False), (86, False), (90, True), (90, False), (120, True)):
            for task, soft in (("cross_entropy", False), ("cross_entropy", True), ("focal", False), ("focal", True)):
                call = Rows(task, TYPES[dtype], 1, 99_999, n_classes, is_soft=soft, layout=layout)
                orders = set()
                for hessian in (False, True):
                    plan = planning.rows.__wrapped__(call._replace(hessian=hessian), capability, has_clusters)
                    defines = variant(plan)
                    orders.add((*(defines[name] for name in names), plan.group, plan.tile_rows, plan.tiles_per_block))
                assert len(orders) == 1, (call, capability, orders)


def test_few_classes_are_not_limited_by_shared_memory():
    """A multiprocessor gets 33 bytes of an H200's 4.3 TB/s in a cycle of 1.98 GHz; a row is read and written."""
    for n_classes in range(2, planning.SINGLE_CLASSES + 1):
        for size in (4, 8):
            group, width = planning.group_of(n_classes, size)
            assert width == 1
            rounds = -(-n_classes // group)
            conflicts = planning.bank_conflicts(group, n_classes, size)
            cycles = rounds * planning.ACCESSES_OF_CLASS * conflicts / (32 / group)
            assert cycles <= 2 * n_classes * 2 * size / (4.3e12 / 132 / 1.98e9)


def test_the_number_of_multiprocessors_decides_nothing():
    """So that results have the same bits on all GPUs of an architecture: plans know shapes and capabilities."""
    call = Rows("cross_entropy", TYPES["float32"], 1, 12345, 100)
    assert planning.rows(call, 90) is planning.rows(call, 90)
    with pytest.raises(TypeError):
        planning.rows(call, 90, True, 132)
