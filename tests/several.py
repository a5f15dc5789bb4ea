"""Several servers that share a catalog and an archive: in the process of a test, or in processes of their own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

from cogment_model_registry.aio import ModelRegistry
from cogment_model_registry.server.composition import Server, running
from cogment_model_registry.settings import MIB, Settings
from tests.processes import ServerProcess, server_process

SETTINGS = Settings(
    port=0, host="127.0.0.1", cache_max_bytes=64 * MIB, grace_seconds=0, local_socket="", retention_seconds=0
)


def settings_of(database: str, folder: Path, **others: object) -> Settings:
    """Return the settings of one of several servers."""
    return replace(SETTINGS, catalog_url=database, archive_url=f"file://{folder}", **others)  # type: ignore[arg-type]


@asynccontextmanager
async def several_servers(settings: Settings, count: int = 2) -> AsyncIterator[list[Server]]:
    """Run servers in this process; a context manager."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(settings)) for _ in range(count)]


@asynccontextmanager
async def several(settings: Settings, count: int = 2) -> AsyncIterator[list[ModelRegistry]]:
    """Run servers in this process; a context manager with a client of each."""
    async with several_servers(settings, count) as servers, AsyncExitStack() as stack:
        yield [await stack.enter_async_context(ModelRegistry(endpoint(server))) for server in servers]


@contextmanager
def several_processes(database: str, folder: Path, *flags: str, count: int = 2) -> Iterator[list[ServerProcess]]:
    """Run servers in processes of their own; a context manager."""
    shared = (f"--catalog_url={database}", f"--archive_url=file://{folder}", "--local_socket=off", *flags)
    with ExitStack() as stack:
        yield [stack.enter_context(server_process(None, *shared)) for _ in range(count)]


def endpoint(server: Server | ServerProcess) -> str:
    """Return where a server is reached."""
    return f"grpc://127.0.0.1:{server.port}"
