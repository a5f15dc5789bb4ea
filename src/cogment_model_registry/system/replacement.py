"""A file that is replaced as a whole: its new content is complete and durable under its name, or absent."""

import contextlib
import errno
import os
import secrets
import stat
import threading
from typing import BinaryIO

from cogment_model_registry.system.paths import expanded

_NAME_MAX_CHARACTERS = 40
"""How much of the file's name a temporary name repeats: in any script, that fits the 255 bytes of a name."""

_BINARY: int = getattr(os, "O_BINARY", 0)
"""On Windows, the flag that keeps bytes as they are."""

_NO_FOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
"""The flag that opens no symbolic link; 0 on Windows."""

_DIRECTORY: int | None = getattr(os, "O_DIRECTORY", None)
"""The flag that opens a directory; None on Windows, which cannot sync one."""


class Replacement:
    """The new content of a file, in a temporary file in the same directory until `commit`.

    Open it first, and close it in any case. A symbolic link stays one: the file that it leads to is replaced.
    One thread may open it while another one closes it: then no file is left behind.

    Args:
        path: The file; its present content stays until `commit`.
        mode: The permissions of a new file, less those that the process's umask takes away.
        keeps_mode: Whether an existing file keeps its permissions; otherwise it gets those of a new one.
        suffix: What the name of the temporary file adds to that of the file, in place of a random name. Then the
            temporary file may exist, and it stays when the replacement is closed without a commit; the caller sees to
            it that nobody else uses it.
    """

    def __init__(
        self, path: str | os.PathLike[str], mode: int = 0o666, *, keeps_mode: bool = True, suffix: str = ""
    ) -> None:
        self._directory, self._name = os.path.split(os.path.realpath(expanded(path)))
        name = f".{self._name[:_NAME_MAX_CHARACTERS]}.{secrets.token_hex(8)}"
        self._temporary = os.path.join(self._directory, self._name + suffix if suffix else name)
        self._stays = bool(suffix)
        self._mode = mode
        self._keeps_mode = keeps_mode
        self._lock = threading.Lock()
        self._is_closed = False
        self._file: BinaryIO | None = None
        self._is_there = False

    @property
    def temporary_path(self) -> str:
        """The temporary file."""
        return self._temporary

    def open(self) -> BinaryIO:
        """Open the temporary file, and return it.

        Raises:
            OSError: The directory takes no file, or the name belongs to something that is not a regular file.
            ValueError: The replacement is closed.
        """
        with self._lock:
            if self._is_closed:
                raise ValueError("the replacement is closed")
            replaced_mode = self._replaced_mode() if self._keeps_mode else None
            flags = os.O_RDWR | os.O_CREAT | _BINARY | (_NO_FOLLOW if self._stays else os.O_EXCL)
            try:
                descriptor = os.open(self._temporary, flags, self._mode if replaced_mode is None else 0o600)
            except OSError as error:
                # The caller knows this name.
                raise type(error)(error.errno, error.strerror, os.path.join(self._directory, self._name)) from None
            self._is_there = not self._stays
            self._file = open(descriptor, "w+b")  # noqa: SIM115 # see `close`
            if replaced_mode is not None:
                os.chmod(descriptor if os.chmod in os.supports_fd else self._temporary, replaced_mode)
            return self._file

    def _replaced_mode(self) -> int | None:
        """Return the permissions of the file that is to be replaced; None if it does not exist.

        Raises:
            OSError: It is not a regular file, so no file may take its place.
        """
        path = os.path.join(self._directory, self._name)
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if not stat.S_ISREG(mode):
            raise FileExistsError(errno.EEXIST, "not a regular file", path)
        return mode & 0o777

    def commit(self) -> None:
        """Give the file its name: durable on return.

        Raises:
            OSError: The file could not be written, renamed or made durable.
        """
        if self._file is None:
            raise ValueError("the replacement is not open")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()  # Windows renames no file that is open
        os.replace(self._temporary, os.path.join(self._directory, self._name))
        self._is_there = False
        if _DIRECTORY is None:
            return
        parent = os.open(self._directory, os.O_RDONLY | _DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)

    def close(self) -> None:
        """Close the file, and remove it unless it was committed, or has a suffix."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                with contextlib.suppress(OSError):  # the disk may have no room for what was not committed
                    self._file.close()
            if self._is_there:
                self._is_there = False
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._temporary)
