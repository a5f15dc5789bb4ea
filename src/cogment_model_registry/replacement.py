"""A file that is written anew: whole and durable under its name, or not there at all."""

import contextlib
import os
import secrets
from typing import BinaryIO

_NAME_MAX_CHARACTERS = 200  # of 255 bytes, with room for what makes a temporary name unique


class Replacement:
    """The new content of a file, in a temporary file beside it until `commit`. To be closed, also after that.

    Args:
        path: The file; what is there already stays until then.
        mode: Its permissions, of which the process's mask takes its part.

    Attributes:
        file: What to write to; unbuffered.

    Raises:
        OSError: The directory takes no file.
    """

    def __init__(self, path: str | os.PathLike[str], mode: int = 0o666) -> None:
        self._directory, self._name = os.path.split(os.path.abspath(os.fspath(path)))
        name = f".{self._name[:_NAME_MAX_CHARACTERS]}.{secrets.token_hex(8)}"
        self._temporary = os.path.join(self._directory, name)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.file: BinaryIO = open(os.open(self._temporary, flags, mode), "w+b", buffering=0)  # noqa: SIM115 # see `close`
        self._is_there = True

    def commit(self) -> None:
        """Give the file its name: durable on return.

        Raises:
            OSError: It cannot be.
        """
        self.file.flush()
        os.fsync(self.file.fileno())
        os.rename(self._temporary, os.path.join(self._directory, self._name))
        self._is_there = False
        parent = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def close(self) -> None:
        """Close the file, and remove it unless it was committed."""
        self.file.close()
        if self._is_there:
            self._is_there = False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._temporary)
