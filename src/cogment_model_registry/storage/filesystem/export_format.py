"""The format of an exported model: one tar file that proves its own completeness.

    <model_id>/.high_water_mark            no number up to this one may be given again
    <model_id>/<model_id>.yaml             the model
    <model_id>/<model_id>-v000001.data     the bytes of a version
    <model_id>/<model_id>-v000001.yaml     the version; then those of the next number
    <model_id>/.manifest.json              the versions, with sizes and hashes, and a hash over the manifest itself

These are the files of an archive directory under their names there, so `tar --extract` in one gives the model as well.
With something that is not in these files, which is aliases, tags and metrics, the format is the second one, and the
manifest has it too. Releases that know only the first format say so, and refuse the file: they would lose it silently.

Each header can be written in exactly one way, and the files before a manifest have exactly one manifest. An import
rebuilds both from the received files and compares them byte for byte.
"""

import hashlib
import json
import tarfile
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from cogment_model_registry.records.versions import VersionInfo, digest_text

BLOCK_BYTES = tarfile.BLOCKSIZE
RECORD_BYTES = tarfile.RECORDSIZE
"""A tar file is a multiple of this."""

END_BYTES = 2 * BLOCK_BYTES
"""The end of a tar file: two blocks of zeros, and more up to a whole record."""

FORMAT = "cogment model export 1"
"""The first field of a manifest, with the version of this format."""

FORMAT_WITH_ANNOTATIONS = "cogment model export 2"
"""The same where the manifest has annotations."""

FORMATS = (FORMAT, FORMAT_WITH_ANNOTATIONS)

Annotations: TypeAlias = Mapping[str, object]
"""What the files do not have, as values of JSON; this format does not know what it means."""

_NS_PER_SECOND = 10**9


def header(name: str, size_bytes: int, mtime_seconds: int) -> bytes:
    """Return the header of a file in the tar file, with that of its long name where it has one."""
    info = tarfile.TarInfo(name)
    info.size = size_bytes
    info.mtime = mtime_seconds
    info.mode = 0o640
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict")


def mtime_seconds(info: VersionInfo) -> int:
    """Return the time that the files of a version have in the tar file."""
    return info.created_ns // _NS_PER_SECOND


def padding(size_bytes: int) -> bytes:
    """Return the padding after a file of this size."""
    return bytes(-size_bytes % BLOCK_BYTES)


def ending(offset: int) -> bytes:
    """Return the bytes after the last file, which with its padding ends at this offset."""
    return bytes(END_BYTES + -(offset + END_BYTES) % RECORD_BYTES)


class Manifest:
    """The contents of a tar file, collected file by file.

    Args:
        model_id: The model.
        high_water_mark: Its high-water mark.
        model_text: The text of its metadata.
    """

    def __init__(self, model_id: str, high_water_mark: int, model_text: bytes) -> None:
        self._fields = {
            "format": FORMAT,
            "model_id": model_id,
            "high_water_mark": high_water_mark,
            "metadata_hash": _hash(model_text),
        }
        self._versions: list[str] = []

    def add(self, info: VersionInfo, version_text: bytes) -> None:
        """Add a version with the text of its metadata."""
        version = {
            "version_number": info.number,
            "data_size": info.data_size_bytes,
            "data_hash": info.data_hash,
            "metadata_hash": _hash(version_text),
        }
        self._versions.append(json.dumps(version))

    def text(self, left_out: Sequence[int], annotations: Annotations | None = None) -> bytes:
        """Return the manifest.

        Args:
            left_out: The numbers of the versions that were left out because they are damaged.
            annotations: What the files do not have; None for nothing.
        """
        fields = {**self._fields, "format": FORMAT if annotations is None else FORMAT_WITH_ANNOTATIONS}
        start = json.dumps({**fields, "left_out": list(left_out)}, indent=1).removesuffix("\n}")
        versions = ",\n  ".join(self._versions)
        text = f'{start},\n "versions": [\n  {versions}\n ]' if versions else f'{start},\n "versions": []'
        if annotations is not None:
            text += f',\n "annotations": {json.dumps(annotations)}'
        return f'{text},\n "manifest_hash": "{_hash(text.encode())}"\n}}\n'.encode()


def _hash(text: bytes) -> str:
    return digest_text(hashlib.sha256(text).digest())
