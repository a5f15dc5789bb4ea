"""Versions that are tensors in the safetensors format, written and read by any of the frameworks.

The bytes are a safetensors file, so any tool for that format reads them, and nothing in them is ever executed. The
structure of the tree (see `trees`) is in the header of the file, so the bytes are enough to decode a version, and it
needs no room in `user_data`, which is bounded. A file of another origin has no structure: it is a dict of its names.

`user_data` has what is worth knowing before the bytes are fetched: ``format``, which is ``safetensors``, and
``framework``, which wrote it.
"""

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypedDict, TypeVar

from cogment_model_registry.client.arguments import SupportsItem, UserData, checked_user_data
from cogment_model_registry.client.blocking import ModelRegistry, retrieve_writable
from cogment_model_registry.client.progress import Wish
from cogment_model_registry.client.signatures import SigningKey, TrustedKeys
from cogment_model_registry.client.sources import Parts
from cogment_model_registry.errors import DataLossError, InvalidError, NotFoundError, quoted
from cogment_model_registry.frameworks import tensor_files
from cogment_model_registry.frameworks.tensor_files import Tensor
from cogment_model_registry.frameworks.trees import Structure
from cogment_model_registry.records.folders import FORMAT_KEY
from cogment_model_registry.records.versions import VersionInfo

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

_T = TypeVar("_T")

FRAMEWORK_KEY = "framework"
FORMAT = "safetensors"

_METADATA_KEY = "cogment_model_registry"
"""The one entry in the header of a file, with the structure: the order of several entries, and with it the hash of the
file, would vary."""

_START_BYTES = 8
"""How many bytes of something else a message shows."""


class UploadOptions(TypedDict, total=False):
    """Further arguments of `publish` and `store` of each framework, next to a `dtype`."""

    prefix: str
    user_data: UserData | None
    tags: Mapping[str, str] | None
    metrics: Mapping[str, float | SupportsItem] | None
    alias: str | None
    create: bool
    sign: "SigningKey | None"
    timeout: float | None
    progress: Wish


class LoadOptions(TypedDict, total=False):
    """Further arguments of `load` of each framework, next to a `dtype`."""

    prefix: str
    archived: bool
    verify: "bool | TrustedKeys"
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


class Contents(NamedTuple):
    """A version that is not put together: its bytes refer to the memory of the tensors, and change with them.

    Attributes:
        parts: The bytes of the version, in order.
        user_data: Its annotations.
    """

    parts: list[memoryview]
    user_data: dict[str, str]

    def joined(self) -> Encoded:
        """Return the same with a copy of its bytes."""
        return Encoded(b"".join(self.parts), self.user_data)


def contents(structure: Structure, tensors: Mapping[str, Tensor], user_data: dict[str, str]) -> Contents:
    """Return a version with tensors, and the structure of their tree."""
    metadata = {_METADATA_KEY: json.dumps({"tree": structure}, separators=(",", ":"))}
    return Contents(tensor_files.write(tensors, metadata), user_data)


def check_type(name: str, dtype: str) -> None:
    """Refuse a type of elements that the format does not have.

    Raises:
        InvalidError: It does not have it; the message names those that it has.
    """
    if dtype not in tensor_files.TYPES:
        known = ", ".join(sorted(tensor_files.TYPES))
        raise InvalidError(f"{quoted(name)} has elements of type {dtype}; a version can have {known}")


def merged_user_data(user_data: UserData | None, framework: str) -> dict[str, str]:
    """Return the annotations of a version: the caller's and the reserved ones.

    Raises:
        InvalidError: The caller has a key that is reserved.
    """
    noted = checked_user_data(user_data)
    for key in (FORMAT_KEY, FRAMEWORK_KEY):
        if key in noted:
            raise InvalidError(f"user_data has the key {quoted(key)}, which is reserved")
    return {**noted, FORMAT_KEY: FORMAT, FRAMEWORK_KEY: framework}


def read(data: "Buffer") -> tuple[Structure, dict[str, Tensor]]:
    """Return the structure of a version, and its tensors by their names; they refer to its bytes.

    Args:
        data: The bytes of the version.

    Raises:
        InvalidError: They are not safetensors, or have elements of a type that no framework here supports.
    """
    view = memoryview(data)
    view = view.cast("B") if view.nbytes else memoryview(b"")
    try:
        tensors, metadata = tensor_files.read(view)
    except tensor_files.FormatError as error:
        raise InvalidError(f"the bytes are not safetensors but {_described(view)} ({error})") from None
    return _structure(metadata.get(_METADATA_KEY), tensors), tensors


