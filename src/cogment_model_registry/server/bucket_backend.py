"""The archive in a bucket as a server opens it, with the directory of its catalog. Loaded only when it is asked for."""

import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256

from cogment_model_registry.errors import StartError
from cogment_model_registry.server.metrics import Metrics
from cogment_model_registry.settings import Settings
from cogment_model_registry.storage.bucket.archive import BucketArchive
from cogment_model_registry.storage.bucket.opening import open_objects
from cogment_model_registry.storage.filesystem.files import Files
from cogment_model_registry.storage.filesystem.hold import Hold

_OWNER_NAME = ".archive"
"""The file of a catalog's directory that has the id of the archive."""

_PLACES = ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME")
"""Where the store is, apart from the address: one address may mean different archives."""


@asynccontextmanager
async def opened_bucket(settings: Settings, metrics: Metrics) -> AsyncIterator[tuple[BucketArchive, str]]:
    """Open the archive that `archive_url` names; a context manager with it and with the directory of its catalog.

    Raises:
        StartError: It is not usable, or another process has it or the directory open.
    """
    folder = settings.catalog_dir or default_catalog_dir(settings.archive_url)
    objects = open_objects(settings.archive_url, metrics.observe_archive)
    if settings.read_only:
        archive = BucketArchive(objects, read_only=True)
        try:
            await archive.open()
            yield archive, folder
        finally:
            await archive.close()
        return
    hold = Hold(folder, Files(), read_only=False)
    try:
        try:
            hold.take()
        except OSError as error:
            raise StartError(f"catalog directory {folder} cannot be used: {error.strerror}") from error
        except StartError as error:
            raise StartError(error.message.replace("archive directory", "catalog directory", 1)) from None
        archive = BucketArchive(objects, _state(folder))
        try:
            await archive.open()
            _check_owner(folder, archive.id)
            yield archive, folder
        finally:
            await archive.close()
    finally:
        hold.release()


def default_catalog_dir(url: str) -> str:
    """Return the directory of the catalog of an archive, if none is given."""
    state = os.environ.get("XDG_STATE_HOME", "")
    above = state if os.path.isabs(state) else os.path.expanduser("~/.local/state")
    place = "\n".join([url, *(os.environ.get(name, "") for name in _PLACES)])
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", url)[:80]
    return os.path.join(above, "cogment_model_registry", f"{name}-{sha256(place.encode()).hexdigest()[:12]}")


def _state(folder: str) -> str:
    """Return what identifies a directory that this process has locked: no copy of it has the same.

    A clone of the machine has another boot. Empty where the system does not tell.
    """
    status = os.stat(folder)
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
    except OSError:
        boot = ""
    return f"{boot}:{status.st_dev}:{status.st_ino}:{os.path.realpath(folder)}" if boot else ""


def _check_owner(folder: str, archive_id: str) -> None:
    """Check that a catalog is that of an archive, or of none yet: another one's would lose what it has.

    Raises:
        StartError: It is that of another archive.
    """
    file = os.open(os.path.join(folder, _OWNER_NAME), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    try:
        owner = os.read(file, 2 * len(archive_id)).decode("ascii", "replace")
        if owner == archive_id:
            return
        if archive_id.startswith(owner):  # a process that ended here may have written a part
            os.pwrite(file, archive_id.encode("ascii"), 0)
            return
    finally:
        os.close(file)
    raise StartError(
        f"catalog directory {folder} belongs to another archive: give another catalog_dir, or remove the directory"
    )
