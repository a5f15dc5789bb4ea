"""Locales whose encoding is not UTF-8, as environments of processes."""

import os
import shutil
import subprocess
from pathlib import Path

UTF_8 = {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}
C = {"LC_ALL": "C"}
POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Python takes it for ASCII."""


def utf_8(text: str) -> str:
    """Return a name or a word that is UTF-8 to the system, in whatever locale the tests run."""
    return os.fsdecode(text.encode())


class MissingLocaleError(Exception):
    """The locale cannot be built here; the message says why."""


def latin_1(folder: Path) -> dict[str, str]:
    """Build a locale with Latin-1 in a folder, and return the environment that has it.

    Raises:
        MissingLocaleError: The system lacks what it takes.
    """
    name = "de_DE.ISO-8859-1"
    localedef = shutil.which("localedef")
    if localedef is None:
        raise MissingLocaleError("there is no localedef (on Debian, it is in the package libc-bin)")
    command = [localedef, "-i", "de_DE", "-f", "ISO-8859-1", str(folder / name)]
    # With a standard input, which it may be missing here: localedef takes the first file that it opens for it.
    built = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if not (folder / name).is_dir():
        raise MissingLocaleError(
            f"localedef failed (on Debian, it takes the package locales): {built.stderr.decode(errors='replace')}"
        )
    return {"LOCPATH": str(folder), "LC_ALL": name, "PYTHONUTF8": "0"}
