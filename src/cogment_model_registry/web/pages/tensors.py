"""The tensors in the bytes of a version, from the header of a safetensors file.

Only the header is read, up to a bound, and everything in it is checked: whoever published the version wrote it.
"""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.frameworks.tensor_files import RESERVED_NAME, TYPES
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.web.pages.queries import read_part
from cogment_model_registry.web.registries import Registry

_LENGTH_BYTES = 8
_HEADER_MAX_BYTES = 2 * 1024 * 1024
"""The longest header that is read: enough for some 15,000 tensors."""

_FIRST_BYTES = 16 * 1024
"""How much is read first: the whole header of most files."""

_TENSORS_MAX = 20_000
_DIMENSIONS_MAX = 64
SHOWN_MAX = 300
"""How many tensors a page shows."""

_SIZES = {kind.code: (kind.name, kind.size_bytes) for kind in TYPES.values()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says about a tensor.

    Attributes:
        name: Its name.
        dtype: The type of its elements.
        element_bytes: The size of an element; 0 for a type that is not known, whose name may be any text.
        shape: Its shape.
        start: Where its bytes begin in the version.
        size_bytes: How many there are.
    """

    name: str
    dtype: str
    element_bytes: int
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Listing:
    """The tensors of a version.

    Attributes:
        tensors: The tensors, in the order of the header.
        metadata: Further entries of the header.
        problem: Why the tensors of a file that looks like safetensors cannot be shown; empty otherwise.
    """

    tensors: Sequence[Tensor] = ()
    metadata: Mapping[str, str] | None = None
    problem: str = ""

    @property
    def elements(self) -> int:
        """How many elements all of them have."""
        return sum(tensor.elements for tensor in self.tensors)


NOTHING = Listing()
"""The listing of a version that is not a safetensors file."""


class MalformedError(Exception):
    """The header is wrong; the message says in what way."""


async def read_listing(registry: Registry, version: Version) -> Listing:
    """Return the tensors of a version; an empty listing if it is not a safetensors file.

    Errors of the registry become the problem of the listing, so that the rest of the page is shown.
    """
    try:
        start = await read_part(registry, version, 0, _FIRST_BYTES)
        length = int.from_bytes(start[:_LENGTH_BYTES], "little")
        end = _LENGTH_BYTES + length
        if end > version.data_size_bytes or start[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":
            return NOTHING
        if length > _HEADER_MAX_BYTES:
            return Listing(problem=f"The header has {length:,} bytes; headers of up to {_HEADER_MAX_BYTES:,} are read.")
        head = start if len(start) >= end else start + await read_part(registry, version, len(start), end - len(start))
    except ModelRegistryError as error:
        return Listing(problem=error.message)
    try:
        # On a thread, since a header of thousands of tensors would hold up all other requests.
        return await asyncio.to_thread(parse_header, head[_LENGTH_BYTES:end], end, version.data_size_bytes)
    except MalformedError as error:
        return Listing(problem=f"It looks like a safetensors file, but {error}.")


def parse_header(text: bytes, start: int, size_bytes: int) -> Listing:
    """Return the tensors that a header describes.

    Args:
        text: The header.
        start: Where the bytes of the tensors begin.
        size_bytes: The size of the whole file.

    Raises:
        MalformedError: It is wrong.
    """
    try:
        header = json.loads(text.decode("utf-8"))
        json.dumps(header, ensure_ascii=False).encode()  # a lone surrogate, which no page can have, is a ValueError
    except (ValueError, RecursionError):
        raise MalformedError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise MalformedError("its header is not an object")
    metadata = header.pop(RESERVED_NAME, None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("its metadata is not text")
    if len(header) > _TENSORS_MAX:
        raise MalformedError(f"it has {len(header):,} tensors; up to {_TENSORS_MAX:,} are shown")
    return Listing([_tensor(name, entry, start, size_bytes) for name, entry in header.items()], metadata)


def _tensor(name: str, entry: object, start: int, size_bytes: int) -> Tensor:
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            raise MalformedError(f"the entry of {name[:80]!r} is malformed")
    numbers = (*shape, begin, end)
    if len(shape) > _DIMENSIONS_MAX or not all(type(each) is int and 0 <= each < 2**63 for each in numbers):
        raise MalformedError(f"the entry of {name[:80]!r} is malformed")
    if not begin <= end <= size_bytes - start:
        raise MalformedError(f"{name[:80]!r} is outside of the file")
    dtype, element_bytes = _SIZES.get(code, (code[:20], 0))
    if element_bytes and math.prod(shape) * element_bytes != end - begin:
        raise MalformedError(f"the size of {name[:80]!r} does not fit its shape")
    return Tensor(name, dtype, element_bytes, tuple(shape), start + begin, end - begin)
