"""Every variant of the kernels of the GPU: plans for every call there is, at class counts that meet every regime.

That they do meet every regime is what `test_gpu_plan` shows, which plans for all class counts.
"""

import itertools

from fastxent.gpu import plan as planning
from fastxent.gpu.plan import TYPES, Rows

# Those of the architectures that are compiled for; others have their variants (see test_gpu_plan).
CAPABILITIES = (80, 90, 100)
MOST_CLASSES = 300_000
DTYPES = ("float16", "bfloat16", "float32", "float64")
LAYOUTS = ("packed", "rows", "classes", "inner")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")
# Regimes change at ratios of 1.3 and more, but where classes are counted one by one.
CLASS_COUNTS = sorted({*range(1, 70), *(round(70 * 1.1**i) for i in range(88)), MOST_CLASSES})
SOFTMAX_LOSSES = (
    ("cross_entropy", "logits"),
    ("cross_entropy", "log_probs"),
    ("cross_entropy", "probs"),
    ("focal", "logits"),
)
BINARY_LOSSES = (("binary_cross_entropy", "logits"), ("binary_cross_entropy", "probs"), ("binary_focal", "logits"))
# All integers are one to the softmax family; they come with label smoothing (is_soft), too.
SOFTMAX_TARGETS = (("int64", False), ("int64", True), *((dtype, True) for dtype in DTYPES))


def softmax_calls():
    """All calls of the softmax family, for one class."""
    for dtype in DTYPES:
        for (task, inputs), (target, is_soft), hessian in itertools.product(
            SOFTMAX_LOSSES, SOFTMAX_TARGETS, (False, True)
        ):
            yield Rows(task, TYPES[dtype], 1, 1000, 1, inputs, is_soft, TYPES[target], hessian)
        for task in ("softmax", "log_softmax", "logsumexp"):
            yield Rows(task, TYPES[dtype], 1, 1000, 1)


def rows_plans(capability):
    for call, layout, k in itertools.product(softmax_calls(), LAYOUTS, CLASS_COUNTS):
        for has_clusters in (True, False) if capability >= planning.BULK_COPIES else (False,):
            yield planning.rows.__wrapped__(call._replace(n_classes=k, layout=layout), capability, has_clusters)


def other_plans():
    """Those of everything else, which know no architecture."""
    for dtype, flat in itertools.product(DTYPES, (False, True)):
        for (task, inputs), target, hessian in itertools.product(BINARY_LOSSES, (*INTEGERS, *DTYPES), (False, True)):
            yield planning.elements(
                task, TYPES[dtype], 1000, target_type=TYPES[target], inputs=inputs, hessian=hessian, flat=flat
            )
        for task in ("sigmoid", "log_sigmoid"):
            yield planning.elements(task, TYPES[dtype], 1000, target_type=TYPES["int64"], flat=flat)
    for dtype, counted in itertools.product(DTYPES, ("labels", "distributions", "elements")):
        for n_classes, neighbours in itertools.product((1, 9, 5000), (True, False)):
            yield planning.divisor(counted, TYPES[dtype], 1000, n_classes, classes_are_neighbours=neighbours)
    yield planning.total()


def distinct(plans):
    """One plan for every program."""
    return list({(plan.kernel, plan.defines): plan for plan in plans}.values())
