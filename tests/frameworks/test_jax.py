"""Pytrees of JAX as versions; `make test-frameworks` runs these, and other runs skip them."""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest

from cogment_model_registry import ModelRegistry, aio, numpy
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.server.composition import Server
from tests.frameworks.conftest import on_slow_machines, on_thread, run_two
from tests.ports import free_ports

jax: Any = pytest.importorskip("jax", reason="JAX is not installed: make test-frameworks")

from cogment_model_registry import jax as registry_jax  # noqa: E402 # it needs JAX

encode, decode = registry_jax.encode, registry_jax.decode
jnp = jax.numpy


class Layer(NamedTuple):
    weight: Any
    bias: Any


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "scale"], meta_fields=["name"])
@dataclass
class Policy:
    layers: Any
    scale: Any
    name: str


@jax.tree_util.register_pytree_node_class
class Pair:
    """A node whose children have only numbers."""

    def __init__(self, one: Any, other: Any) -> None:
        self.one = one
        self.other = other

    def tree_flatten(self) -> Any:
        return (self.one, self.other), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Pair":
        return cls(*children)


def deleted() -> Any:
    array = jnp.ones(2)
    array.delete()
    return array


def policy(value: float = 1.0) -> Any:
    return {
        "policy": Policy([Layer(jnp.full((2, 3), value), None), Layer(jnp.zeros(3), jnp.ones(()))], 0.5, "walker"),
        "pair": Pair(jnp.arange(3), {"a.b": jnp.zeros((0, 2), jnp.bfloat16)}),
        "step": 7,
        1: (np.arange(2), [], {}, None),
    }


def without_ints(tree: dict[Any, Any]) -> dict[Any, Any]:
    """Return a dict that JAX takes, which wants keys that have an order."""
    return {str(key): value for key, value in tree.items()}


def same(one: Any, other: Any) -> bool:
    """Return whether two pytrees are the same, with their nodes and types."""
    leaves, nodes = jax.tree_util.tree_flatten(one)
    others, other_nodes = jax.tree_util.tree_flatten(other)
    return nodes == other_nodes and all(
        isinstance(leaf, jax.Array) == isinstance(another, jax.Array)
        and np.asarray(leaf).dtype == np.asarray(another).dtype
        and np.array_equal(leaf, another)
        for leaf, another in zip(leaves, others, strict=True)
    )


def test_nodes_of_jax_come_back_as_dicts_of_their_fields() -> None:
    tree = decode(encode(policy()).data)
    assert list(tree) == ["policy", "pair", "step", 1]
    assert list(tree["policy"]) == ["layers", "scale"]
    first, second = tree["policy"]["layers"]
    assert first["bias"] is None
    assert same(first["weight"], jnp.ones((2, 3)))
    assert same(second, {"weight": jnp.zeros(3), "bias": jnp.ones(())})
    assert same(tree["pair"], {0: jnp.arange(3), 1: {"a.b": jnp.zeros((0, 2), jnp.bfloat16)}})
    assert (tree["step"], tree["policy"]["scale"]) == (7, 0.5)
    assert same(tree[1], (jnp.arange(2), [], {}, None))


def test_the_result_has_the_nodes_types_and_scalars_of_the_template() -> None:
    template, tree = without_ints(policy(5.0)), without_ints(policy())
    assert same(decode(encode(tree).data, like=template), tree)
    assert decode(encode(tree).data, like=template)["policy"].name == "walker"


def test_a_template_may_be_abstract() -> None:
    tree = {"layer": Layer(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(3))}
    assert same(decode(encode(tree).data, like=jax.eval_shape(lambda: tree)), tree)


