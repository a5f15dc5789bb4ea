"""Trees of NumPy arrays as versions."""

import importlib.util
import json
import math
import mmap
import pickle
import sys
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from cogment_model_registry import ModelRegistry, aio, numpy
from cogment_model_registry.errors import InvalidError, NotFoundError
from cogment_model_registry.frameworks import trees
from cogment_model_registry.server.composition import Server
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from tests.frameworks.conftest import on_thread
from tests.processes import run


class Layer(NamedTuple):
    weight: Any
    bias: Any


def same(one: Any, other: Any) -> bool:
    """Return whether two trees are the same, with all types in them."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray | np.generic):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def decoded(tree: object, **options: Any) -> Any:
    return numpy.decode(numpy.encode(tree, **options).data)


AWKWARD: dict[Any, Any] = {
    "": np.float32(1.5),
    "a.b": np.arange(6.0).reshape(2, 3),
    "a": {"b": np.arange(3, dtype=np.int8), "": [], "[0]": ()},
    "__metadata__": np.array(True),
    "\ud800 is no text": np.zeros((0, 4), np.uint16),
    0: [None, {}, (1, 2.5, True, float("nan"), float("-inf"))],
    "0": {"list": [np.array(2 + 1j, np.complex64)], "1": np.float16(2)},
    -7: np.bool_(False),
}


def test_an_awkward_tree_comes_back_unchanged() -> None:
    assert same(decoded(AWKWARD), AWKWARD)


@pytest.mark.parametrize("tree", [None, 7, 2**64 - 1, np.zeros(3), np.float64(1), [], {}, (), [[]], {"a": None}])
def test_the_smallest_trees_come_back_unchanged(tree: object) -> None:
    assert same(decoded(tree), tree)


KEYS = st.one_of(st.text(st.characters(codec=None, exclude_categories=())), st.sampled_from("ab.~0[]"), st.integers())
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.sampled_from([np.zeros(2), np.array(3, np.int16), np.ones((0, 2), bool), np.float32(4)]),
)
TREES = st.recursive(
    LEAVES,
    lambda children: (
        st.lists(children, max_size=4)
        | st.lists(children, max_size=4).map(tuple)
        | st.dictionaries(KEYS, children, max_size=4)
    ),
    max_leaves=20,
)


@given(TREES)
@example(AWKWARD)
def test_decoding_inverts_encoding(tree: object) -> None:
    structure, leaves = trees.take_apart(tree, trees.expand_named_tuple)
    assert all(name.encode() != b"__metadata__" for name in leaves)
    again = trees.put_together(json.loads(json.dumps(structure)), lambda _, name: leaves[name])
    assert same(again, tree)
    assert same(decoded(tree), tree)


def test_the_names_in_the_file_are_readable_by_other_tools() -> None:
    data = numpy.encode({"actor": [{"bias": np.zeros(2)}], "step": 3}).data
    assert sorted(safetensors.numpy.load(data)) == ["actor.0.bias", "step"]


def test_the_types_of_numpy_itself_need_no_further_package() -> None:
    program = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from cogment_model_registry.numpy import decode, encode

for kind in [bool, "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]:
    tree = {"array": np.ones(2, kind), "scalar": np.dtype(kind).type(1), "empty": np.ones((0, 2), kind)}
    decoded = decode(encode(tree).data)
    assert all(np.array_equal(decoded[name], value) for name, value in tree.items())
    assert all(decoded[name].dtype == value.dtype for name, value in tree.items())
"""
    result = run(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("prefix", ["", "part"])
def test_arrays_refer_to_bytes_that_can_be_written_to_and_are_copied_from_others(prefix: str) -> None:
    data = bytearray(numpy.encode({"part": {"a": np.zeros(2)}}).data)
    shared, copied = numpy.decode(data, prefix=prefix), numpy.decode(bytes(data), prefix=prefix)
    data[-1] = 1
    arrays = [tree["a"] if prefix else tree["part"]["a"] for tree in (shared, copied)]
    assert arrays[0].any() != bool(prefix)  # with a prefix the rest is let go
    assert not arrays[1].any()
    assert all(array.flags.writeable for array in arrays)


async def test_parameters_that_change_while_they_are_published_are_refused(registry: ModelRegistry) -> None:
    tree = {"a": np.zeros(1_000_000), "b": np.zeros(1)}

    def change(_progress: object) -> None:
        tree["b"][0] = 1

    with pytest.raises(InvalidError, match="data_hash"):
        await on_thread(numpy.publish, registry, "policy", tree, progress=change)
    assert await on_thread(registry.list_versions, "policy") == []
    data, user_data = numpy.encode(tree)
    await on_thread(registry.publish, "policy", data, user_data=user_data, progress=change)


async def test_arrays_are_views_of_the_memory_that_processes_share_until_they_are_written_to(tmp_path: Path) -> None:
    def root_of(array: Any) -> object:
        while isinstance(array, np.ndarray):
            array = array.base
        return array.obj if isinstance(array, memoryview) else array

    weights: dict[str, Any] = {"w": np.arange(2_000_000, dtype=np.float32), "rate": 0.1}
    settings = Settings(cache_max_bytes=64 * MIB, grace_seconds=0)
    async with serving(tmp_path, settings) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            await on_thread(numpy.publish, registry, "policy", weights)
            first, second = [(await on_thread(numpy.load, registry, "policy")).value for _ in range(2)]
            assert isinstance(root_of(first["w"]), mmap.mmap)
            first["w"][:] = 0
            assert np.array_equal(second["w"], weights["w"])
            assert same((await on_thread(numpy.load, registry, "policy")).value, weights)
            with registry.track("policy", decode=numpy.decode, copy=False) as latest:
                await on_thread(latest.wait_for, timeout=60)
                assert latest.value is not None
                assert same(latest.value, weights)
                latest.value["w"][0] = 1  # it may be written to


def test_equal_trees_are_equal_bytes() -> None:
    assert numpy.encode(AWKWARD).data == numpy.encode(AWKWARD).data


def test_a_shared_array_is_written_once_and_shared_again() -> None:
    shared = np.arange(1000.0)
    encoded = numpy.encode({"encoder": shared, "decoder": shared})
    assert len(encoded.data) < 9000
    tree = numpy.decode(encoded.data)
    assert tree["encoder"] is tree["decoder"]


@pytest.mark.parametrize(
    "array",
    [np.arange(12.0).reshape(3, 4).T, np.arange(10)[::-2], np.arange(3, dtype=">f4"), np.asfortranarray(np.eye(3))],
)
def test_arrays_may_have_any_memory_layout(array: Any) -> None:
    again = decoded(array)
    assert np.array_equal(again, array)
    assert again.dtype == array.dtype.newbyteorder("=")
    assert again.flags.writeable


def test_mappings_and_named_tuples_come_back_as_dicts() -> None:
    tree = [OrderedDict(b=1, a=2), MappingProxyType({"c": 3}), Layer(np.zeros(2), None)]
    assert same(decoded(tree), [{"b": 1, "a": 2}, {"c": 3}, {"weight": np.zeros(2), "bias": None}])


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": "text"}}, '"a.b" is of type builtins.str; it must be an array'),
        ({"a": [object()]}, '"a.0" is of type builtins.object'),
        ({"a": np.array(["text"])}, '"a" has elements of type str'),
        ({"a": np.array([None])}, '"a" has elements of type object'),
        ({"a": np.zeros(2, np.complex128)}, "complex128; a version can have bfloat16"),
        ({"a": 2**70}, '"a" has elements of type object'),
        ({"a": np.ma.masked_array([1], [True])}, "MaskedArray"),
        ({"a": {(1, 2): np.zeros(1)}}, 'a key of "a" is of type tuple'),
        ({True: np.zeros(1)}, "a key of the tree is of type bool"),
    ],
)
def test_unsupported_values_are_refused_by_name(tree: object, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        numpy.encode(tree)


def test_a_tree_that_contains_itself_is_refused() -> None:
    tree: list[object] = []
    tree.append(tree)
    with pytest.raises(InvalidError, match="contains itself"):
        numpy.encode(tree)


def test_dtype_converts_only_floating_point_arrays() -> None:
    tree = {"weight": np.ones(2), "steps": np.ones(2, int), "rate": 0.1, "scale": np.float64(2)}
    half = {"weight": np.ones(2, np.float16), "steps": np.ones(2, int), "rate": 0.1, "scale": np.float16(2)}
    assert same(decoded(tree, dtype=np.float16), half)
    assert same(numpy.decode(numpy.encode(tree).data, dtype="float16"), half)


AGENT = {"actor": {"layers": [{"w": np.ones(2)}]}, "actor_target": {"w": np.zeros(2)}, "critic": {"w": np.zeros(3)}}


@pytest.mark.parametrize("prefix", ["actor", "actor."])
@pytest.mark.parametrize("when", ["writing", "reading"])
def test_a_prefix_selects_a_part_without_the_prefix(prefix: str, when: str) -> None:
    data = numpy.encode(AGENT, prefix=prefix if when == "writing" else "").data
    assert same(numpy.decode(data, prefix=prefix if when == "reading" else ""), AGENT["actor"])


def test_a_prefix_goes_through_lists_named_tuples_and_keys_with_dots() -> None:
    assert same(decoded(AGENT, prefix="actor.layers.0"), {"w": np.ones(2)})
    assert decoded([Layer({"a": 1}, 2)], prefix="0.weight") == {"a": 1}
    assert decoded({"actor.0.w": 1, "actor.1.w": 2, "critic.w": 3}, prefix="actor") == {"0.w": 1, "1.w": 2}
    assert decoded({"agent": {"actor.0.w": 1, "critic.w": 3}}, prefix="agent.actor") == {"0.w": 1}


def test_an_unknown_prefix_is_refused_with_the_existing_names() -> None:
    with pytest.raises(InvalidError, match=r'begins with "act"; the names are "actor.layers.0.w", "actor_target.w"'):
        numpy.encode(AGENT, prefix="act")


def test_a_tree_is_copied_into_the_arrays_of_another() -> None:
    target = {"a": Layer(np.zeros(2, np.float32), np.zeros((2, 2)).T), "b": [np.zeros(())]}
    arrays = (*target["a"], *target["b"])
    source = {"a": {"weight": np.ones(2), "bias": np.arange(4.0).reshape(2, 2)}, "b": (7,)}
    assert numpy.decode(numpy.encode(source).data, into=target) is None
    assert arrays[0].dtype == np.float32
    assert arrays[0].tolist() == [1, 1]
    assert arrays[1].tolist() == [[0, 1], [2, 3]]
    assert arrays[2] == 7


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": np.ones(2)}, 'missing are "b"$'),
        ({"a": np.ones(2), "b": np.ones(3), "c": 1, "d": 2}, 'unexpected are "c", "d"$'),
        ({"a": np.ones(2), "b": np.ones((3, 1))}, r'"b" has the shape \[3, 1\], not \[3\]'),
        ({"a": np.ones(2), "b": np.ones(3, np.complex64)}, '"b" has elements of type complex64, not int64'),
        ({"x.y": 1, "x": {"y": 1}}, 'two leaves of the tree are called "x.y"'),
        ({f"{number:02}": 1 for number in range(9)}, 'unexpected are "00", "01", "02", "03", "04" and 4 more'),
    ],
)
def test_nothing_is_copied_unless_everything_fits(source: object, message: str) -> None:
    target = {"a": np.zeros(2), "b": np.zeros(3, int)}
    with pytest.raises(InvalidError, match=message):
        numpy.decode(numpy.encode(source).data, into=target)
    assert not target["a"].any()
    assert not target["b"].any()


