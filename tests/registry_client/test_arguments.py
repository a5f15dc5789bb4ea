"""Invalid arguments of every call: each raises an error of this package that names the argument."""

import io
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cogment_model_registry import ModelRegistry, VersionInfo, aio, errors

VERSION = VersionInfo("policy", 1, 1, False, "", 0)


def released() -> memoryview:
    view = memoryview(b"released")
    view.release()
    return view


def closed_file() -> io.BytesIO:
    file = io.BytesIO(b"data")
    file.close()
    return file


def closed_map() -> mmap.mmap:
    mapped = mmap.mmap(-1, 10)
    mapped.close()
    return mapped


NOT_IDS: list[Any] = [None, 7, b"policy", Path("policy"), "\ud800"]
NOT_SECONDS: list[Any] = ["1", -1, float("nan"), b"", 1j, [1], np.array([1, 2])]
NOT_WHOLE: list[Any] = ["1", 1.0, None, b"", [1], np.array([1, 2]), np.array(1.5)]
NOT_LIMITS: list[Any] = ["1", 1.0, -1]
NOT_USER_DATA: list[Any] = [7, "ab", [1], {"a": None}, {1: "a"}, {"\ud800": "a"}, {"a": "\ud800"}, {"a": b"b"}]
NOT_PATHS: list[Any] = [None, 7, 1.5, [b"a"], "a\0b", b"a\0b"]
NOT_DATA: list[Any] = [
    *(None, 7, 1.5, [b"a"], "a\0b", io.StringIO("a"), released(), closed_file(), closed_map(), object()),
    *(np.array(["2026-01-01"], "datetime64[D]"), np.array([object()]), np.zeros((2, 3)).T),
    np.zeros(1, [("a", object)]),
]
NOT_FUNCTIONS: list[Any] = [1, "bar", b"", [print], np.array([1, 2])]
NOT_TEXTS: list[Any] = [7, b"grpc://localhost:1", Path("a"), ["a"], object()]
NOT_ENDPOINTS = [
    "grpc://h",
    "grpc://h:x",
    "grpc://[:1",
    "http://h:1",
    "\ud800",
    "grpc://h:1\0",
    "grpc://h:99999",
    "h:1",
]
NOT_DISCOVERED = ["cogment://[", "cogment://discover/service?__id=" + "1" * 5000, "cogment://discover?\ud800"]

