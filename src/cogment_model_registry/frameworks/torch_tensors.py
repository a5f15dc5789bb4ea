"""The tensors of modules and state dicts of PyTorch: how they are called, and which of them can be written and read.

Names lose what wrappers add to them, so a trainer may wrap a module, or parts of it, and an actor need not. Tensors
that only look like tensors, such as those that are spread over processes or stand for a computation, are refused: they
have no memory of their own, so neither can their elements be written nor a version be copied into them.
"""

from collections.abc import Collection, Mapping
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

import torch
from torch.nn.parallel import DataParallel, DistributedDataParallel

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.frameworks import tensor_files, trees, versions

_T = TypeVar("_T")

StateDict: TypeAlias = dict[str, torch.Tensor]

Parameters: TypeAlias = torch.nn.Module | Mapping[str, Any]
"""A module, of which the state dict is meant; or a state dict, or a mapping from names to tensors or mappings."""

_EXTRA_STATE = "_extra_state"
"""The last part of the name that a state dict has for what `Module.get_extra_state` returns."""

_ADDED = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""The parts of names that torch.compile, FSDP and checkpoint_wrapper add, and that nobody else uses."""

_BLOCK_BYTES = 1024 * 1024

_MODULE = "module"
"""The part that DataParallel and DistributedDataParallel add; somebody's own module may have it, too."""


def state_of(parameters: Parameters) -> StateDict:
    """Return the tensors of a module or a state dict, under their names without what wrappers added.

    Args:
        parameters: The module or the state dict; a nested one has names with dots.

    Raises:
        InvalidError: It is neither, or two tensors have the same name.
    """
    held: set[str] = set()
    if isinstance(parameters, Mapping):
        state = trees.name_leaves(parameters, no_node)
    elif isinstance(parameters, torch.nn.Module):
        # The parameters themselves, rather than a new object for each name: so that tied ones are one object.
        state = parameters.state_dict(keep_vars=True)
        parts = parameters.named_modules(remove_duplicate=False)
        wrappers = [name for name, part in parts if isinstance(part, DataParallel | DistributedDataParallel)]
        held = {f"{name}.{_MODULE}" if name else _MODULE for name in wrappers}
    else:
        raise InvalidError(f"a module or a state dict was expected, not a {type(parameters).__name__}")
    return bare(state, held)


def gathered(state: StateDict) -> StateDict:
    """Return the same with whole tensors in place of those that are spread over processes, all of which must call this.

    Which of them are one is known by the objects alone, since a process may have no element of a tensor.
    """
    spread = {id(tensor): tensor for tensor in state.values() if _is_spread(tensor)}
    whole = {key: tensor.full_tensor() for key, tensor in spread.items()}
    return {name: whole.get(id(tensor), tensor) for name, tensor in state.items()}


def bare(named: Mapping[str, _T], held: Collection[str] = ()) -> dict[str, _T]:
    """Return the same under names without what wrappers added, unless two would then have the same one.

    Args:
        named: What has the names.
        held: The names of modules that a wrapper calls `module`.
    """
    return _renamed(named, {name: _without(name, _ADDED, held) for name in named})


def no_node(_: object) -> None:
    """Say of any object that it is not a further kind of node."""


def part_of(named: Mapping[str, _T], prefix: str) -> dict[str, _T]:
    """Return what is under a prefix, without it; see `trees.select_part`.

    Raises:
        InvalidError: There is nothing.
    """
    if not prefix:
        return dict(named)
    head = f"{_without(prefix, _ADDED).removesuffix('.')}."
    shorter = _renamed(named, {name: _without(name, {*_ADDED, _MODULE}) for name in named})
    for names in (named, shorter):
        part = {name.removeprefix(head): value for name, value in names.items() if name.startswith(head)}
        if part:
            return part
    raise InvalidError(f"no name begins with {quoted(prefix)}; the names are {trees.listed(named)}")


def matched(stored: Mapping[str, _T], wanted: Collection[str]) -> Mapping[str, _T]:
    """Return what is stored under the names that are wanted, where wrappers alone make the difference."""
    added = {*_ADDED, _MODULE}
    targets = {_without(name, added): name for name in wanted}
    if len(targets) < len(wanted):
        return stored
    return _renamed(stored, {name: targets.get(_without(name, added), name) for name in stored})


def _without(name: str, added: Collection[str], held: Collection[str] = ()) -> str:
    """Return a name without some of its parts: those that are in `added`, and those that end a path in `held`."""
    parts = name.split(".")
    paths = accumulate(parts, lambda path, part: f"{path}.{part}")
    return ".".join(part for part, path in zip(parts, paths, strict=True) if part not in added and path not in held)


def _renamed(named: Mapping[str, _T], names: Mapping[str, str]) -> dict[str, _T]:
    """Return the same under other names, unless two would then have the same one."""
    if len(set(names.values())) < len(named):
        return dict(named)
    return {names[name]: value for name, value in named.items()}


def check_source(name: str, tensor: object) -> None:
    """Refuse what cannot be written.

    Raises:
        InvalidError: It is not a tensor with memory of its own, or has elements of a type that the format lacks.
    """
    _check(name, tensor, "call encode(..., gather=True) in all of them")


