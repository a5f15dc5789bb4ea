"""An archive directory as its tools open it: without a server, and perhaps next to one."""

import os
from dataclasses import dataclass

from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.claim import OwnedFiles, is_held


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """An open archive directory.

    Attributes:
        files: The file operations.
        root: Descriptor of the directory.
        path: Its path.
    """

    files: OwnedFiles
    root: int
    path: str

    @property
    def database(self) -> str:
        """The path of its database."""
        return os.path.join(self.path, layout.CATALOG_NAME)

    def is_in_use(self) -> bool:
        """Return whether a server uses it now."""
        return is_held(self.files, self.root)
