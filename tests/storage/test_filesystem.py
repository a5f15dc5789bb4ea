"""The archive on a directory fulfils the contract; what is its own is tested below."""

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import pytest

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.files import Files
from cogment_model_registry.storage.filesystem import DirectoryArchive
from cogment_model_registry.testing.archive import ArchiveSuite


def archive_at(place: Path, files: Files | None = None) -> DirectoryArchive:
    return DirectoryArchive(str(place / "archive"), model_id_max_bytes=128, files=files)


class TestDirectoryArchive(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return archive_at(place)


async def test_lock_that_is_another_name_of_a_file_elsewhere_leaves_that_file_alone(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    os.link(tmp_path / "elsewhere", tmp_path / "archive/.lock")
    archive = archive_at(tmp_path)
    await archive.open()
    second = archive_at(tmp_path)
    with pytest.raises(StartError, match=f"in use by process {os.getpid()}"):
        await second.open()
    await second.close()
    await archive.close()
    assert (tmp_path / "elsewhere").read_text() == "precious"


class TellingFiles(Files):
    """Tells that an archive is being opened: its lock is taken next."""

    def __init__(self) -> None:
        self.opened = threading.Event()

    def open_root(self, path: str) -> int:
        root = super().open_root(path)
        self.opened.set()
        return root


async def test_look_at_the_lock_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive/.lock").touch()
    files = TellingFiles()
    archive = archive_at(tmp_path, files)
    with (tmp_path / "archive/.lock").open() as looked_at:
        fcntl.flock(looked_at, fcntl.LOCK_SH)
        opening = asyncio.ensure_future(archive.open())
        await asyncio.to_thread(files.opened.wait)
    await opening
    await archive.close()
