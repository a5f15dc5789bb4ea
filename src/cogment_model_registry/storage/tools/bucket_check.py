"""Verification of an archive in a bucket: every record, and every byte against its hash. Nothing is written.

A server may be using the archive. What interrupted work left is no finding: it may be under way, and a start or a
repair clears it away.
"""

from collections.abc import Callable
from contextlib import aclosing

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.filesystem.findings import Finding, Kind
from cogment_model_registry.storage.filesystem.verification import Report
from cogment_model_registry.storage.folder import FolderContents

_BATCH = 256
_CHUNK_BYTES = 1024 * 1024
_BUFFER_BYTES = 32 * 1024 * 1024


async def verify(archive: BucketArchive, advance: Callable[[int], None]) -> Report:
    """Verify an archive.

    Args:
        archive: The archive, opened to be read.
        advance: Called with the bytes of versions that were read.

    Raises:
        UnavailableError: The store failed.
    """
    report = Report()
    for contents in await archive.scan():
        report.models += 1
        for number, reason in contents.damaged.items():
            _add(report, contents, number, Kind.VERSION_METADATA_DAMAGED, reason)
        report.versions += len(contents.damaged)
        await _verify_versions(archive, contents, report, advance)
    for name in archive.malformed:
        report.findings.append(malformed_model(name))
    report.findings.sort(key=lambda finding: finding.position)
    return report


def malformed_model(name: str) -> Finding:
    """Return the finding of an object of a model that is malformed."""
    return Finding(Kind.MODEL_METADATA_DAMAGED, name, "it is malformed: the model is not served")


async def _verify_versions(
    archive: BucketArchive, contents: FolderContents, report: Report, advance: Callable[[int], None]
) -> None:
    for start in range(0, len(contents.version_numbers), _BATCH):
        numbers = contents.version_numbers[start : start + _BATCH]
        infos = await archive.read_version_infos(contents.info.model_id, numbers)
        for number, info in zip(numbers, infos, strict=True):
            if isinstance(info, DataLossError):
                _add(report, contents, number, Kind.VERSION_METADATA_DAMAGED, info.reason)
            elif info is None:
                continue  # deleted during the check
            else:
                try:
                    report.data_bytes += await _read(archive, info, advance)
                except DataLossError as error:
                    _add(report, contents, number, _kind_of(error.reason), error.reason)
                except NotFoundError:
                    continue
            report.versions += 1


async def _read(archive: BucketArchive, info: VersionInfo, advance: Callable[[int], None]) -> int:
    """Read a version, which checks it; return its size."""
    async with (
        await archive.open_version(info) as reader,
        aclosing(reader.chunks(_CHUNK_BYTES, _BUFFER_BYTES)) as chunks,
    ):
        async for chunk in chunks:
            advance(sum(map(len, chunk)))
    return info.data_size_bytes


def _kind_of(reason: str) -> Kind:
    if "missing" in reason:
        return Kind.DATA_MISSING
    return Kind.DATA_WRONG_SIZE if "truncated" in reason else Kind.DATA_WRONG_HASH


def _add(report: Report, contents: FolderContents, number: int, kind: Kind, message: str) -> None:
    model_id = contents.info.model_id
    name = f"{layout.model_name(model_id).removesuffix('.json')}/{number}"
    report.findings.append(Finding(kind, name, message, model_id, number))
