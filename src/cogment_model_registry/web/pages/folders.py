"""The files of a version that is a folder, from the headers of its tar archive; the contents are not read."""

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.records.folders import FOLDER_FORMAT, FORMAT_KEY
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.web.pages.queries import read_part
from cogment_model_registry.web.registries import Registry

_FILES_MAX = 200
"""How many files a page shows."""

_READS_MAX = 100
"""How many parts are read for them."""

_PART_BYTES = 16 * 1024
_LONG_NAME_MAX_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Folder:
    """The files of a version.

    Attributes:
        files: Their paths and sizes in bytes, in the order of the archive.
        is_whole: Whether these are all of them.
        problem: Why they cannot be shown; empty otherwise.
    """

    files: Sequence[tuple[str, int]] = ()
    is_whole: bool = True
    problem: str = ""


class _Window:
    """Reads a version in parts, and keeps the last part."""

    def __init__(self, registry: Registry, version: Version) -> None:
        self._registry = registry
        self._version = version
        self._start = 0
        self._data = b""
        self.reads = 0

    async def read(self, start: int, length: int) -> bytes:
        """Return some bytes; fewer at the end."""
        if not self._start <= start or start + length > self._start + len(self._data):
            self.reads += 1
            self._start, self._data = start, await read_part(self._registry, self._version, start, _PART_BYTES)
        return self._data[start - self._start : start - self._start + length]


async def read_folder(registry: Registry, version: Version) -> Folder | None:
    """Return the files of a version; None if it is not a folder."""
    if version.user_data.get(FORMAT_KEY) != FOLDER_FORMAT:
        return None
    window, files = _Window(registry, version), list[tuple[str, int]]()
    try:
        is_whole = await _read_headers(window, files)
    except (ModelRegistryError, tarfile.TarError, ValueError):
        return Folder(problem="It is marked as a folder, but its bytes are not a tar archive.")
    return Folder(files, is_whole)


async def _read_headers(window: _Window, files: list[tuple[str, int]]) -> bool:
    """Add the files of an archive; return whether these are all.

    Raises:
        TarError: A header is malformed.
    """
    start, long_name = 0, ""
    while True:
        if len(files) >= _FILES_MAX or window.reads >= _READS_MAX:
            return False
        block = await window.read(start, tarfile.BLOCKSIZE)
        if not block.strip(b"\0"):
            return True
        entry = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if entry.size < 0:
            raise tarfile.TarError("a negative size")
        if entry.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            data = await window.read(start + tarfile.BLOCKSIZE, min(entry.size, _LONG_NAME_MAX_BYTES))
            long_name = _name_in(data, is_pax=entry.type == tarfile.XHDTYPE)
        else:
            if entry.isfile():
                name = long_name or entry.name
                files.append((name.encode("utf-8", "replace").decode("utf-8", "replace"), entry.size))
            long_name = ""
        start += tarfile.BLOCKSIZE + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _name_in(data: bytes, *, is_pax: bool) -> str:
    """Return the long name that an extra entry has for the next one; empty for none."""
    if not is_pax:
        return data.rstrip(b"\0").decode("utf-8", "replace")
    for record in data.split(b"\n"):
        _, _, setting = record.partition(b" ")
        if setting.startswith(b"path="):
            return setting.removeprefix(b"path=").decode("utf-8", "replace")
    return ""
