"""Repair of an archive in a bucket: what can be done without losing something of use.

It removes what a start of a server would remove: bytes that no record leads to, and what is left of deleted models. It
rebuilds malformed objects of models, without which their versions are not served. Damaged versions stay as they are.
"""

from collections.abc import Callable

from cogment_model_registry.errors import DataLossError, ModelRegistryError, UnavailableError, counted
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.filesystem.findings import Finding, Kind
from cogment_model_registry.storage.filesystem.repair import Outcome
from cogment_model_registry.storage.filesystem.verification import Report
from cogment_model_registry.storage.tools import bucket_check


async def repair(archive: BucketArchive, advance: Callable[[int], None]) -> tuple[Report, list[Outcome]]:
    """Verify an archive, and repair it; return the report and what became of the findings that were tried.

    Args:
        archive: The archive, which this process owns, and which clears nothing away by itself.
        advance: Called with the bytes of versions that were read.

    Raises:
        UnavailableError: The store failed.
    """
    rebuilt = [await _rebuild(archive, name) for name in list(archive.malformed)]
    report = await bucket_check.verify(archive, advance)
    outcomes = [*rebuilt, *await _clear(archive)]
    known = {*report.findings}
    report.findings += [outcome.finding for outcome in outcomes if outcome.finding not in known]
    report.findings.sort(key=lambda finding: finding.position)
    return report, outcomes


async def _rebuild(archive: BucketArchive, name: str) -> Outcome:
    finding = bucket_check.malformed_model(name)
    try:
        await archive.rebuild_model(name)
    except DataLossError as error:
        return Outcome(finding, is_repaired=False, message=error.message)
    return Outcome(finding, is_repaired=True, message="rebuilt, without user_data")


async def _clear(archive: BucketArchive) -> list[Outcome]:
    """Delete what nothing leads to. While a model is malformed, it may lead to anything."""
    if archive.malformed:
        return []
    by_finding: dict[Finding, list[str]] = {}
    for name, model_id in await archive.find_leftovers():
        by_finding.setdefault(_finding(name, model_id), []).append(name)
    return [await _delete(archive, finding, names) for finding, names in sorted(by_finding.items(), key=_position)]


def _position(item: tuple[Finding, list[str]]) -> tuple[str, int, str, str]:
    return item[0].position


def _finding(name: str, model_id: str) -> Finding:
    """Return the finding of an object that nothing leads to; objects that belong together have the same."""
    if not model_id:
        return Finding(Kind.DOOMED_DIRECTORY, layout.life_of(name), "a removed model has left objects")
    if layout.parse_data_name(name):
        message = "an upload that was interrupted has left bytes"
        return Finding(Kind.DATA_WITHOUT_METADATA, name.rpartition(".")[0], message, model_id)
    return Finding(Kind.TEMPORARY_FILE, name, "an upload that was interrupted has left it", model_id)


async def _delete(archive: BucketArchive, finding: Finding, names: list[str]) -> Outcome:
    try:
        await archive.delete_leftovers(names)
    except UnavailableError:
        raise
    except ModelRegistryError as error:
        return Outcome(finding, is_repaired=False, message=error.message)
    return Outcome(finding, is_repaired=True, message=f"removed: {counted(len(names), 'object')}")