def check_target(name: str, tensor: object) -> None:
    """Refuse what cannot be copied into, before anything else is.

    Raises:
        InvalidError: It is not a tensor with memory of its own, or its elements cannot be set one by one.
    """
    help_if_spread = "load without `into`, and give the state dict to torch.distributed.checkpoint.state_dict"
    checked = _check(name, tensor, f"{help_if_spread}.set_model_state_dict in all of them")
    if any(stride == 0 and size > 1 for stride, size in zip(checked.stride(), checked.shape, strict=True)):
        raise InvalidError(f"{quoted(name)} is expanded: several of its elements are one; clone() makes them several")
    if checked.is_inference() and not torch.is_inference_mode_enabled():
        raise InvalidError(f"{quoted(name)} was made in inference mode, and can change in torch.inference_mode alone")


def _check(name: str, tensor: object, help_if_spread: str) -> torch.Tensor:
    what = quoted(name)
    if name.rpartition(".")[2] == _EXTRA_STATE:
        raise InvalidError(
            f"{what} is extra state of a module, which is not a parameter; leave it out of the state dict"
        )
    if not isinstance(tensor, torch.Tensor):
        raise InvalidError(f"{what} is of type {_class_of(tensor)}; it must be a tensor")
    fault = f"is spread over processes; {help_if_spread}" if _is_spread(tensor) else _fault(tensor)
    if fault:
        of_class = "" if type(tensor) in _PLAIN else f", of type {_class_of(tensor)},"
        raise InvalidError(f"{what}{of_class} {fault}")
    versions.check_type(name, dtype_name(tensor.dtype))
    return tensor


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def _fault(tensor: torch.Tensor) -> str | None:  # noqa: PLR0911 # one for each kind
    """Return why a tensor has no memory of its own, and what helps; None if it has."""
    if torch.nn.parameter.is_lazy(tensor):
        return "is not initialised yet; call the module once"
    # A class that redefines all operations has its elements elsewhere: in other tensors, or nowhere.
    if type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__:
        has_way = type(tensor).dequantize is not torch.Tensor.dequantize
        return f"has no memory of its own; {'dequantize() converts it' if has_way else 'convert it to a plain tensor'}"
    if tensor.is_nested:
        return "is a nested tensor; unbind() returns its parts"
    if tensor.is_quantized:
        return "is quantised; dequantize() converts it"
    if tensor.layout != torch.strided:
        return "is sparse; to_dense() converts it"
    if tensor.is_meta:
        return "is on the device meta, and has no values; Module.to_empty gives it memory"
    if not _has_memory(tensor):
        way = "" if tensor.device.type == "cpu" else f"; cpu() copies what is on the device {tensor.device}"
        return f"has no memory now: it was freed, or torch.func passed it to a function{way}"
    return None


def _is_spread(tensor: object) -> bool:
    """Return whether it is a DTensor, or something else of which each process has a part."""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "full_tensor")


def _has_memory(tensor: torch.Tensor) -> bool:
    try:
        return not tensor.numel() or tensor.data_ptr() != 0
    except RuntimeError:  # as the tensors that torch.func passes to a function
        return False


def _class_of(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type of elements that all frameworks have."""
    return str(dtype).removeprefix("torch.")


def memory_of(tensor: torch.Tensor) -> object:
    """Return what two tensors have in common that are one: all that makes them see the same elements."""
    if not tensor.numel():
        return id(tensor)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def dtype_of(stored: tensor_files.Tensor) -> torch.dtype:
    """Return the type of stored elements.

    Raises:
        InvalidError: This PyTorch does not have it.
    """
    dtype = getattr(torch, stored.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidError(f"the elements are of type {stored.dtype}, which PyTorch {torch.__version__} does not have")
    return dtype


def is_same(one: tensor_files.Tensor, other: tensor_files.Tensor) -> bool:
    """Return whether two stored tensors have the same elements."""
    if one is other:
        return True
    blocks = range(0, max(len(one.buffer), len(other.buffer)), _BLOCK_BYTES)
    return one.dtype == other.dtype and all(
        one.buffer[start : start + _BLOCK_BYTES].tobytes() == other.buffer[start : start + _BLOCK_BYTES].tobytes()
        for start in blocks
    )


def stored_form(tensor: torch.Tensor, dtype: torch.dtype | None) -> tensor_files.Tensor:
    """Return a tensor in the form of the format: its own memory where that is possible."""
    plain = moved(tensor.detach().as_subclass(torch.Tensor), dtype, "cpu")
    plain = plain.resolve_conj().resolve_neg().contiguous()
    buffer = memoryview(plain.reshape(-1).view(torch.uint8).numpy())
    return tensor_files.Tensor(dtype_name(plain.dtype), tuple(plain.shape), buffer)


def tensor_of(stored: tensor_files.Tensor, *, is_copied: bool) -> torch.Tensor:
    """Return a tensor with stored elements; it refers to their memory if it can, unless it is to be a copy.

    Raises:
        InvalidError: This PyTorch does not have their type.
    """
    dtype = dtype_of(stored)
    if not stored.buffer:  # which frombuffer does not take
        return torch.empty(stored.shape, dtype=dtype, device="cpu")
    buffer = bytearray(stored.buffer) if is_copied or stored.buffer.readonly else stored.buffer
    tensor = torch.frombuffer(buffer, dtype=dtype).reshape(stored.shape)
    return tensor.clone() if tensor.data_ptr() % dtype.itemsize else tensor


def moved(tensor: torch.Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> torch.Tensor:
    """Return a tensor on a device, with elements of another type if they are floating-point numbers."""
    return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
