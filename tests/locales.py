"""Locales whose encoding is not UTF-8, as environments of processes."""

import os
import shutil
import subprocess
from pathlib import Path

UTF_8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}
C = {"LC_ALL": "C"}
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Python treats it as ASCII."""


def utf_8(text: str) -> str:
    """Return a name or an argument that the system encodes as UTF-8, in any locale of the tests."""
    return os.fsdecode(text.encode())


class MissingLocaleError(Exception):
    """The locale cannot be built here; the message says why."""


def latin_1(folder: Path) -> dict[str, str]:
    """Build a locale with Latin-1 in a folder, and return the environment variables that select it.

    Raises:
        MissingLocaleError: The system lacks a program or a package for it.
    """
    name = "de_DE.ISO-8859-1"
    localedef = shutil.which("localedef")
    if localedef is None:
        raise MissingLocaleError("localedef is not installed (on Debian, it is in the package libc-bin)")
    command = [localedef, "-i", "de_DE", "-f", "ISO-8859-1", str(folder / name)]
    # With a standard input, which may be closed here: localedef would mistake the first file that it opens for it.
    built = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if not (folder / name).is_dir():
        raise MissingLocaleError(
            f"localedef failed (on Debian, it needs the package locales): {built.stderr.decode(errors='replace')}"
        )
    return {"LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}
