"""The safetensors format: named tensors in one run of bytes, written and read without a copy of their elements.

A file is the length of its header, the header in JSON, and the elements of all tensors one after another. The package
`safetensors` copies all elements once or twice on the way in and out, which this does not: what it writes refers to the
memory of the tensors, and what it reads refers to the bytes of the file. It writes the same bytes as that package, but
for spaces at the end of the header: the elements begin where JAX needs them to use a file that is mapped as it is.

The format is described at https://github.com/huggingface/safetensors#format.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cogment_model_registry.errors import InvalidError, quoted

_LENGTH_BYTES = 8
"""A file begins with the length of its header, little-endian."""

_ALIGNED_BYTES = 64
"""The header ends at a multiple of it: JAX copies arrays on the CPU that are not aligned to so many bytes."""

_HEADER_MAX_BYTES = 100_000_000
"""The longest header that the format allows."""

RESERVED_NAME = "__metadata__"
"""The name that no tensor can have: its entry in the header is for texts."""

_ADDRESSABLE_BYTES = 2**63 - 1
"""The largest size of an array, also when its empty dimensions are ignored."""


@dataclass(frozen=True, slots=True)
class ElementType:
    """A type of elements.

    Attributes:
        code: Its name in the format.
        name: Its name in PyTorch, JAX and NumPy.
        size_bytes: The size of an element.
    """

    code: str
    name: str
    size_bytes: int


_TYPES = (
    ElementType("BOOL", "bool", 1),
    ElementType("U8", "uint8", 1),
    ElementType("I8", "int8", 1),
    ElementType("F8_E5M2", "float8_e5m2", 1),
    ElementType("F8_E4M3", "float8_e4m3fn", 1),
    ElementType("F8_E8M0", "float8_e8m0fnu", 1),
    ElementType("F8_E4M3FNUZ", "float8_e4m3fnuz", 1),
    ElementType("F8_E5M2FNUZ", "float8_e5m2fnuz", 1),
    ElementType("I16", "int16", 2),
    ElementType("U16", "uint16", 2),
    ElementType("F16", "float16", 2),
    ElementType("BF16", "bfloat16", 2),
    ElementType("I32", "int32", 4),
    ElementType("U32", "uint32", 4),
    ElementType("F32", "float32", 4),
    ElementType("C64", "complex64", 8),
    ElementType("F64", "float64", 8),
    ElementType("I64", "int64", 8),
    ElementType("U64", "uint64", 8),
)
"""In the order of the package `safetensors`, which puts the tensors of the last type first: so all are aligned."""

_BY_CODE = {kind.code: kind for kind in _TYPES}
_RANKS = {kind.name: rank for rank, kind in enumerate(_TYPES)}

TYPES = {kind.name: kind for kind in _TYPES}
"""The types of elements that are written and read, by the names that all three frameworks have for them."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the form of the format.

    Attributes:
        dtype: The type of its elements, a key of `TYPES`.
        shape: Its shape.
        buffer: Its elements in C order, little-endian, as bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    buffer: memoryview


class FormatError(Exception):
    """Bytes are not a file of this format; the message says in what way."""


def write(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[memoryview]:
    """Return the bytes of a file, in parts: the header, and the memory of each tensor.

    Args:
        tensors: The tensors, by their names.
        metadata: Further entries of the header. Several have no certain order in the package `safetensors`.
    """
    names = sorted(tensors, key=lambda name: (-_RANKS[tensors[name].dtype], name))
    header: dict[str, Any] = {RESERVED_NAME: dict(metadata)} if metadata else {}
    end_bytes = 0
    for name in names:
        tensor = tensors[name]
        start_bytes, end_bytes = end_bytes, end_bytes + tensor.buffer.nbytes
        code = TYPES[tensor.dtype].code
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start_bytes, end_bytes]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNED_BYTES)
    head = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return [memoryview(head), *(tensors[name].buffer for name in names)]


def read(data: memoryview) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by their names, which refer to its bytes; and the further entries of its header.

    Args:
        data: All bytes of the file, as one dimension of bytes.

    Raises:
        FormatError: They are something else.
        InvalidError: A tensor has elements of a type that is not read here.
    """
    header, start_bytes = _header(data)
    metadata = header.pop(RESERVED_NAME, None)
    metadata = {} if metadata is None else metadata
    _require(isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values()), "metadata")
    spans = sorted((_Span.of(name, entry) for name, entry in header.items()), key=lambda span: (span.start, span.end))
    tensors: dict[str, Tensor] = {}
    end_bytes = 0
    for span in spans:
        # There is neither a gap nor an overlap, so nothing is hidden in a file, and no element is in two tensors.
        _require(span.start == end_bytes, f"the offsets of {quoted(span.name)}")
        end_bytes = span.end
        buffer = data[start_bytes + span.start : start_bytes + span.end]
        tensors[span.name] = Tensor(span.kind.name, span.shape, buffer)
    _require(start_bytes + end_bytes == len(data), "the length of the file")
    return {name: tensors[name] for name in header}, metadata


@dataclass(frozen=True, slots=True)
class _Span:
    """What a header says about a tensor; its elements are at some bytes after the header."""

    name: str
    kind: ElementType
    shape: tuple[int, ...]
    start: int
    end: int

    @classmethod
    def of(cls, name: str, entry: object) -> "_Span":
        match entry:
            case {"dtype": str(code), "shape": [*shape], "data_offsets": [start, end]}:
                pass
            case _:
                raise FormatError(f"the entry of {quoted(name)} is malformed")
        _require(
            all(type(number) is int and number >= 0 for number in (*shape, start, end)), f"the entry of {quoted(name)}"
        )
        kind = _BY_CODE.get(code)
        if kind is None:
            raise InvalidError(f"tensor {quoted(name)} has elements of type {quoted(code)}, which cannot be read")
        _require(end - start == math.prod(shape) * kind.size_bytes, f"the size of {quoted(name)}")
        _require(math.prod(filter(None, shape)) * kind.size_bytes <= _ADDRESSABLE_BYTES, f"the shape of {quoted(name)}")
        return cls(name, kind, tuple(shape), start, end)


def _header(data: memoryview) -> tuple[dict[str, Any], int]:
    """Return the header of a file, and where the elements begin."""
    length_bytes = int.from_bytes(data[:_LENGTH_BYTES], "little")
    end_bytes = _LENGTH_BYTES + length_bytes
    _require(len(data) >= end_bytes and length_bytes <= _HEADER_MAX_BYTES, "the length of the header")
    try:
        header = json.loads(str(data[_LENGTH_BYTES:end_bytes], "utf-8"))
    except (ValueError, RecursionError):
        raise FormatError("its header is not JSON") from None
    if not isinstance(header, dict):
        raise FormatError("its header is not an object")
    return header, end_bytes


def _require(is_right: bool, what: str) -> None:
    if not is_right:
        raise FormatError(f"{what} is wrong")
