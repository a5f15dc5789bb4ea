"""Artifacts of offline runs of Weights & Biases as versions of the registry, and versions as artifacts of a run.

A run with ``mode="offline"`` writes its records to a file, `run-ID.wandb`, and the files of artifacts to a staging
folder, from where ``wandb sync`` would upload them. Nothing here needs an account, or reaches a server. wandb has no
call that reads such a file, so this module does. It is a log in the format of LevelDB, with messages defined by wandb.
"""

import base64
import hashlib
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import wandb
from wandb.proto import wandb_internal_pb2 as messages

from cogment_model_registry import ModelRegistry, Version
from cogment_model_registry.bridges.origins import bring, imported
from cogment_model_registry.errors import DataLossError, InvalidError, NotFoundError, quoted

RUN_KEY = "wandb.run"
PROJECT_KEY = "wandb.project"
ARTIFACT_KEY = "wandb.artifact"
DIGEST_KEY = "wandb.digest"
"""The entries of `user_data` that say where a version comes from."""

FILE_NAME = "version.bin"
_MODEL_KEY = "cogment.model"
_VERSION_KEY = "cogment.version"
_HASH_KEY = "cogment.data_hash"
"""The entries in the metadata of an artifact that say which version it is."""

_FILE_KEY = "cogment.file"
"""The entry in the metadata of an artifact that names the file which is the version."""

_FOLDER = "folder.tar"

_BEGIN = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
_BLOCK_BYTES = 32 * 1024
_HEADER = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
"""The parts of a record in a log of LevelDB: a record can span several blocks."""

_RECORD_MAX_BYTES = 256 * 1024 * 1024
_COPY_BYTES = 1024 * 1024


@dataclass(slots=True)
class _Run:
    """The state of a run after some of its records."""

    run_id: str = ""
    project: str = ""
    summary: dict[str, float] = field(default_factory=dict)


def import_run(
    registry: ModelRegistry, run_folder: "str | os.PathLike[str]", *, model_id: str | None = None, kind: str = "model"
) -> list[Version]:
    """Store the artifacts of an offline run as versions, in the order in which they were logged.

    An artifact with the same run and digest is not stored a second time.

    Args:
        registry: The client.
        run_folder: The folder of the run, ``wandb/offline-run-...``.
        model_id: The model; by default the name of each artifact.
        kind: The type of the artifacts to take; others, such as data sets, are left out. Empty for all.

    Returns:
        The archived versions; their metrics are the numbers that the run had logged before the artifact.

    Raises:
        InvalidError: The folder has no records of a run, or an artifact refers to a file that is not on this machine.
        DataLossError: The records are damaged, or a file in the staging folder is not the one that was logged.
        OSError: A file cannot be read.
        ModelRegistryError: As for `ModelRegistry.store`.
    """
    paths = sorted(Path(os.path.expanduser(run_folder)).glob("run-*.wandb"))
    if not paths:
        raise InvalidError(f"{quoted(str(run_folder))} has no run-*.wandb, so it is not the folder of a run")
    run, versions = _Run(), list[Version]()
    with paths[0].open("rb") as file:
        for data in _records(file, paths[0].name):
            record = messages.Record.FromString(data)
            _take(record, run)
            if record.WhichOneof("record_type") == "artifact" and kind in ("", record.artifact.type):
                versions.append(_store(registry, model_id or record.artifact.name, record.artifact, run))
    return versions


def log_version(
    registry: ModelRegistry, run: Any, model_id: str, version: int | str = -1, *, name: str = "", kind: str = "model"
) -> Any:
    """Log a version as an artifact of a run, offline or not, with its tags and metrics as metadata, and its aliases.

    Args:
        registry: The client.
        run: The run, from ``wandb.init``.
        model_id: The model.
        version: Its number, -1 for the latest; or an alias.
        name: The name of the artifact; by default the id of the model.
        kind: Its type.

    Returns:
        The artifact.

    Raises:
        NotFoundError: The model or the version does not exist, or the version was evicted.
    """
    ours = registry.describe_version(model_id, version)
    metadata = {
        _MODEL_KEY: model_id,
        _VERSION_KEY: ours.number,
        _HASH_KEY: ours.data_hash,
        "tags": dict(ours.tags),
        "metrics": dict(ours.metrics),
        "user_data": dict(ours.user_data),
    }
    is_folder = ours.user_data.get("format") == _FOLDER
    artifact = wandb.Artifact(
        name or model_id, type=kind, metadata={**metadata, **({} if is_folder else {_FILE_KEY: FILE_NAME})}
    )
    with tempfile.TemporaryDirectory(prefix="cogment-wandb-") as directory:
        if is_folder:
            registry.download(ours, os.path.join(directory, "files", ""))
            artifact.add_dir(os.path.join(directory, "files"))
        else:
            registry.download(ours, os.path.join(directory, FILE_NAME))
            artifact.add_file(os.path.join(directory, FILE_NAME), FILE_NAME)
        run.log_artifact(artifact, aliases=list(ours.aliases) or None)
    return artifact


