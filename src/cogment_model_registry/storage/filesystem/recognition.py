"""Whether a directory is an archive, and whether this version supports its format.

The format of an archive is a number in the file `.format`. Without that file it is 1: the files of the original and
those that `layout` names, which the original ignores. A change of the files that a server without it must not work
next to gets the next number, and the server that makes the change writes it first, durably.
"""

import contextlib

from cogment_model_registry.errors import InvalidError, StartError
from cogment_model_registry.records.versions import check_model_id
from cogment_model_registry.storage.filesystem import layout, model_files
from cogment_model_registry.storage.filesystem.files import Files, NotRegularError

FORMAT_MAX = 1
"""The newest format of an archive that this version supports."""


def check_format(files: Files, root: int, path: str) -> None:
    """Refuse an archive whose format is newer than this version.

    Args:
        files: The file operations.
        root: Descriptor of the archive directory.
        path: Its path, for the message.

    Raises:
        StartError: Its format is newer, or is not a number.
        OSError: The file with the format cannot be read.
    """
    try:
        number = layout.parse_format(model_files.read_metadata(files, root, layout.FORMAT_NAME))
    except FileNotFoundError:
        return
    except (layout.BadMetadata, NotRegularError):
        raise StartError(
            f"archive directory {path} has a file {layout.FORMAT_NAME} that is not the number of a format: restore it "
            "from a backup"
        ) from None
    if number > FORMAT_MAX:
        raise StartError(
            f"archive directory {path} has format {number}, and this version of cogment-model-registry supports "
            f"formats up to {FORMAT_MAX}: install a newer version"
        )


def is_archive(files: Files, root: int) -> bool:
    """Return whether a directory shows that it is an archive: a server has used it, or it has something of a model."""
    entries = files.list_directory(root)
    if any(entry.name in (layout.LOCK_NAME, layout.FORMAT_NAME) for entry in entries):
        return True
    return any(
        layout.is_temporary(entry.name) or _is_model(files, root, entry.name) for entry in entries if entry.is_directory
    )


def used_below(files: Files, root: int) -> str:
    """Return the name of a directory below this one that a server has used as its archive; empty if there is none."""
    for entry in files.list_directory(root):
        if entry.is_directory:
            with contextlib.suppress(OSError):
                files.status_of(root, f"{entry.name}/{layout.LOCK_NAME}")
                return entry.name
    return ""


def is_unused(files: Files, root: int) -> bool:
    """Return whether a directory has nothing, so that it can become an archive."""
    return all(entry.name == layout.LOST_AND_FOUND for entry in files.list_directory(root))


def _is_model(files: Files, root: int, name: str) -> bool:
    """Return whether a directory is one of a model, or may be one."""
    try:
        check_model_id(name, model_files.MODEL_ID_MAX_BYTES)
        directory = files.open_directory(root, name)
    except (InvalidError, FileNotFoundError):
        return False
    except OSError:
        return name != layout.LOST_AND_FOUND
    try:
        found = model_files.list_model(files, directory, name)
    finally:
        files.close(directory)
    return found.is_model or found.is_deleted or bool(found.data)