@pytest.mark.parametrize("target", [3.5, np.float64(3), np.broadcast_to(0.0, (2,))])
def test_a_read_only_array_is_refused_as_a_target(target: object) -> None:
    with pytest.raises(InvalidError, match='"b" cannot be copied into'):
        numpy.decode(numpy.encode({"b": np.ones(2)}).data, into={"b": target})


def test_names_may_differ_when_it_is_not_strict() -> None:
    target = {"a": np.zeros(2), "b": np.zeros(3)}
    numpy.decode(numpy.encode({"a": np.ones(2), "c": np.ones(1)}).data, into=target, strict=False)
    assert target["a"].all()
    assert not target["b"].any()


def test_a_file_of_another_origin_is_a_dict_of_its_names() -> None:
    data = safetensors.numpy.save({"a.weight": np.ones(2), "b": np.zeros(1)}, metadata={"format": "pt"})
    tree = numpy.decode(data)
    assert sorted(tree) == ["a.weight", "b"]
    assert np.array_equal(tree["a.weight"], np.ones(2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not safetensors but empty"),
        (pickle.dumps({"a": 1}), "not safetensors but a pickle, beginning with 80 0"),
        (b"PK\x03\x04" + bytes(100), "a zip archive, as torch.save writes"),
        (b"weights", "something else, beginning with 77 65"),
        (bytes(100), "something else"),
    ],
)
def test_bytes_of_another_format_are_refused_with_a_description(data: bytes, message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        numpy.decode(data)


GOOD = numpy.encode(AWKWARD).data


@given(st.one_of(st.binary(), st.builds(bytes.__add__, st.integers(0, 999).map(lambda end: GOOD[:end]), st.binary())))
def test_garbage_is_refused_with_an_invalid_error(data: bytes) -> None:
    with pytest.raises(InvalidError):
        numpy.decode(data)


@given(st.data())
def test_a_flipped_byte_is_refused_or_read(data: st.DataObject) -> None:
    flipped = bytearray(GOOD)
    flipped[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    with suppress(InvalidError):
        numpy.decode(bytes(flipped))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["a", "b", "dict", "list", "int", "scalar"]),
    lambda children: st.lists(children, max_size=3),
)


