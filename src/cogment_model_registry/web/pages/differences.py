"""By how much two tensors differ, read in parts, so that large ones take little memory."""

import asyncio
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.web.pages.queries import read_part
from cogment_model_registry.web.pages.tensors import Tensor
from cogment_model_registry.web.registries import Registry

if TYPE_CHECKING:
    import numpy.typing as npt

_PART_BYTES = 4 * MIB
"""How much of each tensor is in memory; a multiple of the size of all elements."""


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


@dataclass(slots=True)
class _Sums:
    changed: int = 0
    greatest: float = 0.0
    difference_squares: float = 0.0
    squares: float = 0.0
    is_finite: bool = True


def has_numpy() -> bool:
    """Return whether NumPy is installed."""
    try:
        import numpy  # noqa: F401, PLC0415 # importing it is slow, and not needed to start
    except ImportError:
        return False
    return True


async def compare_bytes(
    registry: Registry, first: tuple[Version, Tensor], second: tuple[Version, Tensor]
) -> Difference:
    """Return by how much a tensor of one version differs from one of another version, of the same type and shape."""
    sums, are_same, is_known = _Sums(), True, True
    size_bytes = first[1].size_bytes
    for start in range(0, size_bytes, _PART_BYTES):
        length = min(_PART_BYTES, size_bytes - start)
        ours, theirs = await asyncio.gather(
            *(read_part(registry, version, tensor.start + start, length) for version, tensor in (first, second))
        )
        if ours != theirs:
            are_same = False
        is_known = first[1].element_bytes > 0 and await asyncio.to_thread(_add, sums, first[1].dtype, ours, theirs)
        if not is_known and not are_same:
            return Difference(-1, math.nan, 0.0)
    if are_same:
        return SAME
    relative = math.sqrt(sums.difference_squares / sums.squares) if sums.squares else math.inf
    return Difference(sums.changed, sums.greatest, relative, sums.is_finite)


def _add(sums: _Sums, dtype: str, first: bytes, second: bytes) -> bool:
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


def _array(dtype: str, data: bytes) -> "npt.NDArray[Any] | None":
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
    return array if array.dtype.kind == "c" else array.astype(np.float64)
