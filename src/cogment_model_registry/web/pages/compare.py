"""Two versions side by side: their records, tags, metrics and tensors."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.sizes import MIB
from cogment_model_registry.web.disconnects import while_connected
from cogment_model_registry.web.pages import tensors
from cogment_model_registry.web.pages.changes import named_version
from cogment_model_registry.web.pages.differences import COMPARISON_SECONDS, Difference, compare, has_numpy
from cogment_model_registry.web.pages.formats import sentence
from cogment_model_registry.web.pages.rights import read_rights
from cogment_model_registry.web.pages.tensors import Listing, Tensor
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import registry_of, state_of

_AT_ONCE_BYTES = 32 * MIB
"""Up to which size tensors are compared without being asked to."""

COMPARED_MAX_BYTES = 1024 * MIB
"""Up to which size they are compared at all."""

_FIELDS = ("first", "second")

_COMPARISONS = asyncio.Semaphore(2)


@dataclass(frozen=True, slots=True)
class Line:
    """An entry that two versions have, or one of them.

    Attributes:
        name: Its name.
        first: What the first version has; empty for nothing.
        second: What the second one has.
        change: By how much they differ, for numbers; empty otherwise.
    """

    name: str
    first: str
    second: str
    change: str = ""

    @property
    def differs(self) -> bool:
        """Whether they differ."""
        return self.first != self.second


@dataclass(frozen=True, slots=True)
class TensorLine:
    """A tensor that two versions have, or one of them.

    Attributes:
        name: Its name.
        first: As the first version has it; None if it has not.
        second: As the second one has it.
        difference: By how much the elements differ; None if that was not looked at.
    """

    name: str
    first: Tensor | None
    second: Tensor | None
    difference: Difference | None = None

    @property
    def is_comparable(self) -> bool:
        """Whether both have it with the same type and shape."""
        first, second = self.first, self.second
        return bool(first and second and _kind_of(first) == _kind_of(second))


def _kind_of(tensor: Tensor) -> tuple[object, ...]:
    # The sizes too: a type that is not known may have the name of one that is.
    return tensor.dtype, tensor.element_bytes, tensor.shape, tensor.size_bytes


async def show(request: Request) -> Response:
    """Answer with the page."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    rights, _ = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    fields = [request.query_params.get(name, "") for name in _FIELDS]
    problem, found = "", list[Version]()
    try:
        if any(fields):
            pairs = zip(_FIELDS, fields, strict=True)
            found = [await named_version(registry, model_id, text, f"the {name} version") for name, text in pairs]
    except InvalidError as error:
        problem = sentence(error.message)
    values: Mapping[str, Any] = {"versions": None}
    if found:
        work = _compared(registry, *found, is_asked=request.query_params.get("tensors") == "yes")
        values = await while_connected(request.receive, work)  # nobody waits behind those who have left
    return state_of(request).templates.page(
        request, "compare.html", rights=rights, model_id=model_id, fields=fields, problem=problem, **values
    )


async def _compared(registry: Registry, first: Version, second: Version, *, is_asked: bool) -> Mapping[str, Any]:
    listings = await asyncio.gather(tensors.read_listing(registry, first), tensors.read_listing(registry, second))
    lines = tensor_lines(*listings)
    size_bytes = sum(line.first.size_bytes for line in lines if line.is_comparable and line.first)
    state = "same" if first.data_hash == second.data_hash else "done"
    if state == "done" and not has_numpy():
        state = "no numpy"
    elif state == "done" and size_bytes > COMPARED_MAX_BYTES:
        state = "too large"
    elif state == "done" and size_bytes > _AT_ONCE_BYTES and not is_asked:
        state = "asks"
    left_out = 0
    if state == "done":
        async with _COMPARISONS:
            lines = await _with_differences(registry, (first, second), lines)
        left_out = sum(line.is_comparable and line.difference is None for line in lines)
        lines.sort(key=_amount, reverse=True)
    return {
        "versions": (first, second),
        "notes": note_lines(first, second),
        "metrics": metric_lines(first, second),
        "lines": lines,
        "listings": listings,
        "state": state,
        "size_bytes": size_bytes,
        "left_out": left_out,
        "seconds": round(COMPARISON_SECONDS),
        "shown_max": tensors.SHOWN_MAX,
    }


def _amount(line: TensorLine) -> float:
    """Return by how much the tensors of a line differ, to sort by; most if they cannot be compared."""
    if not line.is_comparable:
        return math.inf
    return line.difference.relative if line.difference else 0.0


async def _with_differences(
    registry: Registry, versions: tuple[Version, Version], lines: Sequence[TensorLine]
) -> list[TensorLine]:
    pairs = [
        (line.first, line.second) for line in lines if line.is_comparable and line.first is not None and line.second
    ]
    found = {pair[0].name: difference async for pair, difference in compare(registry, versions, pairs)}
    return [replace(line, difference=found.get(line.name)) if line.is_comparable else line for line in lines]


def tensor_lines(first: Listing, second: Listing) -> list[TensorLine]:
    """Return the tensors of two listings by their names, in the order of the first."""
    theirs = {tensor.name: tensor for tensor in second.tensors}
    lines = [TensorLine(tensor.name, tensor, theirs.pop(tensor.name, None)) for tensor in first.tensors]
    return lines + [TensorLine(name, None, tensor) for name, tensor in theirs.items()]


def note_lines(first: Version, second: Version) -> Sequence[Line]:
    """Return the tags and the `user_data` of two versions; those that differ first."""
    lines = [
        Line(f"{kind} {name}", ours.get(name, ""), theirs.get(name, ""))
        for kind, ours, theirs in (("tag", first.tags, second.tags), ("user data", first.user_data, second.user_data))
        for name in sorted({*ours, *theirs})
    ]
    return sorted(lines, key=lambda line: not line.differs)


def metric_lines(first: Version, second: Version) -> Sequence[Line]:
    """Return the metrics of two versions, and by how much they differ; those that differ first."""
    lines = []
    for name in sorted({*first.metrics, *second.metrics}):
        ours, theirs = first.metrics.get(name), second.metrics.get(name)
        texts = ["" if value is None else f"{value:.6g}" for value in (ours, theirs)]
        change = "" if ours is None or theirs is None or ours == theirs else f"{theirs - ours:+.4g}"
        if ours and change and theirs is not None:
            change += f" ({(theirs - ours) / abs(ours):+.1%})"
        lines.append(Line(name, texts[0], texts[1], change))
    return sorted(lines, key=lambda line: not line.differs)
