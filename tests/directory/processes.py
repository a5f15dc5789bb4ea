"""Directories as processes of their own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import ServerProcess


class DirectoryProcess(ServerProcess):
    """`cogment services directory` in a process of its own."""

    def __init__(self, *flags: str, port: int = 0) -> None:
        super().__init__(Path(), "--persistence_file=", *flags, f"--port={port}", service="directory")

    @property
    def endpoint(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"


@contextmanager
def directory_process(*flags: str, port: int = 0) -> Iterator[DirectoryProcess]:
    """Return a context manager in which a Directory serves; what is left of it at the end is killed."""
    process = DirectoryProcess(*flags, port=port)
    try:
        yield process
    finally:
        process.kill()
