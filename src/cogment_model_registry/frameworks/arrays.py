"""Trees of NumPy arrays as versions; arrays of JAX are converted to them for the transfer.

Elements stay where they are as far as possible: a version that is written refers to the arrays, and arrays that are
read refer to the bytes of the version.
"""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cogment_model_registry.client.arguments import UserData
from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.frameworks import tensor_files, trees, versions

if TYPE_CHECKING:
    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

Array: TypeAlias = npt.NDArray[Any]


class PublishOptions(versions.UploadOptions, total=False):
    """Further arguments of `publish` and `store` of NumPy and JAX."""

    dtype: npt.DTypeLike | None


class LoadOptions(versions.LoadOptions, total=False):
    """Further arguments of `load` of NumPy and JAX."""

    dtype: npt.DTypeLike | None


_PYTHON_KINDS = {"bool": bool, "int": int, "float": float}


def contents(
    structure: trees.Structure,
    leaves: Mapping[str, object],
    *,
    dtype: npt.DTypeLike | None,
    framework: str,
    user_data: UserData | None,
) -> versions.Contents:
    """Return a version with arrays and scalars.

    Args:
        structure: The tree that they are of.
        leaves: The leaves, by their names.
        dtype: What elements of a floating type are converted to, those of scalars of Python excepted; None for nothing.
        framework: The framework that writes it.
        user_data: The annotations of the caller.

    Raises:
        InvalidError: A leaf is something else, or has elements of a type that the format does not support; or
            `user_data` has a reserved key.
    """
    noted = versions.merged_user_data(user_data, framework)
    tensors = {name: _tensor(name, leaf, dtype) for name, leaf in leaves.items()}
    return versions.contents(structure, tensors, noted)


def _tensor(name: str, leaf: object, dtype: npt.DTypeLike | None) -> tensor_files.Tensor:
    """Return a leaf in the form of the format."""
    known = isinstance(leaf, np.ndarray | np.generic | bool | int | float)
    if not known or isinstance(leaf, np.ma.MaskedArray):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        raise InvalidError(f"{quoted(name)} is of type {kind}; it must be an array, a scalar, or a tree of them")
    array = np.asarray(leaf, order="C")
    if isinstance(leaf, np.ndarray | np.generic):
        is_bfloat16 = isinstance(dtype, str) and dtype == _BFLOAT16
        if is_bfloat16 and is_floating(array.dtype) and not _has_ml_dtypes():
            return tensor_files.Tensor(_BFLOAT16, array.shape, _rounded(array).reshape(-1).view(np.uint8).data)
        array = converted(array, dtype)
    versions.check_type(name, array.dtype.name)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # As bytes, since a buffer cannot have elements of the types that NumPy does not have itself.
    return tensor_files.Tensor(array.dtype.name, array.shape, array.reshape(-1).view(np.uint8).data)


def decode(data: "Buffer", *, dtype: npt.DTypeLike | None = None, prefix: str = "", is_copied: bool = True) -> Any:
    """Return the tree of a version of any framework.

    Args:
        data: The bytes of the version.
        dtype: What elements of a floating type are converted to; None for nothing.
        prefix: Which part to take; see `trees.select_part`.
        is_copied: Whether arrays are copied that refer to bytes which cannot be written to, or of which a part is
            taken, so that the rest need not be kept.

    Raises:
        InvalidError: The bytes are not such a tree, or have elements of a type that NumPy does not know here.
    """
    structure, tensors = versions.read(data)
    arrays: dict[str, Array] = {}

    def make_leaf(kind: str, name: str) -> object:
        tensor = versions.look_up(tensors, name)
        if name not in arrays:
            arrays[name] = _array_of(name, tensor)
        if kind in _PYTHON_KINDS:
            return _scalar(_PYTHON_KINDS[kind], arrays[name])
        arrays[name] = converted(arrays[name], dtype)
        return arrays[name][()] if kind == "scalar" else arrays[name]

    tree = trees.select_part(trees.put_together(structure, make_leaf), prefix, trees.expand_named_tuple)
    if not is_copied:
        return tree
    return trees.map_leaves(tree, lambda leaf: _of_its_own(leaf, is_part=bool(prefix)))


def _array_of(name: str, tensor: tensor_files.Tensor) -> Array:
    if tensor.dtype == _BFLOAT16 and not _has_ml_dtypes():
        bits = _array_of(name, tensor_files.Tensor("uint16", tensor.shape, tensor.buffer))
        return (bits.astype(np.uint32) << 16).view(np.float32)
    dtype = _dtype_named(tensor.dtype)
    try:
        return np.frombuffer(tensor.buffer, dtype=dtype).reshape(tensor.shape)
    except ValueError:  # NumPy 1 has 32 dimensions at most, NumPy 2 has 64
        message = f"{quoted(name)} has {len(tensor.shape)} dimensions, which are too many for NumPy"
        raise InvalidError(message) from None


def _of_its_own(leaf: object, *, is_part: bool) -> object:
    """Return a leaf that may be written to and keeps no more memory than it needs; aligned, as other libraries want."""
    if not isinstance(leaf, np.ndarray) or leaf.flags.owndata:
        return leaf
    is_usable = leaf.flags.writeable and leaf.flags.aligned and not is_part
    return leaf if is_usable else leaf.copy()


def _scalar(kind: type, array: Array) -> object:
    if array.shape or array.dtype.kind not in "biuf":
        raise InvalidError("the structure of the tree describes an array as a scalar")
    return kind(array)


_BFLOAT16 = "bfloat16"
"""The type whose elements are the upper halves of those of float32, so NumPy can convert it by itself."""


def _has_ml_dtypes() -> bool:
    try:
        import ml_dtypes  # noqa: F401, PLC0415 # few need it
    except ImportError:
        return False
    return True


def _rounded(array: Array) -> Array:
    """Return the bits of bfloat16 for floating-point numbers, rounded to the nearest, and to even between two."""
    single = np.asarray(array, np.float32, order="C")
    bits = single.view(np.uint32)
    upper = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # A NaN must not become an infinity, nor wrap around.
    return np.where(np.isnan(single), (bits >> 16) | 0x40, upper).astype(np.uint16)


def _dtype_named(name: str) -> np.dtype[Any]:
    """Return a type of elements; those that NumPy does not have are in ml_dtypes, which comes with JAX."""
    with contextlib.suppress(TypeError):
        return np.dtype(name)
    try:
        import ml_dtypes  # noqa: PLC0415 # few need it
    except ImportError:
        message = f"the elements are of type {name}, which NumPy supports only with: pip install ml_dtypes"
        raise InvalidError(message) from None
    if not hasattr(ml_dtypes, name):
        raise InvalidError(f"the elements are of type {name}, which this ml_dtypes lacks: pip install -U ml_dtypes")
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether elements are floating-point numbers, also those of ml_dtypes."""
    return dtype.name.startswith(("float", "bfloat"))


def may_become(stored: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Return whether elements of one type may be copied to another: of the same kind, or of a kind that contains it.

    This is NumPy's rule "same_kind", extended to the types of ml_dtypes.
    """

    def rank(dtype: np.dtype[Any]) -> int:
        return "buifc".find("f" if is_floating(dtype) else dtype.kind)

    return 0 <= rank(stored) <= rank(wanted)


def converted(array: Array, dtype: npt.DTypeLike | None) -> Array:
    """Return an array with elements of another type, if they are floating-point numbers."""
    if dtype is None or not is_floating(array.dtype):
        return array
    wanted = _dtype_named(dtype) if isinstance(dtype, str) and dtype in tensor_files.TYPES else np.dtype(dtype)
    return array.astype(wanted, copy=False)
