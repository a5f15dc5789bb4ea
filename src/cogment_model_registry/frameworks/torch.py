"""Versions that are the parameters and buffers of a PyTorch module.

    from cogment_model_registry import ModelRegistry, torch

    with ModelRegistry("grpc://localhost:9000") as registry:
        torch.publish(registry, "policy", module)
        version = torch.load(registry, "policy", into=module)

The bytes are safetensors, so nothing in them is ever executed, and they do not contain the class of the module.
Versions that NumPy or JAX wrote can be read too: the keys of their tree, joined by dots, are the names of a state dict.
With the client for asyncio, use `encode` and `decode`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, overload

from cogment_model_registry.client.arguments import LATEST
from cogment_model_registry.client.blocking import ModelRegistry
from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.versions import VersionInfo

try:
    import safetensors.torch
    import torch

    from cogment_model_registry.frameworks import trees, versions
    from cogment_model_registry.frameworks.versions import (
        Encoded,
        FitOptions,
        Loaded,
        LoadOptions,
        UploadOptions,
        fetch,
        upload,
    )
except ImportError as error:
    message = 'this needs PyTorch and safetensors: pip install "cogment-model-registry[torch]"'
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from typing import Unpack  # from Python 3.11 on

__all__ = ["Encoded", "Loaded", "decode", "encode", "load", "publish", "store"]

StateDict: TypeAlias = dict[str, torch.Tensor]

Parameters: TypeAlias = torch.nn.Module | Mapping[str, torch.Tensor]
"""A module, of which the state dict is meant; or a state dict, or any mapping from names to tensors."""

_EXTRA_STATE = "_extra_state"
"""The last part of the name that a state dict has for what `Module.get_extra_state` returns."""


class _PublishOptions(UploadOptions, total=False):
    dtype: torch.dtype | None


class _LoadOptions(LoadOptions, total=False):
    dtype: torch.dtype | None
    device: torch.device | str | None


def encode(
    parameters: Parameters,
    *,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    user_data: Mapping[str, str] | None = None,
) -> Encoded:
    """Return what to upload for a module or a state dict: the bytes of a version, and its `user_data`.

    Args:
        parameters: The module or the state dict, on any device. Tensors that are the same memory in the same shape,
            such as tied weights, are written once and are one tensor again when they are read. Other views of shared
            memory are written one by one.
        dtype: What tensors of floating-point numbers are converted to; others stay as they are.
        prefix: Which part to take: ``"actor"`` takes ``actor.0.weight``. What is written is as if the part had been the
            whole: ``0.weight``, as if ``module.actor`` had been given.
        user_data: Entries of the version's user_data in addition to `format` and `framework`.

    Raises:
        InvalidError: Something is not a dense tensor, or no such part exists; or `user_data` has a reserved key.
    """
    noted = versions.merged_user_data(user_data, "torch")
    part = trees.select_part(_state_dict(parameters), prefix, _no_node)
    for name, tensor in part.items():
        _check_tensor(name, tensor)
    structure, leaves = trees.take_apart(part, _no_node, _memory_of)
    seen: set[int] = set()
    tensors = {name: _on_its_own(leaf, dtype, seen) for name, leaf in leaves.items()}
    return Encoded(safetensors.torch.save(tensors, metadata=versions.metadata_of(structure)), noted)


def _state_dict(parameters: Parameters) -> Mapping[str, torch.Tensor]:
    if isinstance(parameters, torch.nn.Module):
        state: StateDict = parameters.state_dict()
        return state
    if isinstance(parameters, Mapping):
        return parameters
    raise InvalidError(f"a module or a state dict was expected, not a {type(parameters).__name__}")


def _no_node(_: object) -> None:
    """Return None for any object: there are no further kinds of nodes."""


def _check_tensor(name: object, tensor: object) -> None:
    """Refuse anything but a tensor that the format supports."""
    what = quoted(str(name))
    if str(name).rpartition(".")[2] == _EXTRA_STATE:
        raise InvalidError(
            f"{what} is extra state of a module, which is not a parameter; leave it out of the state dict"
        )
    if not isinstance(tensor, torch.Tensor):
        raise InvalidError(f"{what} is of type {type(tensor).__name__}; it must be a tensor")
    if torch.nn.parameter.is_lazy(tensor):
        raise InvalidError(f"{what} is not initialised yet")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise InvalidError(f"{what} must be a dense tensor with values, neither sparse, quantised nor of device meta")
    if _dtype_name(tensor.dtype) not in versions.DTYPES.values():
        raise InvalidError(f"{what} has elements of type {tensor.dtype}, which safetensors does not support")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _memory_of(leaf: Any) -> object:
    """Return a key that is the same for two tensors if they are the same elements of the same memory."""
    if not leaf.numel():
        return id(leaf)
    return (leaf.device, leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride())


def _on_its_own(leaf: Any, dtype: torch.dtype | None, seen: set[int]) -> torch.Tensor:
    """Return a tensor that shares no memory with those before it, as the format demands."""
    tensor: torch.Tensor = _moved(leaf.detach(), dtype, "cpu").resolve_conj().resolve_neg().contiguous()
    memory = tensor.untyped_storage().data_ptr()
    if memory in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    seen.add(memory)
    return tensor


@overload
def decode(
    data: bytes,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prefix: str = "",
) -> StateDict: ...


@overload
def decode(data: bytes, *, into: Parameters, prefix: str = "", strict: bool = True) -> None: ...


def decode(
    data: bytes,
    *,
    into: Parameters | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prefix: str = "",
    strict: bool = True,
) -> StateDict | None:
    """Return the state dict of a version, or copy it into a module.

    Args:
        data: The bytes of the version.
        into: A module or state dict whose tensors get the values, in place; they keep their types, devices and
            `requires_grad`, so optimisers go on with them. None of them is changed unless all fit. Not between a
            forward pass and its backward pass, which would then be wrong and fail.
        dtype: What tensors of floating-point numbers are converted to, without `into`.
        device: Where the tensors go, without `into`; the CPU by default.
        prefix: Which part to take, as for `encode`; the names are then those without the prefix.
        strict: Whether `into` must have the same names, or may have more or fewer.

    Returns:
        The state dict; None with `into`.

    Raises:
        InvalidError: The bytes are no tensors, or do not fit.
    """
    structure, tensors = versions.read(data)
    made: dict[str, torch.Tensor] = {}

    def make_leaf(_: str, name: str) -> torch.Tensor:
        if name not in made:
            made[name] = _tensor_of(versions.look_up(tensors, name))
        return made[name]

    tree = trees.select_part(trees.put_together(structure, make_leaf), prefix, _no_node)
    state: StateDict = trees.name_leaves(tree, _no_node)
    if into is not None:
        _copy(state, _state_dict(into), strict=strict)
        return None
    # One for each, so that tied weights stay tied.
    moved = {id(tensor): _moved(tensor, dtype, device) for tensor in state.values()}
    return {name: moved[id(tensor)] for name, tensor in state.items()}


def _tensor_of(stored: versions.Tensor) -> torch.Tensor:
    dtype = getattr(torch, stored.dtype)
    if not stored.buffer:  # which frombuffer does not take
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(stored.buffer, dtype=dtype).reshape(stored.shape)


def _moved(tensor: torch.Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> torch.Tensor:
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)


def _copy(stored: StateDict, wanted: Mapping[str, torch.Tensor], *, strict: bool) -> None:
    for name, target in wanted.items():
        _check_tensor(name, target)
    # Of tied weights, one is enough: other tools write no more.
    present = {_memory_of(target) for name, target in wanted.items() if name in stored}
    common = trees.check_fit(
        {name: tuple(tensor.shape) for name, tensor in stored.items()},
        {name: tuple(target.shape) for name, target in wanted.items()},
        strict=strict,
        optional=[name for name, target in wanted.items() if _memory_of(target) in present],
    )
    sources: dict[object, torch.Tensor] = {}
    for name in common:
        if not torch.can_cast(stored[name].dtype, wanted[name].dtype):
            raise InvalidError(f"{quoted(name)} has elements of type {stored[name].dtype}, not {wanted[name].dtype}")
        tied = sources.setdefault(_memory_of(wanted[name]), stored[name])
        if tied is not stored[name] and not torch.equal(tied, stored[name]):
            raise InvalidError(f"{quoted(name)} is tied to another tensor of the module, but has other values than it")
    with torch.no_grad():
        for name in common:
            wanted[name].copy_(stored[name])


def publish(
    registry: ModelRegistry,
    model_id: str,
    parameters: Parameters,
    *,
    archived: bool = False,
    **options: "Unpack[_PublishOptions]",
) -> VersionInfo:
    """Publish the parameters and buffers of a module as a version of a model.

    Args:
        registry: The client.
        model_id: The model, which is created if it does not exist.
        parameters: As for `encode`.
        archived: Whether to archive the version, as `store` does.
        options: What `encode` takes: `dtype`, `prefix` and `user_data`; and what `ModelRegistry.publish` takes:
            `create`, `timeout` and `progress`.

    Raises:
        InvalidError: As for `encode`; and the errors of `ModelRegistry.publish`.
    """
    return upload(encode, registry, model_id, parameters, archived=archived, options=options)


def store(
    registry: ModelRegistry, model_id: str, parameters: Parameters, **options: "Unpack[_PublishOptions]"
) -> VersionInfo:
    """Store the parameters and buffers of a module as an archived version of a model; see `publish`."""
    return publish(registry, model_id, parameters, archived=True, **options)


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int = LATEST,
    *,
    into: Parameters,
    **options: "Unpack[FitOptions]",
) -> VersionInfo: ...


@overload
def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int = LATEST, **options: "Unpack[_LoadOptions]"
) -> Loaded[StateDict]: ...


def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int = LATEST, *, into: Any = None, **options: Any
) -> Loaded[Any] | VersionInfo:
    """Retrieve a version: return its state dict, or copy it into a module.

    Args:
        registry: The client.
        model: The id of the model; or the version itself.
        version: The number of the version, -1 for the latest, -2 for the one before.
        into: As for `decode`.
        options: What `decode` takes: `dtype`, `device` and `prefix`, or `strict` with `into`; `timeout`, the seconds
            that each call may take; and `progress`, how to report the transfer.

    Returns:
        The version and the state dict; with `into`, the version alone.

    Raises:
        InvalidError: The version is not a set of tensors, or does not fit.
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    loaded = fetch(decode, registry, model, version, into=into, **options)
    return loaded if into is None else loaded.version
