"""Each call of the client, in both flavours, with a real server."""

import asyncio
import gzip
import hashlib
import inspect
import io
import mmap
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cogment_model_registry
from cogment_model_registry import ModelInfo, ModelRegistry, aio, errors
from cogment_model_registry.client.attempts import CHUNK_BYTES
from cogment_model_registry.client.sources import Parts, Preparation
from cogment_model_registry.records.versions import digest_text
from tests.client import Client
from tests.locales import utf_8

SIZES = [0, 1, 1000, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES - 1]


async def test_a_model_is_created_listed_and_deleted(registry: Any) -> None:
    created = await registry.create_model("policy", user_data={"algorithm": "ppo"})
    assert created == ModelInfo("policy", {"algorithm": "ppo"})
    assert await registry.get_model("policy") == created
    await registry.create_model("critic")
    assert [model.model_id for model in await registry.list_models()] == ["critic", "policy"]
    await registry.delete_model("critic")
    assert await registry.list_models() == [created]
    with pytest.raises(errors.NotFoundError, match="critic"):
        await registry.get_model("critic")


async def test_creating_a_model_again_replaces_its_user_data(registry: Any) -> None:
    await registry.create_model("policy", user_data={"a": "1"})
    await registry.create_model("policy", user_data={"b": "2"})
    assert (await registry.get_model("policy")).user_data == {"b": "2"}


@pytest.mark.parametrize("size_bytes", SIZES)
async def test_a_published_version_is_retrieved(registry: Any, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    version = await registry.publish("policy", data, user_data={"step": "7"})
    assert (version.model_id, version.number, version.archived) == ("policy", 1, False)
    assert version.data_size_bytes == size_bytes
    assert version.data_hash == digest_text(hashlib.sha256(data).digest())
    assert version.user_data == {"step": "7"}
    assert version.created_ns > 0
    retrieved = await registry.retrieve("policy")
    assert type(retrieved) is bytes
    assert retrieved == data


async def test_a_stored_version_is_archived(registry: Any) -> None:
    version = await registry.store("policy", b"weights")
    assert version.archived
    assert await registry.retrieve(version) == b"weights"


async def test_an_upload_sends_its_hash(registry: Any, client: Client) -> None:
    """The server refuses bytes that change between the computation of the hash and the upload."""
    data = bytearray(3 * CHUNK_BYTES)

    def change(_progress: object) -> None:
        data[-1] = 1

    with pytest.raises(errors.InvalidError, match="data_hash"):
        await registry.publish("policy", data, progress=change)
    assert (await client.infos("policy")).version_infos == []


@pytest.mark.parametrize(
    "kind", ["bytes", "bytearray", "memoryview", "path", "text path", "BytesIO", "parts", "file", "pipe"]
)
async def test_data_of_every_supported_type_is_published(registry: Any, tmp_path: Path, kind: str) -> None:
    data = os.urandom(100_000)
    path = tmp_path / "weights"
    path.write_bytes(data)
    if kind == "file":
        with path.open("rb") as file:
            version = await registry.publish("policy", file)
            assert not file.closed
    elif kind == "pipe":
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb") as end:
            end.write(data[:50_000])  # the capacity of a pipe
            end.close()
            version = await registry.publish("policy", pipe)
        data = data[:50_000]
    else:
        sources: dict[str, Any] = {
            "bytes": data,
            "bytearray": bytearray(data),
            "memoryview": memoryview(data),
            "path": path,
            "text path": str(path),
            "BytesIO": io.BytesIO(data),
            "parts": Parts((data[:7], b"", memoryview(data)[7:])),
        }
        version = await registry.publish("policy", sources[kind])
    assert await registry.retrieve(version) == data


@given(st.lists(st.binary(max_size=9)), st.integers(1, 12))
def test_data_in_several_buffers_is_sent_in_full_blocks(parts: list[bytes], block_bytes: int) -> None:
    source = Preparation(Parts(parts)).prepared.result().source
    for _attempt in range(2):
        blocks = [bytes(block) for block in source.blocks(block_bytes)]
        assert b"".join(blocks) == b"".join(parts)
        assert all(len(block) == block_bytes for block in blocks[:-1])
    source.close()


async def test_an_open_file_is_read_from_its_position(registry: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"header" + b"weights")
    zipped = tmp_path / "zipped"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    with path.open("rb") as file, path.open("r+b") as buffered, gzip.open(zipped) as unzipped:
        buffered.write(b"HEADER")  # not on the disk yet
        for each in (file, buffered, unzipped, io.BytesIO(path.read_bytes())):
            each.seek(6)
            version = await registry.publish("policy", each)
            assert await registry.retrieve(version) == b"weights"
            assert each.read() == b""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (7, "of type int"),
        (None, "of type NoneType"),
        (io.StringIO("text"), "text file"),
        (memoryview(b"abcdef")[::2], "contiguous"),
    ],
)
async def test_data_without_bytes_is_refused(registry: Any, data: object, message: str) -> None:
    with pytest.raises(errors.InvalidError, match=message):
        await registry.publish("policy", data)


