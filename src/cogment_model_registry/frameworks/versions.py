"""Versions that are tensors in the safetensors format, written and read by any of the frameworks.

The bytes are a safetensors file, so any tool for that format reads them, and nothing in them is ever executed. The
structure of the tree (see `trees`) is in the header of the file, so the bytes are enough to decode a version, and it
needs no room in `user_data`, which is bounded. A file of another origin has no structure: it is a dict of its names.

`user_data` has what is worth knowing before the bytes are fetched: ``format``, which is ``safetensors``, and
``framework``, which wrote it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypedDict, TypeVar

from safetensors import SafetensorError, deserialize

from cogment_model_registry.client.blocking import ModelRegistry
from cogment_model_registry.client.progress import Wish
from cogment_model_registry.errors import DataLossError, InvalidError, NotFoundError, quoted
from cogment_model_registry.frameworks.trees import Structure
from cogment_model_registry.records.versions import VersionInfo

_T = TypeVar("_T")

FORMAT_KEY = "format"
FRAMEWORK_KEY = "framework"
FORMAT = "safetensors"

_METADATA_KEY = "cogment_model_registry"
"""The one entry in the header of a file, with the structure: the order of several entries, and with it the hash of the
file, would vary."""

_LENGTH_BYTES = 8
"""A file begins with the length of its header, little-endian."""

_deserialize: Callable[[bytes], list[tuple[str, dict[str, Any]]]] = deserialize

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
"""The types of elements that are read, by the names of the format and of all three frameworks."""


class UploadOptions(TypedDict, total=False):
    """Further arguments of `publish` and `store` of each framework, next to a `dtype`."""

    prefix: str
    user_data: Mapping[str, str] | None
    create: bool
    timeout: float | None
    progress: Wish


class LoadOptions(TypedDict, total=False):
    """Further arguments of `load` of each framework, next to a `dtype`."""

    prefix: str
    timeout: float | None
    progress: Wish


class FitOptions(LoadOptions, total=False):
    """Further arguments of `load` with existing parameters, which get the values or are the template."""

    strict: bool


class Encoded(NamedTuple):
    """What to upload, with any client.

    Attributes:
        data: The bytes of the version.
        user_data: Its annotations: the caller's, with `format` and `framework`.
    """

    data: bytes
    user_data: dict[str, str]


if TYPE_CHECKING:

    class Loaded(NamedTuple, Generic[_T]):
        """A version and its value, in the order of `Latest.snapshot`."""

        version: VersionInfo
        value: _T

else:  # before Python 3.11 a named tuple cannot be generic itself

    class Loaded(NamedTuple("Loaded", [("version", VersionInfo), ("value", Any)]), Generic[_T]):
        """A version and its value, in the order of `Latest.snapshot`."""

        __slots__ = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the form of the format.

    Attributes:
        name: Its name.
        dtype: The type of its elements, one of the values of `DTYPES`.
        shape: Its shape.
        buffer: Its elements in C order, little-endian; memory of its own, which may be written to.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    buffer: bytearray


def metadata_of(structure: Structure) -> dict[str, str]:
    """Return the entry of a file's header that has the structure of a tree."""
    return {_METADATA_KEY: json.dumps({"tree": structure}, separators=(",", ":"))}


def merged_user_data(user_data: Mapping[str, str] | None, framework: str) -> dict[str, str]:
    """Return the annotations of a version: the caller's and the reserved ones.

    Raises:
        InvalidError: The caller has a key that is reserved.
    """
    noted = dict(user_data or {})
    for key in (FORMAT_KEY, FRAMEWORK_KEY):
        if key in noted:
            raise InvalidError(f"user_data has the key {quoted(key)}, which is reserved")
    return {**noted, FORMAT_KEY: FORMAT, FRAMEWORK_KEY: framework}