@given(JSON)
@example(["dict", [[True, "a"]]])
@example(["float", "a"])
@example(["dict", [["a"]]])
def test_a_malformed_structure_is_refused(structure: Any) -> None:
    metadata = {"cogment_model_registry": json.dumps({"tree": structure})}
    data = safetensors.numpy.save({"a": np.zeros(2), "b": np.array(1)}, metadata=metadata)
    with suppress(InvalidError):
        numpy.decode(data)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "[" * 100_000, '{"tree":' + '["list",[' * 900 + "]]" * 900])
def test_a_header_without_a_structure_is_refused(text: str) -> None:
    data = safetensors.numpy.save({"a": np.zeros(2)}, metadata={"cogment_model_registry": text})
    with pytest.raises(InvalidError):
        numpy.decode(data)


def stored_as(code: str, *elements: bytes) -> bytes:
    """Return a version with a tensor "a" whose elements have a type of the format."""
    size_bytes = sum(map(len, elements))
    entry = {"dtype": code, "shape": [len(elements)], "data_offsets": [0, size_bytes]}
    header = json.dumps({"a": entry}).encode()
    return len(header).to_bytes(8, "little") + header + b"".join(elements)


def test_bfloat16_is_read_with_and_without_ml_dtypes() -> None:
    data = stored_as("BF16", b"\xc0\x3f")
    into = {"a": np.zeros(1, np.float32)}
    numpy.decode(data, into=into)
    assert into["a"] == 1.5
    has_ml_dtypes = importlib.util.find_spec("ml_dtypes") is not None
    assert numpy.decode(data)["a"].dtype.name == ("bfloat16" if has_ml_dtypes else "float32")
    assert same(numpy.decode(data, dtype=np.float16), {"a": np.array([1.5], np.float16)})


