"""The safetensors format, compared with the package of that name."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry import numpy
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.frameworks import tensor_files
from cogment_model_registry.frameworks.tensor_files import Tensor

package: Any = pytest.importorskip("safetensors")  # which has no types


def by_package(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Return the file that the package `safetensors` makes of the same tensors."""
    spans, arrays = {}, []
    for name, tensor in tensors.items():
        arrays.append(np.frombuffer(tensor.buffer, np.uint8))
        spans[name] = package.TensorSpec(
            dtype=tensor.dtype,
            shape=list(tensor.shape),
            data_ptr=arrays[-1].ctypes.data,
            data_len=arrays[-1].nbytes,
        )
    return bytes(package.serialize(spans, metadata=metadata or None))


def header_and_elements(data: bytes) -> tuple[bytes, bytes]:
    """Return the header of a file without the spaces at its end, and what follows."""
    end = 8 + int.from_bytes(data[:8], "little")
    return data[8:end].rstrip(b" "), data[end:]


def tensor(dtype: str, shape: list[int]) -> Tensor:
    size_bytes = math.prod(shape) * tensor_files.TYPES[dtype].size_bytes
    return Tensor(dtype, tuple(shape), memoryview(bytes(range(size_bytes))))


TENSORS = st.builds(tensor, st.sampled_from(sorted(tensor_files.TYPES)), st.lists(st.integers(0, 3), max_size=3))
NAMES = st.text(st.characters(codec="utf-8")).filter(lambda name: name != tensor_files.RESERVED_NAME)


@given(st.dictionaries(NAMES, TENSORS), st.dictionaries(st.text(st.characters(codec="utf-8")), st.text(), max_size=1))
def test_the_bytes_equal_those_of_safetensors_except_for_padding(
    tensors: dict[str, Tensor], metadata: dict[str, str]
) -> None:
    data = b"".join(tensor_files.write(tensors, metadata))
    assert header_and_elements(data) == header_and_elements(by_package(tensors, metadata))
    assert (len(data) - sum(tensor.buffer.nbytes for tensor in tensors.values())) % 64 == 0
    assert tensor_files.read(memoryview(data)) == (tensors, metadata)
    read = {name: (entry["dtype"], entry["data"]) for name, entry in package.deserialize(data)}
    assert read == {
        name: (tensor_files.TYPES[tensor.dtype].code, bytes(tensor.buffer)) for name, tensor in tensors.items()
    }


def file_with(header: object, elements: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + elements


def entry(dtype: Any = "U8", shape: Any = (1,), start: Any = 0, end: Any = 1) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "its header is not an object"),
        ({"a": 1}, 'the entry of "a" is malformed'),
        ({"a": entry(shape=(True,))}, 'the entry of "a" is wrong'),
        ({"a": entry(shape=(-1,), end=-1)}, 'the entry of "a" is wrong'),
        ({"a": entry(start=0.0)}, 'the entry of "a" is wrong'),
        ({"a": entry(shape=(2,))}, 'the size of "a" is wrong'),
        ({"a": entry(shape=(0, 2**63), end=0)}, 'the shape of "a" is wrong'),
        ({"a": entry(start=1, end=2)}, 'the offsets of "a" is wrong'),
        ({"a": entry(), "b": entry()}, 'the offsets of "b" is wrong'),
        ({"a": entry(), "b": entry(start=2, end=3)}, 'the offsets of "b" is wrong'),
        ({"a": entry(), "__metadata__": {"a": 1}}, "metadata is wrong"),
        ({"a": entry(), "__metadata__": []}, "metadata is wrong"),
        ({}, "the length of the file is wrong"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(header: object, message: str) -> None:
    data = file_with(header, b"x")
    with pytest.raises(InvalidError, match=f"not safetensors but something else.*{message}"):
        numpy.decode(data)
    with pytest.raises(package.SafetensorError):
        package.deserialize(data)


def test_a_truncated_header_is_refused() -> None:
    data = file_with({"a": entry()}, b"x")
    for end in range(len(data)):
        with pytest.raises(InvalidError, match="not safetensors"):
            numpy.decode(data[:end])


def test_an_unsupported_element_type_is_named() -> None:
    with pytest.raises(InvalidError, match='tensor "a" has elements of type "F4", which cannot be read'):
        numpy.decode(file_with({"a": entry("F4", (2,))}, b"x"))


def test_more_dimensions_than_numpy_allows_are_refused() -> None:
    with pytest.raises(InvalidError, match='"a" has 65 dimensions, which are too many for NumPy'):
        numpy.decode(file_with({"a": entry(shape=(1,) * 65)}, b"x"))


def test_unaligned_elements_are_read() -> None:
    data = bytearray(file_with({"a": entry(), "b": entry("I64", (1,), 1, 9)}, b"x" + (7).to_bytes(8, "little")))
    array = numpy.decode(data)["b"]
    assert array.flags.aligned
    assert array.tolist() == [7]