def test_the_result_has_the_element_types_of_the_template() -> None:
    data = encode({"a": jnp.ones(2), "b": np.arange(2)}, dtype="bfloat16").data
    template = {"a": jnp.zeros(2, jnp.float16), "b": np.zeros(2, np.float32)}
    assert same(decode(data, like=template), {"a": jnp.ones(2, jnp.float16), "b": np.arange(2, dtype=np.float32)})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": jnp.ones(2)}, 'missing are "b"'),
        ({"a": jnp.ones(2), "b": jnp.ones(3), "c": 1}, 'unexpected are "c"'),
        ({"a": jnp.ones(2), "b": jnp.ones(4)}, r'"b" has the shape \[4\], not \[3\]'),
        ({"a": jnp.ones(2, complex), "b": jnp.ones(3)}, '"a" has elements of type complex64, not float32'),
    ],
)
def test_a_template_that_does_not_fit_is_refused(tree: object, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        decode(encode(tree).data, like={"a": jnp.zeros(2), "b": jnp.zeros(3)})


def test_names_may_differ_when_it_is_not_strict() -> None:
    data = encode({"a": jnp.ones(2), "c": 1}).data
    tree = decode(data, like={"b": jnp.zeros(3), "a": jnp.zeros(2)}, strict=False)
    assert same(tree, {"a": jnp.ones(2), "b": jnp.zeros(3)})


def test_a_template_with_ambiguous_names_is_refused() -> None:
    with pytest.raises(InvalidError, match="two leaves"):
        decode(encode({}).data, like={"a.b": 1, "a": {"b": 2}})


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ("text", '"a" is of type str in `like`; it must be an array or a scalar'),
        (1, '"a" has elements of type float32, not int64'),
        (np.datetime64("2020-01-01"), r'"a" has elements of type float32, not datetime64\[D\]'),
    ],
)
def test_a_template_with_other_leaves_is_refused(leaf: object, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        decode(encode({"a": jnp.ones(())}).data, like={"a": leaf})


@pytest.mark.parametrize("when", ["writing", "reading"])
def test_a_prefix_selects_a_part_through_all_kinds_of_nodes(when: str) -> None:
    prefix = "policy.layers.1"
    data = encode(policy(), prefix=prefix if when == "writing" else "").data
    part = decode(data, prefix=prefix if when == "reading" else "")
    assert same(part, {"weight": jnp.zeros(3), "bias": jnp.ones(())})
    like = Layer(jnp.ones(3), jnp.zeros(()))
    assert same(decode(data, like=like, prefix=prefix if when == "reading" else ""), policy()["policy"].layers[1])


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (lambda: jnp.zeros(2, "int4"), '"a" has elements of type int4; a version can have'),
        (lambda: np.array(["2020-01-01"], "datetime64[D]"), r'"a" has elements of type datetime64\[D\]; a version can'),
        (deleted, '"a" was deleted'),
        (lambda: "text", '"a" is of type builtins.str'),
        (object, '"a" is of type builtins.object'),
    ],
)
def test_unsupported_values_are_refused_by_name(leaf: Any, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        encode({"a": leaf()})


@pytest.mark.parametrize("kind", [None, "rbg"])
def test_keys_come_back_as_their_numbers_or_as_keys_with_a_template(kind: str | None) -> None:
    tree: Any = {"a": jax.random.key(3, impl=kind), "b": [jax.random.split(jax.random.key(4, impl=kind), (2, 3))]}
    template: Any = {"a": jax.random.key(0, impl=kind), "b": [jax.random.split(jax.random.key(0, impl=kind), (2, 3))]}
    data = encode(tree).data
    numbers: Any = {
        "a": {"key_data": jax.random.key_data(tree["a"])},
        "b": [{"key_data": jax.random.key_data(tree["b"][0])}],
    }
    assert same(decode(data), numbers)
    assert same(decode(encode(numbers).data), numbers)
    assert np.array_equal(numpy.decode(data)["a"]["key_data"], numbers["a"]["key_data"])
    for like in (template, jax.eval_shape(lambda: template)):
        loaded = decode(data, like=like)
        assert loaded["a"].dtype == tree["a"].dtype
        assert loaded["b"][0].shape == (2, 3)
        assert same(jax.tree.map(jax.random.key_data, loaded), jax.tree.map(jax.random.key_data, tree))
    assert decode(encode({}).data, like=template, strict=False) == template
    with pytest.raises(InvalidError, match=r'missing are "a\.key_data"'):
        decode(encode({"a": jnp.ones(2)}).data, like={"a": jax.random.key(0)})
    with pytest.raises(InvalidError, match=r'"a\.key_data" has elements of type float32, not uint32'):
        decode(encode({"a": {"key_data": jnp.ones(2)}}).data, like={"a": jax.random.key(0)})


def test_the_state_of_a_flax_module_is_published_with_its_keys() -> None:
    nnx = pytest.importorskip("flax.nnx", reason="Flax is not installed: make test-frameworks")

    class Policy(nnx.Module):  # type: ignore[misc, name-defined] # Flax is not known to mypy
        def __init__(self, seed: int) -> None:
            rngs = nnx.Rngs(seed)
            self.linear = nnx.Linear(2, 3, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def numbers(module: Any) -> Any:
        state = nnx.to_pure_dict(nnx.state(module))
        state["dropout"]["rngs"]["key"] = jax.random.key_data(state["dropout"]["rngs"]["key"])
        return state

    source, target = Policy(1), Policy(2)
    data = encode(nnx.state(source)).data
    nnx.update(target, decode(data, like=nnx.state(target)))
    assert same(numbers(target), numbers(source))
    assert np.array_equal(decode(data)["linear"]["kernel"]["value"], source.linear.kernel[...])


def test_publishing_in_a_traced_function_is_refused() -> None:
    def step(array: Any) -> Any:
        with pytest.raises(InvalidError, match=r'"a" is traced by a transformation such as jax\.jit'):
            encode({"a": array})
        return array

    jax.jit(step)(jnp.ones(2))


SPREAD = """
import sys

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.jax import decode, encode

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
mesh = Mesh(np.array(jax.devices()), "x")
values = np.arange(4, dtype=np.float32)


def placed(*parts):
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, PartitionSpec(*parts)), values.__getitem__)


try:
    encode({"a": placed("x")})
except InvalidError as error:
    print(error.message)
for tree in ({"a": placed()}, process_allgather({"a": placed("x")}, tiled=True)):
    assert np.array_equal(decode(encode(tree).data)["a"], values)
"""


@on_slow_machines
def test_arrays_that_are_spread_over_processes_are_refused_with_the_call_that_gathers_them() -> None:
    for output in run_two(SPREAD, str(free_ports(1)[0])):
        assert '"a" has elements on devices of other processes' in output
        assert "process_allgather(tree, tiled=True)" in output


def test_numpy_and_jax_read_each_others_versions() -> None:
    tree = numpy.decode(encode({"a": [jnp.ones(2, jnp.bfloat16)]}).data)
    assert isinstance(tree["a"][0], np.ndarray)
    assert tree["a"][0].dtype.name == "bfloat16"
    assert same(decode(numpy.encode(tree).data), {"a": [jnp.ones(2, jnp.bfloat16)]})
    assert numpy.decode(encode({"a": jnp.ones(2)}).data, dtype="bfloat16")["a"].dtype.name == "bfloat16"


def test_pytorch_and_jax_read_each_others_versions() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-frameworks")
    from cogment_model_registry import torch as registry_torch  # noqa: PLC0415 # it needs PyTorch

    state = registry_torch.decode(encode([Layer(jnp.ones((1, 2), jnp.bfloat16), jnp.zeros(1))]).data)
    assert list(state) == ["0.weight", "0.bias"]
    assert state["0.weight"].dtype == torch.bfloat16
    module = torch.nn.Sequential(torch.nn.Linear(2, 1))
    like = [Layer(jnp.zeros((1, 2)), jnp.zeros(1))]
    tree = decode(registry_torch.encode(module).data, like=like)
    assert np.array_equal(tree[0].weight, module[0].weight.detach().numpy())


async def test_a_pytree_is_published_and_loaded(registry: ModelRegistry) -> None:
    tree = without_ints(policy())
    published = await on_thread(registry_jax.publish, registry, "policy", tree, user_data={"step": "7"})
    assert published.user_data == {"step": "7", "format": "safetensors", "framework": "jax"}
    version, loaded = await on_thread(registry_jax.load, registry, "policy", like=without_ints(policy(2.0)))
    assert version == published
    assert same(loaded, tree)
    assert (await on_thread(registry_jax.load, registry, published, prefix="pair.1")).value.keys() == {"a.b"}
    assert (await on_thread(registry_jax.store, registry, "policy", tree)).archived


async def test_the_asyncio_client_uses_the_same_bytes(server: Server) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        data, user_data = await asyncio.to_thread(encode, {"a": jnp.ones(2)})
        await registry.publish("policy", data, user_data=user_data)
        async with registry.track("policy", decode=partial(decode, like={"a": jnp.zeros(2)})) as latest:
            await latest.wait_for(timeout=20)
            assert same(latest.value, {"a": jnp.ones(2)})
