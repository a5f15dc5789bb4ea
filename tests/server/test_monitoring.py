"""The replies of the metrics port other than metrics: liveness, readiness, and 404."""

import asyncio
import threading
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest

from cogment_model_registry.server import monitoring
from cogment_model_registry.settings import Settings
from cogment_model_registry.testing.server import serving
from tests.client import connected, refused
from tests.server.test_health import FailingFiles
from tests.waiting import PATIENCE_SECONDS, eventually

SETTINGS = Settings(metrics_port=0, grace_seconds=0)


def answer(port: int | None, path: str) -> tuple[int, str, str]:
    """Return the status, the type and the text of the reply to a GET."""
    try:
        reply = urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE_SECONDS)
    except urllib.error.HTTPError as error:
        reply = error
    with reply:
        return reply.status, reply.headers["Content-Type"], reply.read().decode()


async def status(port: int | None, path: str) -> int:
    return (await asyncio.to_thread(answer, port, path))[0]


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/Metrics", "/healthz/live", "/favicon.ico"])
async def test_an_unknown_path_is_404_and_the_reply_names_the_known_ones(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, SETTINGS) as server:
        code, kind, text = await asyncio.to_thread(answer, server.metrics_port, path)
    assert (code, kind) == (404, "text/plain; charset=utf-8")
    assert "/metrics, /healthz and /readyz" in text


async def test_a_server_that_serves_is_healthy_and_ready(tmp_path: Path) -> None:
    async with serving(tmp_path, SETTINGS) as server:
        for path in ("/healthz", "/readyz", "/readyz?verbose=1"):
            assert await asyncio.to_thread(answer, server.metrics_port, path) == (
                *(200, "text/plain; charset=utf-8"),
                "ok\n",
            )
        assert await status(server.metrics_port, "/metrics") == 200


async def test_a_server_whose_archive_failed_is_healthy_and_not_ready(tmp_path: Path) -> None:
    files = FailingFiles()
    async with serving(tmp_path, SETTINGS, files) as server, connected(server.port) as client:
        await client.create_model("m")
        files.fails = True
        with refused(grpc.StatusCode.UNAVAILABLE):
            await client.store("m", b"lost")

        async def is_not_ready() -> bool:
            return await status(server.metrics_port, "/readyz") == 503

        await eventually(is_not_ready)
        assert await status(server.metrics_port, "/healthz") == 200


async def test_a_server_whose_event_loop_is_blocked_is_neither_healthy_nor_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitoring, "LOOP_SECONDS", 0.1)
    async with serving(tmp_path, SETTINGS) as server:
        answers: list[tuple[int, str, str]] = []

        def ask() -> None:
            answers.extend(answer(server.metrics_port, path) for path in ("/healthz", "/readyz"))

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()  # blocks this event loop, which is the server's
        assert [each[0] for each in answers] == [503, 503]
        assert "did not answer within 0.1 seconds" in answers[0][2]
        monkeypatch.setattr(monitoring, "LOOP_SECONDS", PATIENCE_SECONDS)
        assert await status(server.metrics_port, "/healthz") == 200
