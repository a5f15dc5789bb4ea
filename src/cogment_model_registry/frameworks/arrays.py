"""Trees of NumPy arrays as versions; arrays of JAX are converted to them for the transfer."""

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.frameworks import trees, versions

Array: TypeAlias = npt.NDArray[Any]


class PublishOptions(versions.UploadOptions, total=False):
    """Further arguments of `publish` and `store` of NumPy and JAX."""

    dtype: npt.DTypeLike | None


class LoadOptions(versions.LoadOptions, total=False):
    """Further arguments of `load` of NumPy and JAX."""

    dtype: npt.DTypeLike | None


_PYTHON_KINDS = {"bool": bool, "int": int, "float": float}


def encode(
    structure: trees.Structure,
    leaves: Mapping[str, object],
    *,
    dtype: npt.DTypeLike | None,
    framework: str,
    user_data: Mapping[str, str] | None,
) -> versions.Encoded:
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
    arrays = {name: _array(name, leaf, dtype) for name, leaf in leaves.items()}
    return versions.Encoded(safetensors.numpy.save(arrays, metadata=versions.metadata_of(structure)), noted)


def _array(name: str, leaf: object, dtype: npt.DTypeLike | None) -> Array:
    """Return a leaf in the form that the format requires."""
    known = isinstance(leaf, np.ndarray | np.generic | bool | int | float)
    if not known or isinstance(leaf, np.ma.MaskedArray):
        kind = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
        raise InvalidError(f"{quoted(name)} is of type {kind}; it must be an array, a scalar, or a tree of them")
    array = np.asarray(leaf, order="C")
    if isinstance(leaf, np.ndarray | np.generic):
        array = converted(array, dtype)
    if array.dtype.name not in versions.DTYPES.values():
        message = f"{quoted(name)} has elements of type {array.dtype.name}"
        raise InvalidError(f"{message}; the format has {', '.join(sorted(versions.DTYPES.values()))}")
    return array


def decode(data: bytes, *, dtype: npt.DTypeLike | None = None) -> Any:
    """Return the tree of a version of any framework; its arrays have memory of their own, and are writable.

    Args:
        data: The bytes of the version.
        dtype: What elements of a floating type are converted to; None for nothing.

    Raises:
        InvalidError: The bytes are not such a tree, or have elements of a type that NumPy does not know here.
    """
    structure, tensors = versions.read(data)
    arrays: dict[str, Array] = {}

    def make_leaf(kind: str, name: str) -> object:
        tensor = versions.look_up(tensors, name)
        if name not in arrays:
            arrays[name] = _array_of(tensor)
        if kind in _PYTHON_KINDS:
            return _scalar(_PYTHON_KINDS[kind], arrays[name])
        arrays[name] = converted(arrays[name], dtype)
        return arrays[name][()] if kind == "scalar" else arrays[name]

    return trees.put_together(structure, make_leaf)


def _array_of(tensor: versions.Tensor) -> Array:
    return np.frombuffer(tensor.buffer, dtype=_dtype_named(tensor.dtype)).reshape(tensor.shape)


def _scalar(kind: type, array: Array) -> object:
    if array.shape or array.dtype.kind not in "biuf":
        raise InvalidError("the structure of the tree describes an array as a scalar")
    return kind(array)


def _dtype_named(name: str) -> np.dtype[Any]:
    """Return a type of elements; those that NumPy does not have are in ml_dtypes, which comes with JAX."""
    with contextlib.suppress(TypeError):
        return np.dtype(name)
    try:
        import ml_dtypes  # noqa: PLC0415 # few need it
    except ImportError:
        message = f"the elements are of type {name}, which NumPy supports only with: pip install ml_dtypes"
        raise InvalidError(message) from None
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
    wanted = _dtype_named(dtype) if isinstance(dtype, str) and dtype in versions.DTYPES.values() else np.dtype(dtype)
    return array.astype(wanted, copy=False)
