"""The plans of the GPU kernels, for every class count: everything fits, and nothing is left out."""

import itertools

import pytest

from fastxent.gpu import plan as planning
from fastxent.gpu.plan import ITEM_SIZES, KIB, TYPES, Rows

CAPABILITIES = (80, 86, 89, 90, 100, 120)
DTYPES = ("float16", "bfloat16", "float32", "float64")
MOST_CLASSES = 300_000
# Every class count where the regimes change, then steps that no power of two divides.
CLASS_COUNTS = [*range(1, 4200), *range(4200, MOST_CLASSES + 1, 997), MOST_CLASSES]


def variant(plan):
    return dict(plan.defines)


def check_rows(plan, call, capability):
    v = variant(plan)
    size = ITEM_SIZES[call.type]
    block, processor = planning.shared_memory_of(capability)
    assert plan.shared_memory <= block
    assert v["BLOCKS"] * (plan.shared_memory + KIB) <= processor or v["BLOCKS"] == 1
    assert v["THREADS"] == plan.threads <= 1024
    assert plan.threads % 32 == 0
    assert v["BLOCKS"] * plan.threads <= 2048
    assert planning.REGISTERS // (v["BLOCKS"] * plan.threads) >= 64
    assert v["GROUP"] in (1, 2, 4, 8, 16, 32, plan.threads)
    assert v["GROUP"] == plan.threads or v["CLUSTER"] == 1
    assert v["WIDTH"] in (1, 16 // size)
    assert plan.grid % v["CLUSTER"] == 0
    assert 1 <= plan.grid <= planning.LARGEST_GRID
    assert plan.partials * v["CLUSTER"] == plan.grid
    tiles = call.n_outer * -(-call.n_inner // plan.tile_rows)
    assert (plan.partials - 1) * plan.tiles_per_block < tiles <= plan.partials * plan.tiles_per_block
    assert plan.tile_rows % (plan.threads // v["GROUP"]) == 0
    if not v["STAGES"]:
        assert (v["WIDTH"], v["BULK"], plan.stage_bytes) == (1, 0, 0)
        return
    assert v["BULK"] == (capability >= 90)
    assert v["STAGES"] <= 4  # barriers of struct Control
    assert plan.stage_bytes % 16 == 0
    # A window may begin 15 bytes before its rows, and end 15 after them; slices are whole vectors.
    vectors = -(-(plan.tile_rows * call.n_classes * size + 15) // 16)
    assert plan.stage_bytes >= 16 * -(-vectors // v["CLUSTER"])
    outputs = 1 + (v["HESSIAN"] and v["GROUP"] <= 32)  # longer rows need no stage for it
    assert plan.shared_memory >= v["STAGES"] * plan.stage_bytes * outputs
    if v["GROUP"] == plan.threads:
        assert plan.tile_rows == 1


def test_the_cluster_that_is_tried_is_as_large_as_any():
    call = Rows("softmax", TYPES["float32"], 1, 1, planning.most_classes_of_cluster(90))
    tried = planning.rows(call, 90)
    assert (tried.cluster, tried.define("STAGES")) == (planning.LARGEST_CLUSTER, 1)
    others = (
        planning.rows.__wrapped__(call._replace(task=task, n_classes=n, hessian=hessian, is_soft=hessian), 90)
        for task, hessian in (("softmax", False), ("focal", True))
        for n in range(10_000, 500_000, 997)
    )
    assert tried.shared_memory >= max(plan.shared_memory for plan in others if plan.cluster > 1) - planning.KIB
    assert planning.rows(call._replace(n_classes=call.n_classes + 500), 90).cluster == 1


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_class_count_has_a_plan_that_fits(dtype, capability):
    for n_classes in CLASS_COUNTS:
        for task, hessian, soft in (("cross_entropy", False, False), ("focal", True, True)):
            call = Rows(task, TYPES[dtype], 1, 1000, n_classes, is_soft=soft, hessian=hessian)
            check_rows(planning.rows.__wrapped__(call, capability), call, capability)


@pytest.mark.parametrize("layout", ["packed", "rows", "classes", "inner"])
def test_every_layout_and_number_of_rows(layout):
    for n_classes in (1, 2, 10, 33, 1000, 4096, 50257, 128256, 2_000_000):
        for n_outer, n_inner in ((1, 1), (1, 7), (3, 5), (1, 4_000_000), (1000, 1000)):
            for capability in CAPABILITIES:
                call = Rows("cross_entropy", TYPES["float32"], n_outer, n_inner, n_classes, layout=layout)
                check_rows(planning.rows.__wrapped__(call, capability), call, capability)


@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_are_read_once_wherever_a_row_fits(dtype):
    size = ITEM_SIZES[TYPES[dtype]]
    for n_classes in CLASS_COUNTS:
        call = Rows("cross_entropy", TYPES[dtype], 1, 8192, n_classes)
        for capability, clusters, room in ((90, True, 8 * 200), (90, False, 220), (80, True, 160), (86, True, 96)):
            stages = planning.rows.__wrapped__(call, capability, clusters).define("STAGES")
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
    plan = planning.divisor("elements", TYPES["float32"], 1 << 33, 1, target_type=TYPES["uint8"])
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
            plan = planning.divisor(counted, TYPES["float32"], n_rows, n_classes, target_type=TYPES["float32"])
            assert (plan.grid - 1) * plan.tile_rows < n_rows <= plan.grid * plan.tile_rows
            assert plan.tile_rows % (plan.threads // plan.define("GROUP")) == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_hessian_does_not_change_the_order_of_a_sum(dtype):
    counts = [*range(1, 70), *CLASS_COUNTS[70:4200:43], *CLASS_COUNTS[4200::3], 400_000, 900_000]
    names = ("THREADS", "GROUP", "CLUSTER", "WIDTH", "ITEMS")
    for layout, n_classes in itertools.product(("packed", "rows", "classes", "inner"), counts):
        for capability, has_clusters in ((80, False), (86, False), (90, True), (90, False), (120, True)):
            for task, soft in (("cross_entropy", False), ("cross_entropy", True), ("focal", False), ("focal", True)):
                call = Rows(task, TYPES[dtype], 1, 99_999, n_classes, is_soft=soft, layout=layout)
                orders = set()
                for hessian in (False, True):
                    plan = planning.rows.__wrapped__(call._replace(hessian=hessian), capability, has_clusters)
                    defines = variant(plan)
                    orders.add((*(defines[name] for name in names), plan.tile_rows, plan.tiles_per_block))
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