async def test_a_missing_file_raises_an_os_error(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await registry.publish("policy", tmp_path / "nothing")
    assert await registry.list_models() == []


async def test_numbers_and_booleans_in_user_data_become_text_as_json_writes_them(registry: Any) -> None:
    given = {"text": "é", "true": True, "int": -7, "float": 0.1, "nan": float("nan"), "large": 1e300, "whole": 2.0}
    numpy = {"float32": np.float32(0.5), "int64": np.int64(3), "bool": np.bool_(False), "array": np.array([1.5])}
    texts = {"text": "é", "true": "true", "int": "-7", "float": "0.1", "nan": "NaN", "large": "1e+300", "whole": "2.0"}
    texts |= {"float32": "0.5", "int64": "3", "bool": "false", "array": "1.5"}
    assert await registry.create_model("policy", user_data=given | numpy) == ModelInfo("policy", texts)
    assert (await registry.get_model("policy")).user_data == texts
    assert (await registry.publish("policy", b"", user_data=given | numpy)).user_data == texts
    assert (await registry.store("policy", b"", user_data=numpy)).user_data["int64"] == "3"


async def test_other_user_data_is_refused(registry: Any) -> None:
    for value in (None, b"a", 1j, [1], np.array([1, 2]), np.datetime64("2026-01-01"), 10**5000):
        kind = type(value).__name__
        message = rf"user_data\['step'\] is of type {kind}; it must be a string, a number or a boolean"
        with pytest.raises(errors.InvalidError, match=message):
            await registry.publish("policy", b"", user_data={"step": value})
    with pytest.raises(errors.InvalidError, match="the key 1 of user_data is 1; it must be a string"):
        await registry.create_model("policy", user_data={1: "a"})
    with pytest.raises(
        errors.InvalidError, match=r"user_data\['a'\] is '\\ud800'; it must not have unpaired surrogates"
    ):
        await registry.store("policy", b"", user_data={"a": "\ud800"})
    with pytest.raises(errors.InvalidError, match="user_data is 7; it must be a mapping"):
        await registry.create_model("policy", user_data=7)


async def test_an_existing_model_keeps_its_user_data_unless_it_is_replaced(registry: Any) -> None:
    first = await registry.create_model("policy", user_data={"a": "1"}, replace=False)
    assert first == ModelInfo("policy", {"a": "1"})
    assert await registry.create_model("policy", user_data={"b": "2"}, replace=False) == first
    assert await registry.get_model("policy") == first


@pytest.mark.parametrize("model_id", [None, 7, b"policy", "\ud800"])
@pytest.mark.parametrize(
    "name", ["create_model", "delete_model", "get_model", "get_version", "list_versions", "retrieve", "publish"]
)
async def test_an_id_must_be_a_text(registry: Any, name: str, model_id: object) -> None:
    more = [b"weights"] if name == "publish" else []
    with pytest.raises(errors.InvalidError, match="model_id is "):
        await getattr(registry, name)(model_id, *more)


async def test_ids_of_watched_and_tracked_models_are_checked_too(registry: Any) -> None:
    with pytest.raises(errors.InvalidError, match="model_id is None"):
        await anext(registry.watch(None))
    with pytest.raises(errors.InvalidError, match="model_id is None"):
        async with registry.track(None):
            pass


@pytest.mark.parametrize("timeout", [-1, float("nan"), "3", object()])
async def test_an_invalid_duration_is_refused(registry: Any, timeout: Any) -> None:
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: registry.list_models(timeout=timeout),
        lambda: registry.publish("policy", b"weights", timeout=timeout),
        lambda: registry.retrieve("policy", timeout=timeout),
    ]
    for call in calls:
        with pytest.raises(errors.InvalidError, match="it must be a number of seconds"):
            await call()
    with pytest.raises(errors.InvalidError, match="patience_seconds is"):
        await anext(registry.watch("policy", patience_seconds=timeout))
    for options in ({"timeout": timeout}, {"retry_seconds": timeout}):
        for flavour in (ModelRegistry, aio.ModelRegistry):
            with pytest.raises(errors.InvalidError, match="it must be a number of seconds"):
                flavour(**options)


