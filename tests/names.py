"""Host names whose addresses a test sets and changes, for the processes that it starts."""

import functools
import subprocess
from pathlib import Path

import pytest


class Names:
    """A file of names and addresses that a process sees as `/etc/hosts`, in its own mount namespace.

    Args:
        directory: Where to write the file.
    """

    def __init__(self, directory: Path) -> None:
        if not _are_possible():
            pytest.skip("names cannot be changed here: unshare is missing or not permitted")
        self._file = directory / "hosts"
        self._file.touch()

    def set(self, name: str, *addresses: str) -> None:
        """Replace all names by one with these addresses."""
        # In place: the mount shows this file, and not a file that replaces it.
        self._file.write_text("".join(f"{address} {name}\n" for address in addresses))

    @property
    def command(self) -> list[str]:
        """The prefix of a command that lets it see the names."""
        return _within_names(str(self._file))


def _within_names(file: str) -> list[str]:
    see = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", see, file]


@functools.cache
def _are_possible() -> bool:
    try:
        return not subprocess.run([*_within_names("/dev/null"), "true"], capture_output=True, check=False).returncode
    except OSError:
        return False