CALLS: dict[str, tuple[Callable[[Any, Any], Any], list[Any]]] = {
    "create_model": (lambda registry, wrong: registry.create_model(wrong), NOT_IDS),
    "create_model user_data": (lambda registry, wrong: registry.create_model("a", user_data=wrong), NOT_USER_DATA),
    "create_model timeout": (lambda registry, wrong: registry.create_model("a", timeout=wrong), NOT_SECONDS),
    "delete_model": (lambda registry, wrong: registry.delete_model(wrong), NOT_IDS),
    "get_model": (lambda registry, wrong: registry.get_model(wrong), NOT_IDS),
    "list_models timeout": (lambda registry, wrong: registry.list_models(timeout=wrong), NOT_SECONDS),
    "get_version": (lambda registry, wrong: registry.get_version(wrong), NOT_IDS),
    "get_version number": (lambda registry, wrong: registry.get_version("policy", wrong), NOT_WHOLE),
    "list_versions": (lambda registry, wrong: registry.list_versions(wrong), NOT_IDS),
    "publish": (lambda registry, wrong: registry.publish(wrong, b""), NOT_IDS),
    "publish data": (lambda registry, wrong: registry.publish("policy", wrong), NOT_DATA),
    "publish user_data": (lambda registry, wrong: registry.publish("policy", b"", user_data=wrong), NOT_USER_DATA),
    "store timeout": (lambda registry, wrong: registry.store("policy", b"", timeout=wrong), NOT_SECONDS),
    "retrieve": (lambda registry, wrong: registry.retrieve(wrong), NOT_IDS),
    "retrieve version": (lambda registry, wrong: registry.retrieve("policy", wrong), NOT_WHOLE),
    "retrieve both": (lambda registry, wrong: registry.retrieve(VERSION, wrong), ["1", 3, None]),
    "download path": (lambda registry, wrong: registry.download("policy", wrong), NOT_PATHS),
    "resumed path": (lambda registry, wrong: registry.download("policy", wrong, resume=True), NOT_PATHS),
    "watch": (lambda registry, wrong: registry.watch(wrong), NOT_IDS),
    "watch after": (lambda registry, wrong: registry.watch("policy", after=wrong), NOT_WHOLE),
    "watch patience": (lambda registry, wrong: registry.watch("policy", patience_seconds=wrong), NOT_SECONDS),
    "find_versions limit": (lambda registry, wrong: registry.find_versions("policy", limit=wrong), NOT_LIMITS),
    "find_models limit": (lambda registry, wrong: registry.find_models(limit=wrong), NOT_LIMITS),
    "consumers limit": (lambda registry, wrong: registry.consumers("policy", limit=wrong), NOT_LIMITS),
    "history limit": (lambda registry, wrong: registry.history("policy", limit=wrong), NOT_LIMITS),
    "mirror": (lambda registry, wrong: registry.mirror("directory", wrong), NOT_IDS),
    "mirror directory": (lambda registry, wrong: registry.mirror(wrong), NOT_PATHS),
    "mirror after": (lambda registry, wrong: registry.mirror("directory", after=wrong), NOT_WHOLE),
    "track": (lambda registry, wrong: registry.track(wrong), NOT_IDS),
    "track decode": (lambda registry, wrong: registry.track("policy", decode=wrong), NOT_FUNCTIONS),
    "publish progress": (lambda registry, wrong: registry.publish("a", b"", progress=wrong), NOT_FUNCTIONS),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_wrong_argument_is_refused(registry: Any, name: str) -> None:
    # Calls that only create an object refuse at once, without being awaited or a thread.
    made = getattr(registry, "registry", registry) if name.startswith(("watch", "mirror", "track")) else registry
    call, all_wrong = CALLS[name]
    for wrong in all_wrong:
        try:
            await call(made, wrong)
        except errors.InvalidError as error:
            text = error.message
        else:
            pytest.fail(f"{wrong!r} was taken")
        assert len(text.splitlines()) == 1, repr(wrong)


MAKING: dict[str, list[Any]] = {
    "endpoint": [*NOT_TEXTS, *NOT_ENDPOINTS, *NOT_DISCOVERED],
    "directory_endpoint": [*NOT_TEXTS, *NOT_ENDPOINTS],
    "directory_authentication_token": [*NOT_TEXTS, "\ud800", "a\nb", "é"],
    **{name: [each for each in NOT_PATHS if each is not None] for name in ("tls_ca", "tls_certificate", "tls_key")},
    "timeout": NOT_SECONDS,
    "retry_seconds": [*NOT_SECONDS, None],
    "cache_dir": [each for each in NOT_PATHS if each is not None],
    "cache_max_bytes": NOT_WHOLE,
}


@pytest.mark.parametrize("name", MAKING)
@pytest.mark.parametrize("make", [ModelRegistry, aio.ModelRegistry], ids=["blocking", "asyncio"])
def test_a_client_refuses_a_wrong_argument(make: Callable[..., Any], name: str) -> None:
    for wrong in MAKING[name]:
        needs_directory = name != "directory_endpoint" and (not isinstance(wrong, str) or wrong.startswith("cogment"))
        directory = {"directory_endpoint": "grpc://d:1"} if needs_directory or "token" in name else {}
        try:
            make(**{**directory, name: wrong})
        except (errors.InvalidError, errors.SettingError) as error:
            text = str(error)
        else:
            pytest.fail(f"{wrong!r} was taken")
        assert name in text, repr(wrong)
        if "token" in name:
            assert not isinstance(wrong, str | bytes) or repr(wrong).strip("b'") not in text


@pytest.mark.parametrize(
    "data", [np.array([1 + 2j]), np.array(["ab"]), np.zeros((2, 0, 3)), np.ones(2, [("O", ">i4")])]
)
async def test_every_contiguous_buffer_is_published(registry: Any, data: Any) -> None:
    assert await registry.retrieve(await registry.publish("policy", data)) == data.tobytes()


async def test_a_file_that_cannot_be_read_or_written_is_an_error_of_the_system(registry: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    await registry.publish("policy", b"data")
    with (tmp_path / "other").open("wb") as file, pytest.raises(OSError, match="read"):
        await registry.publish("policy", file)
    for path in (tmp_path / "nothing" / "file", tmp_path, tmp_path / "file" / "file"):
        for wrong in (path, str(path), os.fsencode(path)):
            with pytest.raises(OSError, match=path.name):
                await registry.download("policy", wrong)
            with pytest.raises(OSError, match=path.name):
                await registry.download("policy", wrong, resume=True)
        if path != tmp_path:  # a folder is packed
            with pytest.raises(OSError, match=path.name):
                await registry.publish("policy", path)