def test_types_of_8_bits_are_read_when_ml_dtypes_is_installed() -> None:
    data = stored_as("F8_E5M2", b"\x3c")
    if importlib.util.find_spec("ml_dtypes") is None:
        with pytest.raises(InvalidError, match="float8_e5m2, which NumPy supports only with: pip install ml_dtypes"):
            numpy.decode(data)
    else:
        assert numpy.decode(data)["a"] == 1


BFLOAT16 = [
    (1.0, b"\x80\x3f"),
    (-2.5, b"\x20\xc0"),
    (1 + 2**-8, b"\x80\x3f"),  # between two, so to the even one
    (1 + 3 * 2**-8, b"\x82\x3f"),
    (1 + 2**-8 + 2**-16, b"\x81\x3f"),
    (0.0, b"\x00\x00"),
    (-0.0, b"\x00\x80"),
    (math.inf, b"\x80\x7f"),
    (-math.inf, b"\x80\xff"),
    (float(np.finfo(np.float32).max), b"\x80\x7f"),  # the next one is infinity
    (2.0**-149, b"\x00\x00"),
]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("number", "stored"), BFLOAT16)
def test_bfloat16_is_written_rounded_to_nearest_even(number: float, stored: bytes, kind: Any) -> None:
    assert numpy.encode({"a": np.array([number], kind)}, dtype="bfloat16").data.endswith(stored)


