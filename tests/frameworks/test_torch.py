"""Modules of PyTorch as versions; `make test-frameworks` runs these, and other runs skip them."""

import asyncio
from functools import partial
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from cogment_model_registry import ModelRegistry, aio, numpy
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.server.composition import Server
from tests.frameworks.conftest import on_thread

torch: Any = pytest.importorskip("torch", reason="PyTorch is not installed: make test-frameworks")

from cogment_model_registry import torch as registry_torch  # noqa: E402 # it needs PyTorch

encode, decode = registry_torch.encode, registry_torch.decode
nn = torch.nn


def agent(seed: int = 0) -> Any:
    """Return a module with an actor and a critic, and buffers of other types."""
    torch.manual_seed(seed)
    module = nn.Module()
    module.actor = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module.critic = nn.Linear(3, 1)
    module.register_buffer("steps", torch.tensor(seed + 7))
    module.register_buffer("mask", torch.tensor([True, False]))
    module.register_buffer("low", torch.rand(2, 2).to(torch.bfloat16))
    module.register_buffer("empty", torch.zeros(0, 3))
    return module


def tied(*, is_tied: bool = True) -> Any:
    """Return a module whose encoder and decoder share their weights."""
    module = nn.ModuleDict({"encoder": nn.Embedding(5, 3), "decoder": nn.Linear(3, 5, bias=False)})
    if is_tied:
        module["decoder"].weight = module["encoder"].weight
    return module


def same(one: Any, other: Any) -> bool:
    """Return whether two state dicts are the same, with their order, types and shapes."""
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def test_a_state_dict_comes_back_unchanged() -> None:
    state = agent().state_dict()
    assert same(decode(encode(agent()).data), state)
    assert same(decode(encode(state).data), state)


def test_a_module_is_copied_in_place() -> None:
    source, target = agent(1), agent(2)
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in target.named_parameters()}
    assert decode(encode(source).data, into=target) is None
    assert same(target.state_dict(), source.state_dict())
    for name, tensor in target.named_parameters():
        assert tensor is before[name][0]
        assert tensor.data_ptr() == before[name][1]
        assert tensor.requires_grad


def test_an_optimiser_continues_after_a_load() -> None:
    module = nn.Linear(2, 1)
    optimiser = torch.optim.Adam(module.parameters())
    encoded = encode(module)
    for _ in range(2):
        optimiser.zero_grad()
        module(torch.ones(1, 2)).sum().backward()
        optimiser.step()
        decode(encoded.data, into=module)
    assert same(module.state_dict(), decode(encoded.data))


def test_tied_weights_are_written_once_and_stay_tied() -> None:
    module = tied()
    encoded = encode(module)
    assert len(safetensors.numpy.load(encoded.data)) == 1
    state = decode(encoded.data, dtype=torch.float16)
    assert state["encoder.weight"] is state["decoder.weight"]
    target = tied()
    decode(encoded.data, into=target)
    assert target["decoder"].weight is target["encoder"].weight
    assert torch.equal(target["decoder"].weight, module["encoder"].weight)
    apart = tied(is_tied=False)
    decode(encoded.data, into=apart)
    assert torch.equal(apart["decoder"].weight, apart["encoder"].weight)


def test_weights_tied_only_in_the_module_must_be_equal() -> None:
    target = tied()
    before = target["encoder"].weight.clone()
    with pytest.raises(InvalidError, match=r'"decoder\.weight" is tied to another tensor of the module'):
        decode(encode(tied(is_tied=False)).data, into=target)
    assert torch.equal(target["encoder"].weight, before)
    one = {"encoder.weight": torch.ones(5, 3)}
    decode(encode(one).data, into=target)
    assert torch.equal(target["decoder"].weight, one["encoder.weight"])


def test_views_of_shared_memory_are_written_one_by_one() -> None:
    memory = torch.arange(12.0)
    state = {
        "rows": memory.reshape(3, 4),
        "columns": memory.reshape(3, 4).t(),
        "end": memory[6:],
        "wide": torch.ones(1).expand(5),
        "conjugate": torch.tensor([1 + 2j]).conj(),
    }
    encoded = encode(state)
    assert same(decode(encoded.data), state)
    assert len(encode({"end": torch.zeros(100_000)[:2]}).data) < 1000


def test_dtype_converts_only_floating_point_tensors() -> None:
    data = encode(agent(), dtype=torch.float16).data
    state = decode(data)
    assert {state[name].dtype for name in ("actor.0.weight", "low", "empty")} == {torch.float16}
    assert (state["steps"].dtype, state["mask"].dtype) == (torch.int64, torch.bool)
    again = decode(data, dtype=torch.float64, device="cpu")
    assert again["actor.0.weight"].dtype == torch.float64
    assert again["steps"].dtype == torch.int64
    target = agent(3)
    decode(data, into=target)
    assert target.critic.weight.dtype == torch.float32
    assert torch.equal(target.critic.weight, state["critic.weight"].float())


def test_tensors_are_loaded_to_the_given_device() -> None:
    state = decode(encode(agent()).data, device="meta")
    assert all(tensor.is_meta for tensor in state.values())


