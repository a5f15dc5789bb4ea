"""Archives of many versions, written directly with the names and texts of the layout, and without syncs."""

import contextlib
import os
from pathlib import Path

from cogment_model_registry.records.payload import PayloadHash
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.storage.filesystem import layout
from cogment_model_registry.storage.filesystem.files import Files

_DATA = b"weights of a version"
_PLACEHOLDER = 4_000_000_000
"""A number that occurs nowhere else in the metadata, to be replaced; formatting each file would take minutes."""


def model_name(index: int) -> str:
    """Return the id of a model of `generate`."""
    return f"model{index:03d}"


def generate(archive_dir: Path, models: int, first_number: int, last_number: int) -> None:
    """Write versions into an archive directory that no server uses; create missing models.

    Args:
        archive_dir: The directory.
        models: How many models get versions.
        first_number: The first version of each.
        last_number: The last version of each.
    """
    files = Files()
    archive_dir.mkdir(parents=True, exist_ok=True)
    checksum = PayloadHash()
    checksum.update([_DATA])
    for index in range(models):
        model_id = model_name(index)
        path = archive_dir / model_id
        path.mkdir(exist_ok=True)
        template = layout.format_version(
            VersionInfo(
                model_id=model_id,
                number=_PLACEHOLDER,
                created_ns=1_700_000_000_000_000_000,
                archived=True,
                data_hash=checksum.digest_text(),
                data_size_bytes=len(_DATA),
                user_data={"step": "1000"},
            )
        )
        with contextlib.ExitStack() as stack:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            _write(files, directory, layout.model_file_name(model_id), layout.format_model(ModelInfo(model_id)))
            _write(files, directory, layout.HIGH_WATER_MARK_NAME, layout.format_high_water_mark(last_number))
            for number in range(first_number, last_number + 1):
                _write(files, directory, layout.data_file_name(model_id, number), _DATA)
                text = template.replace(b"%d" % _PLACEHOLDER, b"%d" % number)
                _write(files, directory, layout.version_file_name(model_id, number), text)


def _write(files: Files, directory: int, name: str, text: bytes) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640, dir_fd=directory)
    try:
        files.write(file, [memoryview(text)])
    finally:
        os.close(file)
