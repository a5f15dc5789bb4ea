"""A short session of both clients and the command line, for an environment with only the package.

Takes the endpoint of a registry and the id of a model that does not exist. Used by `tools/try_wheel.py`.
"""

import asyncio
import pathlib
import subprocess
import sys
import tempfile

from cogment_model_registry import ModelRegistry, aio, errors

WEIGHTS = bytes(range(256)) * 40_000  # several chunks
SECONDS = 30.0


def blocking_session(endpoint: str, model_id: str) -> None:
    """Publish, store, retrieve and track with the blocking client."""
    with tempfile.TemporaryDirectory() as folder, ModelRegistry(endpoint, cache_dir=f"{folder}/cache") as registry:
        path = pathlib.Path(folder, "weights")
        path.write_bytes(WEIGHTS)
        first = registry.publish(model_id, path, user_data={"step": "1"})
        with registry.track(model_id) as latest:
            assert latest.wait_for(timeout=SECONDS) == first
            second = registry.store(model_id, b"better")
            assert latest.wait_for(newer_than=first.number, timeout=SECONDS) == second
        for _ in range(2):  # first from the registry, then from the cache
            assert registry.retrieve(first) == WEIGHTS
        assert registry.download(model_id, path) == second
        assert path.read_bytes() == b"better"
        assert [each.number for each in registry.list_versions(model_id)] == [1, 2]


async def asyncio_session(endpoint: str, model_id: str) -> None:
    """Publish, retrieve, watch and track with the client for asyncio."""
    async with aio.ModelRegistry(endpoint) as registry:
        third = await registry.publish(model_id, WEIGHTS)
        async with registry.track(model_id) as latest:
            assert await latest.wait_for(timeout=SECONDS) == third
        async for version in registry.watch(model_id, after=2):
            assert await registry.retrieve(version) == WEIGHTS
            break
        try:
            await registry.retrieve(f"{model_id}-missing")
        except errors.NotFoundError:
            return
    raise AssertionError("a model that does not exist was retrieved")


def command_line_session(endpoint: str, model_id: str) -> None:
    """Show the model on the command line, and run commands that need the extra `server`."""

    def cogment(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cogment_model_registry", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)

    listed = cogment("client", "model_registry", "list_versions", model_id, f"--endpoint={endpoint}", "--quiet")
    assert (listed.returncode, listed.stdout.split(), listed.stderr) == (0, ["1", "2", "3"], ""), listed
    for words in (["services", "model_registry"], ["archive", "verify", "."]):
        refused = cogment(*words)
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused
        assert refused.stderr.startswith(f"error: cogment {words[0]} needs "), refused


if __name__ == "__main__":
    blocking_session(*sys.argv[1:])
    asyncio.run(asyncio_session(*sys.argv[1:]))
    command_line_session(*sys.argv[1:])
