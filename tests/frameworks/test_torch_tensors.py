"""Which tensors of PyTorch are written and read, and under which names; `make test-frameworks` runs these."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import numpy
from cogment_model_registry.errors import InvalidError
from tests.frameworks.conftest import on_slow_machines, run_two

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: make test-frameworks")

from cogment_model_registry import torch as registry_torch  # noqa: E402 # it needs PyTorch
from tests.frameworks.test_torch import same  # noqa: E402 # as above

encode, decode = registry_torch.encode, registry_torch.decode
nn = torch.nn


def fake() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: PLC0415 # it takes its time

    with FakeTensorMode():
        return torch.ones(2)


def wrapper() -> Any:
    from torch.testing._internal.two_tensor import TwoTensor  # noqa: PLC0415 # as above

    return TwoTensor(torch.ones(2), torch.ones(2))


def torchao() -> Any:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-frameworks")
    layer = nn.Sequential(nn.Linear(8, 2))
    quantization.quantize_(layer, quantization.Int8WeightOnlyConfig())
    return layer[0].weight


def freed() -> Any:
    tensor = torch.ones(2)
    tensor.untyped_storage().resize_(0)
    return tensor


def made(make: Callable[[], Any]) -> Any:
    """Return a tensor, without the warnings that its class is experimental or deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


WITHOUT_MEMORY: list[tuple[Callable[[], Any], str]] = [
    (fake, "FakeTensor, has no memory of its own; convert it"),
    (wrapper, "TwoTensor, has no memory of its own; convert it"),
    (torchao, r"torchao\..*, has no memory of its own; dequantize\(\) converts it"),
    (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), r"nested tensor; unbind\(\)"),
    (lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "NestedTensor, has no memory"),
    (lambda: torch.ones(2).to_sparse(), r"is sparse; to_dense\(\) converts it"),
    (lambda: torch.ones(2, 2).to_sparse_csr(), "is sparse"),
    (lambda: torch.ones(2).to_mkldnn(), "is sparse"),
    (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), r"is quantised; dequantize\(\)"),
    (lambda: torch.ones(2, device="meta"), "is on the device meta"),
    (freed, "has no memory now"),
]


@on_slow_machines
@pytest.mark.parametrize(("make", "message"), WITHOUT_MEMORY)
def test_a_tensor_without_memory_of_its_own_is_named_and_nothing_changes(make: Any, message: str) -> None:
    tensor = made(make)
    with pytest.raises(InvalidError, match=f'^"b".*{message}'):
        encode({"a": torch.ones(2), "b": tensor})
    before = torch.zeros(2)
    stored = encode({"a": torch.ones(2), "b": torch.ones(tuple(tensor.shape) if not tensor.is_nested else 2)})
    with pytest.raises(InvalidError, match=f'^"b".*{message}'):
        decode(stored.data, into={"a": before, "b": tensor})
    assert not before.any()


@pytest.mark.parametrize("transformed", [torch.vmap, lambda function: torch.func.grad(lambda x: function(x).sum())])
def test_a_tensor_that_stands_for_others_during_a_transformation_is_refused(transformed: Any) -> None:
    def publish(tensor: Any) -> Any:
        with pytest.raises(InvalidError, match=r'"a" has no memory now.*torch\.func'):
            encode({"a": tensor})
        return tensor

    transformed(publish)(torch.ones(2))


def in_inference_mode() -> Any:
    with torch.inference_mode():
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(1).expand(2), "is expanded"),
        (in_inference_mode, r"can change in torch\.inference_mode alone"),
    ],
)
def test_a_tensor_that_cannot_be_copied_into_is_named_and_nothing_changes(make: Any, message: str) -> None:
    before, target = torch.zeros(2), make()
    data = encode({"a": torch.ones(2), "b": torch.ones(2)}).data
    with pytest.raises(InvalidError, match=f'^"b".*{message}'):
        decode(data, into={"a": before, "b": target})
    assert not before.any()
    assert not decode(encode({"b": target}).data)["b"].any()


