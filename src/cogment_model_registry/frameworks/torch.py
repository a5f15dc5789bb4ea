"""Versions that are the parameters and buffers of a PyTorch module.

    from cogment_model_registry import ModelRegistry, torch

    with ModelRegistry("grpc://localhost:9002") as registry:
        torch.publish(registry, "policy", module)
        version = torch.load(registry, "policy", into=module)

The bytes are safetensors, so nothing in them is ever executed, and they do not contain the class of the module.
Versions that NumPy or JAX wrote can be read too: the keys of their tree, joined by dots, are the names of a state dict.
With the client for asyncio, use `encode` and `decode`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, overload

from cogment_model_registry.client.arguments import LATEST, UserData
from cogment_model_registry.client.blocking import ModelRegistry
from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.versions import VersionInfo

try:
    import numpy as np  # noqa: F401 # PyTorch needs it to give access to the memory of tensors
    import torch

    from cogment_model_registry.frameworks import torch_tensors, tracking, trees, versions
    from cogment_model_registry.frameworks.tensor_files import Tensor
    from cogment_model_registry.frameworks.torch_tensors import Parameters, StateDict, moved, tensor_of
    from cogment_model_registry.frameworks.tracking import Tracked, TrackOptions
    from cogment_model_registry.frameworks.versions import (
        Contents,
        Encoded,
        FitOptions,
        Loaded,
        LoadOptions,
        UploadOptions,
        fetch,
        upload,
    )
except ImportError as error:
    message = 'this needs PyTorch and NumPy: pip install "cogment-model-registry[torch]"'
    raise ImportError(message, name=error.name) from error

if TYPE_CHECKING:
    from typing import Unpack  # from Python 3.11 on

    from typing_extensions import Buffer  # in the standard library from Python 3.12 on

__all__ = ["Encoded", "Loaded", "Tracked", "decode", "encode", "load", "publish", "store", "track"]

_M = TypeVar("_M", bound=Parameters)


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
    gather: bool = False,
    user_data: UserData | None = None,
) -> Encoded:
    """Return what to upload for a module or a state dict: the bytes of a version, and its `user_data`.

    Args:
        parameters: The module or the state dict, on any device; a nested mapping is a state dict whose names have dots.
            Tensors that are the same memory in the same shape, such as tied weights, are written once and are one
            tensor again when they are read. Other views of shared memory are written one by one. Names lose the parts
            that wrappers add: torch.compile, DataParallel, DistributedDataParallel and FSDP.
        dtype: What tensors of floating-point numbers are converted to; others stay as they are.
        prefix: Which part to take: ``"actor"`` takes ``actor.0.weight``. What is written is as if the part had been the
            whole: ``0.weight``, as if ``module.actor`` had been given.
        gather: Whether to gather tensors that are spread over processes, such as those of FSDP2. All of the processes
            must make the call, and all get the whole; one of them uploads it.
        user_data: Entries of the version's user_data in addition to `format` and `framework`.

    Raises:
        InvalidError: Something is not a dense tensor with memory of its own, or no such part exists; or `user_data` has
            a reserved key.
    """
    return _contents(parameters, dtype=dtype, prefix=prefix, gather=gather, user_data=user_data).joined()


def _contents(
    parameters: Parameters,
    *,
    dtype: torch.dtype | None = None,
    prefix: str = "",
    gather: bool = False,
    user_data: UserData | None = None,
) -> Contents:
    """Return the version of a module or a state dict; see `encode`."""
    noted = versions.merged_user_data(user_data, "torch")
    part = torch_tensors.part_of(torch_tensors.state_of(parameters), prefix)
    part = torch_tensors.gathered(part) if gather else part
    for name, tensor in part.items():
        torch_tensors.check_source(name, tensor)
    structure, leaves = trees.take_apart(part, torch_tensors.no_node, torch_tensors.memory_of)
    tensors = {name: torch_tensors.stored_form(leaf, dtype) for name, leaf in leaves.items()}
    return versions.contents(structure, tensors, noted)


@overload
def decode(
    data: "Buffer",
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prefix: str = "",
) -> StateDict: ...


@overload
def decode(data: "Buffer", *, into: Parameters, prefix: str = "", strict: bool = True) -> None: ...


def decode(
    data: "Buffer",
    *,
    into: Parameters | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prefix: str = "",
    strict: bool = True,
) -> StateDict | None:
    """Return the state dict of a version, or copy it into a module.

    Args:
        data: The bytes of the version. The tensors of the result share memory that may be written to, such as that of
            a bytearray; of bytes they are copies, and with a `prefix`, too.
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
    tree = trees.put_together(structure, lambda _, name: versions.look_up(tensors, name))
    named: dict[str, Tensor] = trees.name_leaves(tree, torch_tensors.no_node)
    stored = torch_tensors.part_of(torch_tensors.bare(named), prefix)
    if into is not None:
        _copy(stored, torch_tensors.state_of(into), strict=strict)
        return None
    # One for each, so that tied weights stay tied.
    made: dict[int, torch.Tensor] = {}
    for tensor in stored.values():
        if id(tensor) not in made:
            made[id(tensor)] = moved(tensor_of(tensor, is_copied=bool(prefix)), dtype, device)
    return {name: made[id(tensor)] for name, tensor in stored.items()}