@pytest.mark.parametrize("timeout", [50, 1e12, 10**400, float("inf")])
async def test_an_infinite_timeout_is_allowed(registry: Any, timeout: float) -> None:
    version = await registry.publish("policy", b"weights", timeout=timeout)
    assert await registry.retrieve("policy", timeout=timeout) == b"weights"
    assert await registry.list_versions("policy", timeout=timeout) == [version]
    async with registry.track("policy") as latest:
        assert await latest.wait_for(timeout=timeout) == version


async def test_a_number_may_be_of_any_integer_type(registry: Any) -> None:
    version = await registry.publish("policy", b"weights")

    class Number:
        """An integer type like those of NumPy."""

        def __init__(self, value: int) -> None:
            self.value = value

        def __index__(self) -> int:
            return self.value

    assert await registry.get_version("policy", Number(1)) == version
    assert await registry.retrieve("policy", Number(-1)) == b"weights"
    async with aclosing(registry.watch("policy", after=Number(0))) as versions:
        assert await anext(versions) == version
    with pytest.raises(errors.InvalidError, match="after is '1'; it must be a whole number"):
        await anext(registry.watch("policy", after="1"))
    for number in (1.0, "1", None):
        with pytest.raises(errors.InvalidError, match="it must be a whole number"):
            await registry.retrieve("policy", number)


async def test_a_missing_model_is_created_once_with_its_first_version(registry: Any) -> None:
    assert (await registry.publish("policy", b"1")).number == 1
    assert (await registry.publish("policy", b"2")).number == 2
    assert (await registry.get_model("policy")).user_data == {}


async def test_a_missing_model_is_not_created_without_create(registry: Any) -> None:
    with pytest.raises(errors.NotFoundError, match='publishing a version of model "policy": model "policy" does not'):
        await registry.publish("policy", b"1", create=False)
    assert await registry.list_models() == []


async def test_an_upload_to_a_model_with_user_data_keeps_it(registry: Any) -> None:
    await registry.create_model("policy", user_data={"algorithm": "ppo"})
    await registry.publish("policy", b"1")
    assert (await registry.get_model("policy")).user_data == {"algorithm": "ppo"}


async def test_versions_are_found_by_number_from_either_end(registry: Any) -> None:
    for data in (b"1", b"2", b"3"):
        await registry.publish("policy", data)
    assert [version.number for version in await registry.list_versions("policy")] == [1, 2, 3]
    assert (await registry.get_version("policy")).number == 3
    assert (await registry.get_version("policy", -3)).number == 1
    assert (await registry.get_version("policy", 2)).number == 2
    assert await registry.retrieve("policy", -2) == b"2"
    assert await registry.retrieve("policy", version=1) == b"1"
    second = await registry.get_version("policy", 2)
    assert await registry.retrieve("policy", second) == await registry.retrieve(second) == b"2"


@pytest.mark.parametrize("number", [0, 9, -9, 2**31, -(2**31) - 1, 2**80])
async def test_a_missing_version_is_not_found(registry: Any, number: int) -> None:
    await registry.publish("policy", b"1")
    with pytest.raises(errors.NotFoundError) as caught:
        await registry.retrieve("policy", number)
    assert caught.value.model_id == "policy"
    assert caught.value.version_number == number
    assert str(number) in caught.value.message


async def test_a_version_of_another_model_is_refused(registry: Any) -> None:
    version = await registry.publish("policy", b"1")
    with pytest.raises(errors.InvalidError, match='belongs to model "policy", not to "critic"'):
        await registry.retrieve("critic", version)


async def test_two_version_arguments_are_refused(registry: Any) -> None:
    first = await registry.publish("policy", b"1")
    second = await registry.publish("policy", b"2")
    assert await registry.retrieve(first, 1) == await registry.retrieve(first, -1) == b"1"
    assert await registry.retrieve(first, second) == b"2"
    with pytest.raises(errors.InvalidError, match="both version 1 and version 2 are asked for"):
        await registry.retrieve(first, 2)


async def test_listings_of_many_pages_are_complete(registry: Any, client: Client) -> None:
    await client.create_model("policy")
    large = {"note": "x" * 200_000}
    for _ in range(45):
        await registry.publish("policy", b"", user_data=large)  # 9 MB of infos; a page has 4 MiB
    assert [version.number for version in await registry.list_versions("policy")] == list(range(1, 46))
    for index in range(45):
        await registry.create_model(f"model-{index:02}", user_data=large)
    assert len(await registry.list_models()) == 46