def test_a_tensor_of_inference_mode_is_copied_into_in_that_mode() -> None:
    target = in_inference_mode()
    with torch.inference_mode():
        decode(encode({"a": torch.ones(2)}).data, into={"a": target})
    assert target.all()


@pytest.mark.parametrize(
    "name", ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]
)
def test_each_type_of_eight_bits_is_written_and_read(name: str) -> None:
    if not hasattr(torch, name):
        pytest.skip(f"this PyTorch has no {name}")
    tensor = torch.tensor([1.0, 2.0]).to(getattr(torch, name))
    data = encode({"a": tensor}).data
    assert decode(data)["a"].dtype == tensor.dtype
    target = torch.zeros(2)
    decode(data, into={"a": target})
    assert target.tolist() == [1.0, 2.0]


def test_bytes_that_may_be_written_to_are_shared_and_others_are_copied() -> None:
    encoded = bytearray(encode({"a": torch.zeros(2), "b": torch.zeros(2)}).data)
    shared, copied, part = decode(encoded), decode(bytes(encoded)), decode(encoded, prefix="")
    encoded[-1] = encoded[-9] = 1
    assert shared["b"][1] == part["b"][1] != 0
    assert copied["b"][1] == 0
    copied["a"] += 1


def test_a_selected_part_keeps_only_its_own_memory() -> None:
    encoded = bytearray(encode({"actor.a": torch.zeros(2), "critic.a": torch.zeros(2)}).data)
    part = decode(encoded, prefix="critic")
    encoded.clear()  # which fails while something refers to it
    assert not part["a"].any()


# Names that wrappers add.


class Agent(nn.Module):  # type: ignore[misc, name-defined] # PyTorch is not known to mypy
    """An agent whose parts may be wrapped; one part is called like what wrappers add."""

    def __init__(self, seed: int, wrap: Callable[[Any], Any] = lambda module: module) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.actor = wrap(nn.Sequential(nn.Linear(2, 2)))
        self.module = nn.Linear(2, 1)


def compiled(module: Any) -> Any:
    return torch.compile(module, backend="eager")


WRAPPERS = [compiled, nn.DataParallel, lambda module: nn.DataParallel(compiled(module))]
NAMES = ["actor.0.weight", "actor.0.bias", "module.weight", "module.bias"]


@pytest.mark.parametrize("inner", [lambda module: module, *WRAPPERS])
@pytest.mark.parametrize("outer", [lambda module: module, *WRAPPERS])
def test_name_parts_added_by_wrappers_are_removed(outer: Any, inner: Any) -> None:
    plain, wrapped = Agent(1), outer(Agent(2, inner))
    expected = {name: tensor.clone() for name, tensor in zip(NAMES, wrapped.state_dict().values(), strict=True)}
    assert same(decode(encode(wrapped).data), expected)
    assert same(decode(encode(wrapped, prefix="actor").data), decode(encode(wrapped).data, prefix="actor"))
    decode(encode(wrapped).data, into=plain)
    assert same(plain.state_dict(), expected)
    decode(encode(Agent(3)).data, into=wrapped)
    assert same(decode(encode(wrapped).data), Agent(3).state_dict())


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_names_in_a_state_dict_match_without_parts_added_by_wrappers(wrap: Any) -> None:
    data = encode(wrap(Agent(1)).state_dict()).data
    plain = Agent(2)
    decode(data, into=plain)
    assert same(plain.state_dict(), Agent(1).state_dict())
    assert same(decode(data, prefix="actor"), Agent(1).actor.state_dict())
    state = wrap(plain).state_dict()
    decode(encode(Agent(3)).data, into=state)
    assert same(plain.state_dict(), Agent(3).state_dict())
    with pytest.raises(InvalidError, match=r'missing are "actor\.0\.bias"'):
        decode(encode(nn.Linear(2, 1)).data, into=wrap(Agent(1)))