def _copy(stored: Mapping[str, Tensor], wanted: StateDict, *, strict: bool) -> None:
    for name, target in wanted.items():
        torch_tensors.check_target(name, target)
    stored = torch_tensors.matched(stored, wanted)
    # Of tied weights, one is enough: other tools write no more.
    present = {torch_tensors.memory_of(target) for name, target in wanted.items() if name in stored}
    common = trees.check_fit(
        {name: tensor.shape for name, tensor in stored.items()},
        {name: tuple(target.shape) for name, target in wanted.items()},
        strict=strict,
        optional=[name for name, target in wanted.items() if torch_tensors.memory_of(target) in present],
    )
    sources: dict[object, Tensor] = {}
    for name in common:
        dtype = torch_tensors.dtype_of(stored[name])
        if not torch.can_cast(dtype, wanted[name].dtype):
            raise InvalidError(f"{quoted(name)} has elements of type {dtype}, not {wanted[name].dtype}")
        tied = sources.setdefault(torch_tensors.memory_of(wanted[name]), stored[name])
        if not torch_tensors.is_same(tied, stored[name]):
            raise InvalidError(f"{quoted(name)} is tied to another tensor of the module, but has other values than it")
    with torch.no_grad():
        for name in common:
            wanted[name].copy_(tensor_of(stored[name], is_copied=False))


def publish(
    registry: ModelRegistry,
    model_id: str,
    parameters: Parameters,
    *,
    archived: bool = False,
    **options: "Unpack[_PublishOptions]",
) -> VersionInfo:
    """Publish the parameters and buffers of a module as a version of a model.

    They are read from the memory where they are, and must not change during the call; to upload a copy, use `encode`.

    Args:
        registry: The client.
        model_id: The model, which is created if it does not exist.
        parameters: As for `encode`.
        archived: Whether to archive the version, as `store` does.
        options: What `encode` takes: `dtype`, `prefix` and `user_data`; and what `ModelRegistry.publish` takes:
            `tags`, `metrics`, `alias`, `create`, `sign`, `timeout` and `progress`.

    Raises:
        InvalidError: As for `encode`; and the errors of `ModelRegistry.publish`.
    """
    return upload(_contents, registry, model_id, parameters, archived=archived, options=options)


def store(
    registry: ModelRegistry, model_id: str, parameters: Parameters, **options: "Unpack[_PublishOptions]"
) -> VersionInfo:
    """Store the parameters and buffers of a module as an archived version of a model; see `publish`."""
    return publish(registry, model_id, parameters, archived=True, **options)


def track(registry: ModelRegistry, model_id: str, into: _M, **options: "Unpack[TrackOptions]") -> Tracked[_M]:
    """Return a context manager that follows the latest version of a model, and copies it into a module on demand.

    A thread fetches each new version; `Tracked.update` copies it, in your thread, between two steps.

    Args:
        registry: The client.
        model_id: The model, which need not exist yet.
        into: A module or a state dict, as for `decode`: its tensors stay, and none is changed unless all fit.
        options: What `ModelRegistry.track` takes: `archived`, `alias`, `verify`, `consumer`, `labels` and
            `ttl_seconds`; a consumer is active once a version was loaded. And what `decode` takes: `prefix` and
            `strict`.

    Raises:
        InvalidError: Nothing can be copied into one of the tensors.
    """
    for name, target in torch_tensors.state_of(into).items():
        torch_tensors.check_target(name, target)
    of_track, of_decode = tracking.split(options)

    def load_into(data: memoryview) -> _M:
        decode(data, into=into, **of_decode)
        return into

    return Tracked(registry, model_id, into, stage=memoryview, load=load_into, options=of_track)


@overload
def load(
    registry: ModelRegistry,
    model: str | VersionInfo,
    version: int | str = LATEST,
    *,
    into: Parameters,
    **options: "Unpack[FitOptions]",
) -> VersionInfo: ...


@overload
def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int | str = LATEST, **options: "Unpack[_LoadOptions]"
) -> Loaded[StateDict]: ...


def load(
    registry: ModelRegistry, model: str | VersionInfo, version: int | str = LATEST, *, into: Any = None, **options: Any
) -> Loaded[Any] | VersionInfo:
    """Retrieve a version: return its state dict, or copy it into a module.

    Args:
        registry: The client.
        model: The id of the model; or the version itself.
        version: The number of the version, -1 for the latest, -2 for the one before; or an alias.
        into: As for `decode`.
        options: What `decode` takes: `dtype`, `device` and `prefix`, or `strict` with `into`; `archived`, whether only
            archived versions count; `verify`, the keys of which one must have signed it; `timeout`, the seconds that
            each call may take; and `progress`, how to report the transfer.

    Returns:
        The version and the state dict; with `into`, the version alone.

    Raises:
        InvalidError: The version is not a set of tensors, or does not fit.
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    loaded = fetch(decode, registry, model, version, into=into, **options)
    return loaded if into is None else loaded.version