def _take(record: Any, run: _Run) -> None:
    """Update the state with a record."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        run.run_id, run.project = record.run.run_id, record.run.project
    elif kind == "summary":
        for each in record.summary.update:
            name = each.key or ".".join(each.nested_key)
            value = json.loads(each.value_json)
            if not name.startswith("_") and isinstance(value, int | float) and not isinstance(value, bool):
                run.summary[name] = float(value)


def _store(registry: ModelRegistry, model_id: str, artifact: Any, run: _Run) -> Version:
    origin = {
        RUN_KEY: run.run_id,
        PROJECT_KEY: run.project,
        ARTIFACT_KEY: artifact.name,
        DIGEST_KEY: artifact.digest,
    }
    metadata = json.loads(artifact.metadata or "{}")
    is_ours = _MODEL_KEY in metadata
    texts = metadata.get("tags", {}) if is_ours else metadata
    details: dict[str, Any] = {
        "tags": {name: text for name, text in texts.items() if isinstance(text, str) and (is_ours or "." not in name)},
        "metrics": {**run.summary, **(metadata.get("metrics", {}) if is_ours else {})},
        "aliases": [alias for alias in artifact.aliases if alias != "latest"],
    }
    before = imported(registry, model_id, origin) or _ours(registry, model_id, metadata)
    if before is not None:
        return bring(registry, model_id, None, origin, before=before, **details)
    with tempfile.TemporaryDirectory(prefix="cogment-wandb-") as directory:
        _gather(artifact, Path(directory))
        file = metadata.get(_FILE_KEY)
        path = os.path.join(directory, FILE_NAME) if file == FILE_NAME else directory
        return bring(registry, model_id, path, origin, before=None, **details)


def _ours(registry: ModelRegistry, model_id: str, metadata: dict[str, Any]) -> Version | None:
    """Return the archived version of a model that was logged as an artifact with this metadata; None if none was."""
    number = metadata.get(_VERSION_KEY)
    if metadata.get(_MODEL_KEY) != model_id or not isinstance(number, int):
        return None
    try:
        found = registry.describe_version(model_id, number)
    except NotFoundError:
        return None
    return found if found.archived and found.data_hash == metadata.get(_HASH_KEY) else None


def _gather(artifact: Any, directory: Path) -> None:
    """Copy the files of an artifact to a folder, each checked against its digest."""
    contents = artifact.manifest.contents
    if not contents:
        raise InvalidError(f"the artifact {quoted(artifact.name)} has no files in the records of its run")
    for entry in contents:
        if not entry.local_path:
            message = (
                f"the artifact {quoted(artifact.name)} refers to {quoted(entry.path)}, which is not on this machine"
            )
            raise InvalidError(message)
        target = Path(os.path.normpath(directory / entry.path))
        if directory not in target.parents:
            raise InvalidError(
                f"the artifact {quoted(artifact.name)} has the path {quoted(entry.path)}, which is not allowed"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.local_path, target)
        if _md5(target) != entry.digest:
            raise DataLossError(
                f"{quoted(entry.path)} of the artifact {quoted(artifact.name)} has changed since it was logged"
            )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()


def _records(file: BinaryIO, name: str) -> Iterator[bytes]:
    """Yield the records of a log, without an incomplete one at its end, which a crash can leave.

    Raises:
        InvalidError: It is not such a log.
        DataLossError: It is damaged.
    """
    if file.read(len(_BEGIN)) != _BEGIN:
        raise InvalidError(f"{name} is not the log of a run, or has a newer format")
    parts: list[bytes] = []
    while True:
        left_bytes = _BLOCK_BYTES - file.tell() % _BLOCK_BYTES
        if left_bytes < _HEADER.size:
            file.seek(left_bytes, os.SEEK_CUR)
            continue
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return
        checksum, length, kind = _HEADER.unpack(header)
        data = file.read(length)
        if len(data) < length:
            return
        if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
            raise DataLossError(f"{name} is damaged before byte {file.tell()}")
        parts = [data] if kind in (_FULL, _FIRST) else [*parts, data]
        if sum(map(len, parts)) > _RECORD_MAX_BYTES:
            raise DataLossError(f"{name} has a record of more than {_RECORD_MAX_BYTES} bytes")
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