@pytest.mark.parametrize("prefix", ["actor", "actor."])
def test_a_prefix_selects_a_part_without_the_prefix(prefix: str) -> None:
    source, target = agent(1), agent(2)
    expected = source.actor.state_dict()
    assert same(decode(encode(source, prefix=prefix).data), expected)
    assert same(decode(encode(source).data, prefix=prefix), expected)
    critic = target.critic.weight.clone()
    decode(encode(source).data, into=target.actor, prefix=prefix)
    assert same(target.actor.state_dict(), expected)
    assert torch.equal(target.critic.weight, critic)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"weight": torch.ones(1, 2)}, 'missing are "bias"'),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(1), "gain": torch.ones(1)}, 'unexpected are "gain"'),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(2)}, r'"bias" has the shape \[2\], not \[1\]'),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(1, dtype=torch.complex64)}, "complex64, not torch.float32"),
    ],
)
def test_nothing_is_copied_unless_everything_fits(source: Any, message: str) -> None:
    module = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(InvalidError, match=message):
        decode(encode(source).data, into=module)
    assert same(module.state_dict(), before)


def test_names_may_differ_when_it_is_not_strict() -> None:
    module = nn.Linear(2, 1)
    bias = module.bias.clone()
    decode(encode({"weight": torch.ones(1, 2), "gain": torch.ones(1)}).data, into=module, strict=False)
    assert module.weight.sum() == 2
    assert torch.equal(module.bias, bias)


def stateful() -> Any:
    """Return a module with a state that is not a tensor."""
    module = nn.Module()
    module._register_state_dict_hook(lambda _, state, prefix, __: state.update({f"{prefix}_extra_state": {"a": 1}}))
    return module


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"a": 1}, '"a" is of type int; it must be a tensor'),
        ({"a": {"b": 1}}, '"a.b" is of type int; it must be a tensor'),
        ({"a": torch.ones(2, dtype=torch.complex128)}, '"a" has elements of type complex128'),
        (nn.Sequential(stateful()), '"0._extra_state" is extra state'),
        ([torch.ones(1)], "a module or a state dict was expected, not a list"),
    ],
)
def test_unsupported_values_are_refused_by_name(parameters: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        encode(parameters)
    if isinstance(parameters, nn.Module | dict):
        with pytest.raises(InvalidError, match=message):
            decode(encode({}).data, into=parameters)


def test_a_module_with_lazy_parameters_is_refused() -> None:
    with pytest.raises(InvalidError, match=r'"weight".* is not initialised yet'):
        encode(nn.LazyLinear(2))


def test_a_reserved_user_data_key_is_refused() -> None:
    with pytest.raises(InvalidError, match='"format", which is reserved'):
        encode({}, user_data={"format": "pt"})


def test_numpy_and_pytorch_read_each_others_versions() -> None:
    module = nn.Linear(2, 1)
    tree = numpy.decode(encode(module).data)
    assert list(tree) == ["weight", "bias"]
    assert np.array_equal(tree["weight"], module.weight.detach().numpy())
    target = nn.Sequential(nn.Linear(2, 1))
    data = numpy.encode([{"weight": np.ones((1, 2)), "bias": np.zeros(1)}]).data
    assert decode(data)["0.weight"].dtype == torch.float64
    decode(data, into=target)
    assert target[0].weight.sum() == 2


def test_bytes_of_another_format_are_refused() -> None:
    with pytest.raises(InvalidError, match="not safetensors but something else"):
        decode(b"weights")


async def test_a_module_is_published_and_loaded(registry: ModelRegistry) -> None:
    source, target = agent(1), agent(2)
    published = await on_thread(registry_torch.publish, registry, "policy", source, user_data={"step": "7"})
    assert published.user_data == {"step": "7", "format": "safetensors", "framework": "torch"}
    assert await on_thread(registry_torch.load, registry, "policy", into=target) == published
    assert same(target.state_dict(), source.state_dict())
    version, state = await on_thread(registry_torch.load, registry, published, prefix="critic")
    assert version == published
    assert same(state, source.critic.state_dict())
    stored = await on_thread(registry_torch.store, registry, "policy", source, dtype=torch.bfloat16)
    assert stored.archived
    with pytest.raises(InvalidError, match='version 2 of model "policy": the parameters do not fit: missing are "0'):
        await on_thread(registry_torch.load, registry, "policy", into=target.actor)


async def test_the_latest_state_dict_is_tracked(registry: ModelRegistry) -> None:
    with registry.track("policy", decode=partial(decode, prefix="critic")) as latest:
        await on_thread(registry_torch.publish, registry, "policy", agent())
        await on_thread(latest.wait_for, timeout=20)
        assert latest.value is not None
        assert same(latest.value, agent().critic.state_dict())


async def test_the_asyncio_client_uses_the_same_bytes(server: Server) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        data, user_data = await asyncio.to_thread(encode, agent())
        version = await registry.publish("policy", data, user_data=user_data)
        assert same(decode(await registry.retrieve(version)), agent().state_dict())