def test_names_that_would_collide_without_parts_added_by_wrappers_are_kept() -> None:
    state = {"module.a": torch.ones(1), "a": torch.zeros(1), "b._orig_mod.a": torch.ones(2), "b.a": torch.zeros(2)}
    target = {name: tensor + 5 for name, tensor in state.items()}
    decode(encode(state).data, into=target)
    assert same(target, state)


@pytest.mark.parametrize("added", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_in_a_state_dict_lose_parts_that_only_wrappers_have(added: str) -> None:
    data = encode({f"{added}.actor.{added}.weight": torch.ones(1)}).data
    assert list(decode(data)) == ["actor.weight"]
    assert list(decode(data, prefix=f"{added}.actor")) == ["weight"]


# Other kinds of parameters.


def test_nested_mappings_have_names_with_dots() -> None:
    nested = {"actor": {"weight": torch.ones(2), "layers": [torch.zeros(1)]}}
    data = encode(nested).data
    assert list(decode(data)) == ["actor.weight", "actor.layers.0"]
    target = {"actor": {"weight": torch.zeros(2), "layers": [torch.ones(1)]}}
    decode(data, into=target)
    assert target["actor"]["weight"].all()
    with pytest.raises(InvalidError, match=r'two leaves of the tree are called "a\.b"'):
        encode({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)})


@on_slow_machines
def test_a_tensor_dict_is_a_nested_state_dict() -> None:
    tensordict = pytest.importorskip("tensordict", reason="tensordict is not installed: make test-frameworks")
    source, target = Agent(1), Agent(2)
    data = encode(tensordict.TensorDict.from_module(source)).data
    assert list(decode(data)) == NAMES
    assert list(numpy.decode(data)) == NAMES
    decode(data, into=target)
    assert same(target.state_dict(), source.state_dict())
    other = tensordict.TensorDict.from_module(Agent(3)).data.clone().lock_()
    decode(data, into=other)
    assert torch.equal(other["actor", "0", "weight"], source.actor[0].weight)
    assert list(decode(encode(tensordict.TensorDictParams(other)).data)) == NAMES
    mapped = tensordict.MemoryMappedTensor.from_tensor(torch.ones(3))
    assert decode(encode({"a": mapped}).data)["a"].all()


# Tensors that are spread over processes.

SPREAD = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.torch import decode, encode

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
torch.manual_seed(1)
# The encoder has 5 rows for 2 processes; its weight is also that of the decoder. The last bias is on one process alone.
module = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False), nn.Linear(5, 1))
module[1].weight = module[0].weight
expected = {name: tensor.clone() for name, tensor in module.state_dict().items()}
ones = encode({name: torch.ones_like(tensor) for name, tensor in expected.items()}).data
fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
parts = [parameter.to_local().clone() for parameter in module.parameters()]
for call in (lambda: encode(module), lambda: decode(ones, into=module)):
    try:
        call()
    except InvalidError as error:
        print(error.message)
assert all(torch.equal(part, new.to_local()) for part, new in zip(parts, module.parameters(), strict=True))
whole = decode(encode(module, gather=True).data)
assert all(torch.equal(whole[name], tensor) for name, tensor in expected.items())
assert whole["0.weight"] is whole["1.weight"]
set_model_state_dict(module, decode(ones), options=StateDictOptions(full_state_dict=True))
assert all(tensor.all() for tensor in decode(encode(module, gather=True).data).values())
dist.destroy_process_group()
print("done")
"""


@on_slow_machines
def test_distributed_tensors_are_refused_unless_gathering_is_requested(tmp_path: Path) -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch cannot connect processes")
    for output in run_two(SPREAD, str(tmp_path / "store")):
        source, target, end = output.splitlines()
        assert source.startswith('"0.weight", of type torch.distributed.tensor.DTensor, is spread over processes')
        assert source.endswith("call encode(..., gather=True) in all of them")
        assert "set_model_state_dict" in target
        assert end == "done"
