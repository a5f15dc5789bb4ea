"""Directories as separate processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ServerProcess


class DirectoryProcess(ServerProcess):
    """`cogment services directory` in a separate process."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        super().__init__(Path(), "--persistence_file=", *flags, f"--port={port}", service="directory")

    @property
    def endpoint(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


@contextmanager
def directory_process(*flags: str, port: int = 0) -> Iterator[DirectoryProcess]:
    """Return a context manager for a Directory that serves; if it still runs at the end, it is killed."""
    process = DirectoryProcess(*flags, port=port)
    try:
        yield process
    finally:
        process.kill()