def read(data: bytes) -> tuple[Structure, dict[str, Tensor]]:
    """Return the structure of a version, and its tensors by their names.

    Args:
        data: The bytes of the version.

    Raises:
        InvalidError: They are not safetensors, or have elements of a type that no framework here supports.
    """
    try:
        entries = _deserialize(bytes(data))
    except SafetensorError as error:
        raise InvalidError(f"the bytes are not safetensors but {_described(data)} ({error})") from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in DTYPES:
            raise InvalidError(f"tensor {quoted(name)} is of type {entry['dtype']}, which cannot be read")
        tensors[name] = Tensor(name, DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data"])
    return _structure(data, tensors), tensors


def look_up(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the tensor that a structure names.

    Raises:
        InvalidError: The version does not have it.
    """
    if name not in tensors:
        raise InvalidError(f"the structure of the tree names the tensor {quoted(name)}, which is missing")
    return tensors[name]


def _structure(data: bytes, tensors: Mapping[str, Tensor]) -> Structure:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    header = json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    text = (header.get("__metadata__") or {}).get(_METADATA_KEY)
    if text is None:
        return ["dict", [[name, name] for name in tensors]]
    try:
        structure: Structure = json.loads(text)["tree"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InvalidError("the header has no structure of a tree where one was expected") from None
    return structure


def _described(data: bytes) -> str:
    """Return a description of bytes that are not safetensors."""
    if not data:
        return "empty"
    kinds = {b"\x80": "a pickle", b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x93NUMPY": "a .npy file"}
    kind = next((kind for start, kind in kinds.items() if data.startswith(start)), "something else")
    return f"{kind}, beginning with {data[:8].hex(' ')}"


def upload(
    encode: Callable[..., Encoded],
    registry: ModelRegistry,
    model_id: str,
    parameters: object,
    *,
    archived: bool,
    options: Mapping[str, Any],
) -> VersionInfo:
    """Encode parameters, and publish or store them as a version; see `ModelRegistry.publish`.

    Args:
        encode: That of the framework.
        registry: The client.
        model_id: The model.
        parameters: What is encoded.
        archived: Whether to store it.
        options: Those of `encode` and of the upload.
    """
    of_upload = {name: options[name] for name in options.keys() & {"create", "timeout", "progress"}}
    encoded = encode(parameters, **{name: options[name] for name in options.keys() - of_upload.keys()})
    call = registry.store if archived else registry.publish
    return call(model_id, encoded.data, user_data=encoded.user_data, **of_upload)


def fetch(
    decode: Callable[..., Any],
    registry: ModelRegistry,
    model: str | VersionInfo,
    number: int,
    *,
    timeout: float | None = None,
    progress: Wish = None,
    **options: object,
) -> Loaded[Any]:
    """Return a version and its decoded value.

    Args:
        decode: That of the framework.
        registry: The client.
        model: The id of its model; or the version itself.
        number: Its number, -1 for the latest.
        timeout: How many seconds each call may take.
        progress: How to report the progress of the transfer.
        options: Those of `decode`.

    Raises:
        InvalidError: The bytes are malformed or do not fit; the message names the version.
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    info = model if isinstance(model, VersionInfo) else registry.get_version(model, number, timeout=timeout)
    while True:
        _check_format(info)
        try:
            data = registry.retrieve(info, timeout=timeout, progress=progress)
            break
        except (NotFoundError, DataLossError):
            if isinstance(model, VersionInfo):
                raise
            # A newer version may be the latest by now, and this one evicted, or its model deleted.
            newer = registry.get_version(model, number, timeout=timeout)
            if newer == info:
                raise
            info = newer
    try:
        return Loaded(info, decode(data, **options))
    except InvalidError as error:
        raise _about(info, error.message) from error


def _check_format(info: VersionInfo) -> None:
    """Refuse a version with another declared format, before its bytes are fetched."""
    found = info.user_data.get(FORMAT_KEY, FORMAT)
    if found != FORMAT:
        raise _about(info, f"its format is {quoted(found)}, not {quoted(FORMAT)}")


def _about(info: VersionInfo, message: str) -> InvalidError:
    message = f"version {info.number} of model {quoted(info.model_id)}: {message}"
    return InvalidError(message, model_id=info.model_id, version_number=info.number)