def test_bfloat16_halves_the_bytes_and_leaves_integers_alone() -> None:
    tree = {"a": np.full(1000, 1.5, np.float32), "step": np.arange(3), "nan": np.array([math.nan, -math.nan], "f4")}
    whole, half = numpy.encode(tree).data, numpy.encode(tree, dtype="bfloat16").data
    assert len(whole) - len(half) > 1990
    into = {"a": np.zeros(1000, np.float32), "step": np.zeros(3, int), "nan": np.zeros(2, np.float32)}
    numpy.decode(half, into=into)
    assert same(into["a"], tree["a"])
    assert same(into["step"], tree["step"])
    assert np.isnan(into["nan"]).all()


def test_user_data_is_kept_and_reserved_keys_are_refused() -> None:
    noted = numpy.encode({}, user_data={"step": 7}).user_data
    assert noted == {"step": "7", "format": "safetensors", "framework": "numpy"}
    for key in ("format", "framework"):
        with pytest.raises(InvalidError, match=f'key "{key}", which is reserved'):
            numpy.encode({}, user_data={key: "mine"})


async def test_a_tree_is_published_and_loaded(registry: ModelRegistry) -> None:
    published = await on_thread(numpy.publish, registry, "policy", AGENT, user_data={"step": "7"}, timeout=20)
    assert not published.archived
    assert published.user_data == {"step": "7", "format": "safetensors", "framework": "numpy"}
    version, tree = await on_thread(numpy.load, registry, "policy")
    assert version == published
    assert same(tree, AGENT)
    part = {"w": np.ones(3)}
    assert await on_thread(numpy.load, registry, published, into=part, prefix="critic") == published
    assert not part["w"].any()


async def test_a_tree_is_stored(registry: ModelRegistry) -> None:
    assert (await on_thread(numpy.store, registry, "policy", {"a": 1})).archived
    assert (await on_thread(numpy.publish, registry, "policy", {"a": 2}, archived=True)).archived
    assert (await on_thread(numpy.load, registry, "policy", version=-2)).value == {"a": 1}
    await on_thread(numpy.publish, registry, "policy", {"a": 3})
    assert (await on_thread(numpy.load, registry, "policy", archived=True)).value == {"a": 2}
    with pytest.raises(NotFoundError):
        await on_thread(numpy.load, registry, "policy", version=4)
    with pytest.raises(NotFoundError):
        await on_thread(numpy.publish, registry, "critic", {}, create=False)


