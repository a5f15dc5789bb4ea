"""A server in the process of a test, over a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from cogment_model_registry.server.backends import open_backends
from cogment_model_registry.server.composition import Server, running
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.storage.filesystem.files import Files


@asynccontextmanager
async def serving(
    archive_dir: Path, settings: Settings | None = None, files: Files | None = None
) -> AsyncIterator[Server]:
    """Run a server on a free port of the loopback interface; a context manager.

    Args:
        archive_dir: The directory of its archive.
        settings: Its other settings; if None, a memory budget of 64 MiB, no grace, no local socket, so that
            everything goes over the network, and no retention but on request.
        files: The file operations of its archive; if None, those on real files.
    """
    settings = settings or Settings(cache_max_bytes=64 * MIB, grace_seconds=0, local_socket="", retention_seconds=0)
    settings = replace(settings, port=0, host="127.0.0.1", archive_dir=str(archive_dir))
    async with running(settings, partial(open_backends, files=files)) as server:
        yield server
