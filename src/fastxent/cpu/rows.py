"""Seeing any arrays as rows: [outer, inner, class] views for the engine, without copies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# Fewer rows than this along the axis with the smallest stride do not fill the lanes; a longer axis then serves better.
SHORT_RUN = 8


def mergeable(a: int, b: int, shape: Sequence[int], strides: Sequence[Sequence[int]]) -> bool:
    """Whether axes a and b are one axis in all arrays: a step along a is a whole run along b."""
    return all(s[a] == s[b] * shape[b] for s in strides)


def merged_axes(arrays: Sequence[Array | None], n_axes: int, kept: Sequence[int]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of views in which the leading axes, all but the last ``kept[i]`` of array i, have become ``n_axes``.

    The first array leads: its axis of smallest stride becomes the last. Axes that are one in memory are merged; what is
    left over beyond ``n_axes`` is walked, one tuple a step.
    """
    lead = arrays[0]
    assert lead is not None
    row_shape = lead.shape[: lead.ndim - kept[0]]
    order = sorted((d for d in range(len(row_shape)) if row_shape[d] != 1), key=lambda d: -abs(lead.strides[d]))
    shape = [row_shape[d] for d in order]
    strides = [[a.strides[d] for d in order] for a in arrays if a is not None]
    groups: list[list[int]] = []
    for position in range(len(order)):
        if groups and mergeable(position - 1, position, shape, strides):
            groups[-1].append(position)
        else:
            groups.append([position])
    if len(groups) > 1:
        lengths = [math.prod(shape[p] for p in group) for group in groups]
        longest = max(range(len(groups)), key=lambda g: lengths[g])
        if lengths[-1] < SHORT_RUN <= lengths[longest]:
            groups.append(groups.pop(longest))
    merged = [math.prod(shape[p] for p in group) for group in groups]
    merged = [1] * (n_axes - len(merged)) + merged
    ones = [d for d in range(len(row_shape)) if row_shape[d] == 1]
    permutation = [*ones, *(order[p] for group in groups for p in group)]

    def reshaped(a: Array | None, n_kept: int) -> Array | None:
        if a is None:
            return None
        tail = range(a.ndim - n_kept, a.ndim)
        return a.transpose([*permutation, *tail]).reshape((*merged, *(a.shape[d] for d in tail)))

    views = [reshaped(a, n) for a, n in zip(arrays, kept, strict=True)]
    for index in np.ndindex(*merged[:-n_axes]):
        yield tuple(None if v is None else v[index] for v in views)


def row_views(
    axis: int, with_classes: Sequence[Array | None], without: Sequence[Array | None]
) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of views, first those with a class axis as [outer, inner, class], then the others as [outer, inner]."""
    lead = with_classes[0]
    assert lead is not None
    if lead.ndim == 2 and axis == 1:
        # The everyday case, and the only one whose cost matters for small arrays.
        yield tuple(None if a is None else a[None] for a in (*with_classes, *without))
        return
    moved = [None if a is None else np.moveaxis(a, axis, -1) for a in with_classes]
    yield from merged_axes([*moved, *without], 2, [1] * len(moved) + [0] * len(without))


def element_views(arrays: Sequence[Array | None]) -> Iterator[tuple[Any, ...]]:
    """Yield tuples of views [outer, inner, class] of arrays of one shape; "class" is the axis of the smallest stride."""
    if all(a is None or a.flags.c_contiguous for a in arrays):
        yield tuple(None if a is None else a.reshape(1, 1, -1) for a in arrays)
        return
    yield from merged_axes(arrays, 3, [0] * len(arrays))