async def test_a_tree_is_published_with_tags_metrics_and_an_alias(registry: ModelRegistry) -> None:
    metrics = {"return": np.float32(487.5)}
    await on_thread(
        numpy.publish, registry, "policy", {"a": 1}, tags={"stage": "candidate"}, metrics=metrics, alias="production"
    )
    version = await on_thread(registry.describe_version, "policy", "production")
    assert (version.tags, version.metrics, version.archived) == ({"stage": "candidate"}, {"return": 487.5}, True)


async def test_an_alias_names_the_version_to_load(registry: ModelRegistry) -> None:
    for number in (1, 2):
        await on_thread(numpy.publish, registry, "policy", {"a": number})
    await on_thread(registry.set_alias, "policy", "production", 1)
    version, tree = await on_thread(numpy.load, registry, "policy", "production")
    assert (version.number, version.archived, tree) == (1, True, {"a": 1})
    described = await on_thread(registry.describe_version, "policy", "production")
    assert (await on_thread(numpy.load, registry, described)).value == {"a": 1}
    with pytest.raises(NotFoundError, match='no alias "canary"'):
        await on_thread(numpy.load, registry, "policy", version="canary")


async def test_a_version_of_another_format_is_refused_with_its_format(registry: ModelRegistry) -> None:
    await on_thread(registry.publish, "policy", b"\x80\x04 weights")
    with pytest.raises(
        InvalidError, match='version 1 of model "policy": the bytes are not safetensors but a pickle'
    ) as e:
        await on_thread(numpy.load, registry, "policy")
    assert (e.value.model_id, e.value.version_number) == ("policy", 1)
    await on_thread(registry.publish, "policy", b"weights", user_data={"format": "onnx"})
    with pytest.raises(InvalidError, match='version 2 of model "policy": its format is "onnx", not "safetensors"'):
        await on_thread(numpy.load, registry, "policy")


async def test_the_latest_version_is_loaded_when_an_older_one_is_evicted_during_the_load(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    evicted = await on_thread(numpy.publish, registry, "policy", {"a": 1})
    await on_thread(registry.delete_model, "policy")
    await on_thread(numpy.publish, registry, "policy", {"a": 2, "b": 3})
    get_version = registry.get_version
    answers = [evicted]
    monkeypatch.setattr(
        registry, "get_version", lambda *args, **kwargs: answers.pop() if answers else get_version(*args, **kwargs)
    )
    assert (await on_thread(numpy.load, registry, "policy")).value == {"a": 2, "b": 3}


async def test_the_asyncio_client_uses_the_same_bytes(server: Server) -> None:
    async with aio.ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
        encoded = numpy.encode(AGENT)
        version = await registry.publish("policy", encoded.data, user_data=encoded.user_data)
        assert same(numpy.decode(await registry.retrieve(version)), AGENT)
        async with registry.track("policy", decode=numpy.decode) as latest:
            await latest.wait_for(timeout=20)
            assert same(latest.value, AGENT)


async def test_the_latest_tree_is_tracked(registry: ModelRegistry) -> None:
    await on_thread(numpy.publish, registry, "policy", AGENT)
    with registry.track("policy", decode=partial(numpy.decode, prefix="actor")) as latest:
        await on_thread(latest.wait_for, timeout=20)
        assert same(latest.value, AGENT["actor"])


@pytest.mark.parametrize(
    ("framework", "package"), [("numpy", "numpy"), ("torch", "torch"), ("torch", "numpy"), ("jax", "jax")]
)
def test_a_missing_framework_is_named_with_what_to_install(framework: str, package: str) -> None:
    program = f"import sys; sys.modules[{package!r}] = None; import cogment_model_registry.{framework}"
    result = run(sys.executable, "-c", program)
    assert result.returncode == 1
    assert f'pip install "cogment-model-registry[{framework}]"' in result.stderr.splitlines()[-1]