async def test_a_download_replaces_an_existing_file_completely(registry: Any, tmp_path: Path) -> None:
    data = os.urandom(CHUNK_BYTES + 1)
    published = await registry.publish("policy", data)
    path = tmp_path / "policy.bin"
    path.write_bytes(b"old")
    assert await registry.download("policy", path, version=1) == published
    assert path.read_bytes() == data
    assert await registry.download(published, str(path)) == published
    assert sorted(os.listdir(tmp_path)) == ["archive", "policy.bin"]


async def test_a_failed_download_leaves_the_existing_file(registry: Any, tmp_path: Path) -> None:
    path = tmp_path / "policy.bin"
    path.write_bytes(b"old")
    with pytest.raises(errors.NotFoundError):
        await registry.download("policy", path)
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        await registry.download("policy", tmp_path / "nowhere" / "policy.bin")
    assert sorted(os.listdir(tmp_path)) == ["archive", "policy.bin"]


async def test_a_refused_call_reports_its_subject_and_the_servers_message(registry: Any) -> None:
    with pytest.raises(errors.InvalidError) as caught:
        await registry.create_model("a/b")
    assert caught.value.message.startswith('creating model "a/b": model_id "a/b" must not contain / (U+002F)')
    assert caught.value.model_id == "a/b"
    assert isinstance(caught.value, errors.ModelRegistryError)


async def test_status_and_versions_of_the_server_are_returned(registry: Any) -> None:
    await registry.publish("policy", b"1")
    assert (await registry.status())["transient_versions"] == "1"
    assert (await registry.server_versions())["cogment-model-registry"] == cogment_model_registry.__version__


def test_both_clients_have_the_same_calls_with_the_same_arguments() -> None:
    def calls(flavour: type) -> dict[str, list[inspect.Parameter]]:
        methods = inspect.getmembers(flavour, inspect.isfunction)
        return {
            name: list(inspect.signature(method).parameters.values())
            for name, method in methods
            if name == "__init__" or not name.startswith("_")
        }

    assert calls(ModelRegistry) == calls(aio.ModelRegistry)
    for flavour in (ModelRegistry, aio.ModelRegistry):
        for name in calls(flavour):
            assert name == "__init__" or inspect.getdoc(getattr(flavour, name)), name


async def test_a_file_of_unknown_size_is_read_completely(registry: Any) -> None:
    version = await registry.publish("policy", "/proc/self/status")
    assert (await registry.retrieve(version)).startswith(b"Name:")
    path = await registry.publish("policy", "/proc/version")
    assert (await registry.retrieve(path)).startswith(b"Linux")


async def test_a_memory_mapped_file_can_be_published(registry: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"weights")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            version = await registry.publish("policy", mapped)
    finally:
        os.close(descriptor)
    assert await registry.retrieve(version) == b"weights"


async def test_a_download_may_have_the_longest_name_that_the_system_allows(registry: Any, tmp_path: Path) -> None:
    await registry.publish("policy", b"weights")
    for name in ("x" * 255, utf_8("\N{SNAKE}" * 63)):
        await registry.download("policy", tmp_path / name)
        assert (tmp_path / name).read_bytes() == b"weights"


async def test_a_download_keeps_a_symbolic_link_and_the_permissions_of_what_it_replaces(
    registry: Any, tmp_path: Path
) -> None:
    await registry.publish("policy", b"weights")
    target, link = tmp_path / "elsewhere" / "weights", tmp_path / "link"
    target.parent.mkdir()
    target.write_bytes(b"old")
    target.chmod(0o600)
    link.symlink_to(target)
    await registry.download("policy", link)
    assert link.is_symlink()
    assert target.read_bytes() == b"weights"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert os.listdir(target.parent) == ["weights"]


async def test_a_download_replaces_only_regular_files(registry: Any, tmp_path: Path) -> None:
    """The error comes before anything is fetched."""
    reports: list[object] = []
    await registry.publish("policy", b"weights")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    with pytest.raises(FileExistsError, match="not a regular file"):
        await registry.download("policy", tmp_path / "pipe", progress=reports.append)
    with pytest.raises(IsADirectoryError):
        await registry.download("policy", tmp_path / "directory", progress=reports.append, unpack=False)
    assert reports == []
    assert sorted(os.listdir(tmp_path)) == ["archive", "directory", "pipe"]


async def test_a_named_pipe_is_read_when_someone_writes_into_it(registry: Any, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    publishing = asyncio.ensure_future(registry.publish("policy", tmp_path / "pipe"))
    await asyncio.to_thread((tmp_path / "pipe").write_bytes, b"weights" * 100_000)
    assert await registry.retrieve(await publishing) == b"weights" * 100_000
