"""The progress of transfers: callbacks and bars."""

import asyncio
import io
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from cogment_model_registry import Progress
from cogment_model_registry.client import progress as progress_module
from cogment_model_registry.client.attempts import CHUNK_BYTES
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.server.composition import Server
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import DATA, Call, chunks, infos, scripted


async def test_a_callback_receives_the_progress_of_each_chunk(registry: Any, tmp_path: Path) -> None:
    reports: list[Progress] = []
    await registry.create_model("policy")
    await registry.publish("policy", DATA, progress=reports.append)
    assert reports[-1] == Progress('publishing a version of model "policy"', len(DATA), len(DATA))
    assert [each.done_bytes for each in reports] == [CHUNK_BYTES, 2 * CHUNK_BYTES, len(DATA)]
    reports.clear()
    await registry.retrieve("policy", progress=reports.append)
    assert reports[-1] == Progress('retrieving version 1 of model "policy"', len(DATA), len(DATA))
    reports.clear()
    await registry.download("policy", tmp_path / "file", progress=reports.append)
    assert [each.done_bytes for each in reports] == sorted(each.done_bytes for each in reports)


async def test_the_client_has_a_callback_for_all_its_transfers(flavour: str, server: Server) -> None:
    reports: list[Progress] = []
    async with opened(flavour, server.port, progress=reports.append) as registry:
        await registry.store("policy", DATA)
        assert reports[-1].text == 'storing a version of model "policy"'
        reports.clear()
        await registry.retrieve("policy", progress=False)
        assert reports == []


async def test_a_restarted_transfer_reports_zero_bytes(flavour: str) -> None:
    async def answer(call: Call) -> None:
        if call.number == 1:
            await chunks(DATA[:CHUNK_BYTES])(call)
            await call.fail(grpc.StatusCode.UNAVAILABLE)
        await chunks(DATA)(call)

    reports: list[Progress] = []
    async with (
        scripted(RetrieveVersionInfos=infos, RetrieveVersionData=answer) as server,
        opened(flavour, server.port) as registry,
    ):
        await registry.retrieve("policy", progress=reports.append)
    assert [each.done_bytes for each in reports] == [CHUNK_BYTES, 0, len(DATA)]


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
async def test_an_error_of_a_callback_ends_the_transfer(
    registry: Any, tmp_path: Path, kind: type[BaseException]
) -> None:
    await registry.publish("policy", DATA)

    def refuse(_progress: Progress) -> None:
        raise kind("enough")

    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: registry.publish("policy", DATA[1:], progress=refuse),
        lambda: registry.retrieve("policy", progress=refuse),
        lambda: registry.download("policy", tmp_path / "file", progress=refuse),
    ]
    for call in calls:
        async with asyncio.timeout(20):
            with pytest.raises(kind, match="enough"):
                await call()
    assert len(await registry.list_versions("policy")) == 1
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    ("wish", "is_terminal", "is_shown"),
    [(True, False, True), (None, False, False), (None, True, True), (False, True, False)],
)
async def test_a_bar_is_shown_on_request(
    registry: Any, monkeypatch: pytest.MonkeyPatch, wish: bool | None, is_terminal: bool, is_shown: bool
) -> None:
    monkeypatch.setattr(progress_module, "_BAR_DELAY_SECONDS", 0.0)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    await registry.publish("policy", DATA, progress=wish)
    assert ('publishing a version of model "policy": 100%' in terminal.getvalue()) is is_shown
    size = size_text(len(DATA))
    assert (f"| {size}/{size} [" in terminal.getvalue()) is is_shown


@pytest.mark.parametrize("stream", [None, object()], ids=["closed", "replaced"])
async def test_progress_works_without_a_standard_error(
    registry: Any, monkeypatch: pytest.MonkeyPatch, stream: object
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert await registry.retrieve(await registry.publish("policy", b"weights")) == b"weights"