def look_up(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the tensor that a structure names.

    Raises:
        InvalidError: The version does not have it.
    """
    if name not in tensors:
        raise InvalidError(f"the structure of the tree names the tensor {quoted(name)}, which is missing")
    return tensors[name]


def _structure(text: str | None, tensors: Mapping[str, Tensor]) -> Structure:
    if text is None:
        return ["dict", [[name, name] for name in tensors]]
    try:
        structure: Structure = json.loads(text)["tree"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise InvalidError("the header has no structure of a tree where one was expected") from None
    return structure


def _described(data: memoryview) -> str:
    """Return a description of bytes that are not safetensors."""
    if not data:
        return "empty"
    start = data[:_START_BYTES].tobytes()
    kinds = {b"\x80": "a pickle", b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x93NUMPY": "a .npy file"}
    kind = next((kind for sign, kind in kinds.items() if start.startswith(sign)), "something else")
    return f"{kind}, beginning with {start.hex(' ')}"


def upload(
    contents_of: Callable[..., Contents],
    registry: ModelRegistry,
    model_id: str,
    parameters: object,
    *,
    archived: bool,
    options: Mapping[str, Any],
) -> VersionInfo:
    """Publish or store parameters as a version, from the memory where they are; see `ModelRegistry.publish`.

    Args:
        contents_of: Returns the version of parameters of the framework.
        registry: The client.
        model_id: The model.
        parameters: The parameters.
        archived: Whether to store it.
        options: Those of `contents_of` and of the upload.
    """
    passed_on = {"tags", "metrics", "alias", "create", "sign", "timeout", "progress"}
    of_upload = {name: options[name] for name in options.keys() & passed_on}
    found = contents_of(parameters, **{name: options[name] for name in options.keys() - of_upload.keys()})
    call = registry.store if archived else registry.publish
    return call(model_id, Parts(found.parts), user_data=found.user_data, **of_upload)


def fetch(
    decode: Callable[..., Any],
    registry: ModelRegistry,
    model: str | VersionInfo,
    number: int | str,
    *,
    archived: bool = False,
    verify: "bool | TrustedKeys" = False,
    timeout: float | None = None,
    progress: Wish = None,
    **options: object,
) -> Loaded[Any]:
    """Return a version and its decoded value.

    Args:
        decode: That of the framework.
        registry: The client.
        model: The id of its model; or the version itself.
        number: Its number, -1 for the latest; or an alias.
        archived: Whether only archived versions count.
        verify: As for `ModelRegistry.retrieve`.
        timeout: How many seconds each call may take.
        progress: How to report the progress of the transfer.
        options: Those of `decode`.

    Raises:
        InvalidError: The bytes are malformed or do not fit; the message names the version.
        NotFoundError: The model or the version does not exist, or the version was evicted.
        SignatureError: None of the keys of `verify` has signed it.
    """

    def looked_up(model_id: str) -> VersionInfo:
        return registry.get_version(model_id, number, archived=archived, timeout=timeout)

    info = model if isinstance(model, VersionInfo) else looked_up(model)
    while True:
        _check_format(info)
        try:
            data = retrieve_writable(registry, info, verify=verify, timeout=timeout, progress=progress)
            break
        except (NotFoundError, DataLossError):
            if isinstance(model, VersionInfo):
                raise
            # A newer version may be the latest by now, and this one evicted, or its model deleted.
            newer = looked_up(model)
            if newer == info:
                raise
            info = newer
    try:
        return Loaded(info, decode(data, **options))
    except InvalidError as error:
        raise about(info, error.message) from error


def _check_format(info: VersionInfo) -> None:
    """Refuse a version with another declared format, before its bytes are fetched."""
    found = info.user_data.get(FORMAT_KEY, FORMAT)
    if found != FORMAT:
        raise about(info, f"its format is {quoted(found)}, not {quoted(FORMAT)}")


def about(info: VersionInfo, message: str) -> InvalidError:
    """Return the error for a version that is malformed or does not fit."""
    message = f"version {info.number} of model {quoted(info.model_id)}: {message}"
    return InvalidError(message, model_id=info.model_id, version_number=info.number)
