"""By how much the tensors of two versions differ.

Large tensors are read in parts, and small ones together with their neighbours, so that neither memory nor the number of
requests grows with the sizes or the number of the tensors. Tensors that are neighbours in both versions, as in two
versions of a training, take two requests for a few MiB of them.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.web.pages.queries import read_part
from cogment_model_registry.web.pages.tensors import Tensor
from cogment_model_registry.web.registries import Registry

if TYPE_CHECKING:
    import numpy.typing as npt

_PART_BYTES = 4 * MIB
"""How much of each version is in memory; a multiple of the size of all elements."""

_NEAR_BYTES = 64 * 1024
"""How many bytes between two tensors may be read in vain, in place of another request."""

COMPARISON_SECONDS = 30.0
"""How long tensors are compared; the others are left out."""


@dataclass(frozen=True, slots=True)
class Difference:
    """By how much two tensors differ.

    Attributes:
        changed: How many elements differ; -1 for a type that NumPy does not have, whose bytes differ.
        greatest: The greatest difference of two elements.
        relative: The norm of the difference, as a part of that of the first tensor; infinite if that is 0.
        is_finite: Whether all elements are finite numbers.
    """

    changed: int
    greatest: float = 0.0
    relative: float = 0.0
    is_finite: bool = True


SAME = Difference(0)
"""The difference of equal tensors."""

UNKNOWN = Difference(-1, math.nan, 0.0)
"""The difference of tensors with different bytes, of a type that NumPy does not have."""


@dataclass(slots=True)
class _Sums:
    changed: int = 0
    greatest: float = 0.0
    difference_squares: float = 0.0
    squares: float = 0.0
    is_finite: bool = True

    @property
    def difference(self) -> Difference:
        relative = math.sqrt(self.difference_squares / self.squares) if self.squares else math.inf
        return Difference(self.changed, self.greatest, relative, self.is_finite)


def has_numpy() -> bool:
    """Return whether NumPy is installed."""
    try:
        import numpy  # noqa: F401, PLC0415 # importing it is slow, and not needed to start
    except ImportError:
        return False
    return True


Pair: TypeAlias = tuple[Tensor, Tensor]
"""The same tensor of two versions, with the same type and shape."""


async def compare(
    registry: Registry, versions: tuple[Version, Version], pairs: Sequence[Pair]
) -> AsyncIterator[tuple[Pair, Difference]]:
    """Yield by how much tensors of two versions differ, for as many as there is time for.

    Args:
        registry: The registry.
        versions: The versions.
        pairs: The tensors.
    """
    until = time.monotonic() + COMPARISON_SECONDS
    for group in grouped(pairs):
        if time.monotonic() >= until:
            return
        if len(group) == 1:
            difference = await _compare_large(registry, versions, group[0], until)
            if difference is None:
                return
            yield group[0], difference
            continue
        spans = [_span([pair[side] for pair in group]) for side in (0, 1)]
        data = await asyncio.gather(
            *(read_part(registry, version, *span) for version, span in zip(versions, spans, strict=True))
        )
        for found in await asyncio.to_thread(_compare_small, group, spans, data):
            yield found


def grouped(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Yield the tensors in groups that are read together: neighbours in both, of some MiB; large ones alone."""
    group: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: pair[0].start):
        if group and not _is_near(group, pair):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _is_near(group: list[Pair], pair: Pair) -> bool:
    return all(_fits(group[0][side], group[-1][side], pair[side]) for side in (0, 1))


def _fits(first: Tensor, last: Tensor, added: Tensor) -> bool:
    """Return whether a tensor follows the last one of a group, whose first one it may be read with."""
    end = last.start + last.size_bytes
    return end <= added.start <= end + _NEAR_BYTES and added.start + added.size_bytes - first.start <= _PART_BYTES


def _span(tensors: Sequence[Tensor]) -> tuple[int, int]:
    """Return where the bytes of the tensors of a group begin, and how many they are."""
    start = tensors[0].start
    return start, tensors[-1].start + tensors[-1].size_bytes - start


def _compare_small(
    group: Sequence[Pair], spans: Sequence[tuple[int, int]], data: Sequence[bytes]
) -> list[tuple[Pair, Difference]]:
    views = [memoryview(each) for each in data]
    found = []
    for pair in group:
        ours, theirs = (
            view[tensor.start - start : tensor.start - start + tensor.size_bytes]
            for view, (start, _), tensor in zip(views, spans, pair, strict=True)
        )
        found.append((pair, SAME if ours == theirs else _difference(pair[0], ours, theirs)))
    return found


def _difference(tensor: Tensor, ours: memoryview, theirs: memoryview) -> Difference:
    sums = _Sums()
    is_known = tensor.element_bytes > 0 and _add(sums, tensor.dtype, ours, theirs)
    return sums.difference if is_known else UNKNOWN


async def _compare_large(
    registry: Registry, versions: tuple[Version, Version], pair: Pair, until: float
) -> Difference | None:
    """Return by how much a tensor differs; None if the time is up."""
    sums, are_same = _Sums(), True
    size_bytes = pair[0].size_bytes
    for start in range(0, size_bytes, _PART_BYTES):
        if time.monotonic() >= until:
            return None
        length = min(_PART_BYTES, size_bytes - start)
        ours, theirs = await asyncio.gather(
            *(
                read_part(registry, version, tensor.start + start, length)
                for version, tensor in zip(versions, pair, strict=True)
            )
        )
        are_same = are_same and ours == theirs
        is_known = pair[0].element_bytes > 0 and await asyncio.to_thread(_add, sums, pair[0].dtype, ours, theirs)
        if not is_known and not are_same:
            return UNKNOWN
    return SAME if are_same else sums.difference


def _add(sums: _Sums, dtype: str, first: bytes | memoryview, second: bytes | memoryview) -> bool:
    """Add what two parts have; return whether the type is one that NumPy has."""
    import numpy as np  # noqa: PLC0415 # as above

    ours, theirs = _array(dtype, first), _array(dtype, second)
    if ours is None or theirs is None:
        return False
    with np.errstate(all="ignore"):
        finite = np.isfinite(ours) & np.isfinite(theirs)
        sums.is_finite = sums.is_finite and bool(finite.all())
        difference = np.where(finite, np.abs(theirs - ours), 0)
        both_nan = np.isnan(ours) & np.isnan(theirs)
        sums.changed += int(((ours != theirs) & ~both_nan).sum())
        sums.greatest = max(sums.greatest, float(difference.max(initial=0)))
        sums.difference_squares += float((difference**2).sum())
        sums.squares += float((np.where(finite, np.abs(ours), 0) ** 2).sum())
    return True


def _array(dtype: str, data: bytes | memoryview) -> "npt.NDArray[Any] | None":
    """Return elements as numbers that can be subtracted; None for a type that NumPy does not have."""
    import numpy as np  # noqa: PLC0415 # as above

    if dtype == "bfloat16":  # the upper halves of those of float32
        halves = np.frombuffer(data, "<u2").astype(np.uint32) << 16
        return halves.view(np.float32).astype(np.float64)
    try:
        kind: np.dtype[Any] = np.dtype(dtype).newbyteorder("<")
    except TypeError:
        return None
    array = np.frombuffer(data, kind)
    if array.dtype.kind == "c":
        return array
    is_long = array.dtype.kind in "iu" and array.dtype.itemsize == np.dtype(np.int64).itemsize
    return array.astype(np.longdouble if is_long else np.float64)  # float64 has the same number for different long ones
