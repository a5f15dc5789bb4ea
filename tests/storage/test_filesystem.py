"""The archive on a directory fulfils the contract; what is its own is tested below."""

from pathlib import Path

from cogment_model_registry.storage.filesystem import DirectoryArchive
from cogment_model_registry.testing.archive import ArchiveSuite


class TestDirectoryArchive(ArchiveSuite):
    def make(self, place: Path) -> DirectoryArchive:
        return DirectoryArchive(str(place / "archive"), model_id_max_bytes=128)
