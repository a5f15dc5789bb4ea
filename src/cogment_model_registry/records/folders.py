"""A folder as one version: how it is marked, how many files it may have, and which names these may have.

The names are those that Linux, macOS and Windows can all have, so that a folder which was packed on one of them can be
unpacked on each of them. Whoever packs and whoever unpacks checks the same rule.
"""

import unicodedata

from cogment_model_registry.errors import InvalidError, quoted

FORMAT_KEY = "format"
"""The entry of `user_data` that says what the bytes of a version are."""

FOLDER_FORMAT = "folder.tar"
"""What it says of a folder: its bytes are a tar archive."""

ENTRIES_MAX = 10_000
"""How many files and folders a folder may have, all levels together."""

_NAME_MAX_BYTES = 255
"""The length of a name on the file systems of Linux; Windows and macOS count other units, and allow as many."""

_PATH_MAX_BYTES = 1024
"""The length of a path within the folder: that of a whole path on macOS."""

_NOWHERE = frozenset('<>:"\\|?*')
"""The characters that Windows has in no name, besides the slash."""

_DEVICES = frozenset(
    [
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        *(f"{port}{n}" for port in ("com", "lpt") for n in "0123456789¹²³"),
    ]
)
"""The names that Windows takes for devices, with any extension; see "Naming Files, Paths, and Namespaces" there."""


class PathNames:
    """Checks the paths of a folder one after another, each folder before what is in it."""

    def __init__(self) -> None:
        self._known = {"": ("", True)}
        self._count = 1

    def add(self, path: str, *, is_folder: bool) -> None:
        """Take the next path.

        Args:
            path: Names, joined with slashes.
            is_folder: Whether it is a folder; otherwise it is a file.

        Raises:
            InvalidError: It is malformed, one of the systems cannot have it, another path differs from it only in what
                some systems ignore, its folder did not come before it, or there are too many.
        """
        parent, _, _ = path.rpartition("/")
        for name in path.split("/"):
            _check_name(path, name)
        if len(path.encode()) > _PATH_MAX_BYTES:
            raise InvalidError(f"the path {quoted(path)} is longer than {_PATH_MAX_BYTES:,} bytes")
        if self._known.get(_folded(parent)) != (parent, True):
            raise InvalidError(f"the path {quoted(path)} is in no folder that came before it")
        before = self._known.setdefault(_folded(path), (path, is_folder))
        if len(self._known) == self._count:
            other = before[0]
            if other == path:
                raise InvalidError(f"the path {quoted(path)} comes twice")
            message = f"{quoted(other)} and {quoted(path)} are the same path where the system ignores case"
            raise InvalidError(f"{message} or the composition of characters; rename one of them")
        self._count += 1
        if self._count > ENTRIES_MAX + 1:
            raise InvalidError(f"a folder may have {ENTRIES_MAX:,} files and folders, and this one has more")


def _check_name(path: str, name: str) -> None:
    """Refuse a name that is malformed, or that one of the systems cannot have."""
    reason = ""
    if name in ("", ".", ".."):
        reason = "has an empty name" if not name else f"has the name {quoted(name)}"
    elif bad := next((each for each in name if each in _NOWHERE or unicodedata.category(each) in ("Cc", "Cs")), ""):
        reason = f"has the character {quoted(bad)}, which Windows has in no name"
    elif name[-1] in ". ":
        reason = "has a name that ends with a dot or a space, which Windows removes"
    elif name.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        reason = f"has the name {quoted(name)}, which is a device on Windows"
    elif len(name.encode()) > _NAME_MAX_BYTES:
        reason = f"has a name of more than {_NAME_MAX_BYTES} bytes"
    if reason:
        raise InvalidError(f"the path {quoted(path)} {reason}")


def _folded(path: str) -> str:
    """Return what a path has in common with all that some system takes for the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())
