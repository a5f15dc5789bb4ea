"""Commands that run with other file systems mounted, in their own mount namespace.

Root gets a mount namespace; another user gets one within a user namespace, if the machine allows it.
"""

import functools
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS

AS_USER = ("unshare", "--user", "--map-root-user", "--mount")
"""The namespaces of any user; an overlay file system cannot store its attributes there."""

AS_ROOT = ("unshare", "--mount")
"""The namespace of root."""


@functools.cache
def _works(command: tuple[str, ...]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=PATIENCE_SECONDS, check=False).returncode == 0
    except OSError:
        return False


def mounted(*mounts: str, unshare: tuple[str, ...] = AS_USER) -> list[str]:
    """Return the prefix of a command that runs with some mounts; skip the test if they are not possible.

    Args:
        mounts: The shell commands that mount.
        unshare: The command that enters a namespace.
    """
    script = " && ".join(mounts)
    wrapper = (*unshare, "sh", "-c", f'{script} && exec "$@"', "sh")
    if not _works((*wrapper, "true")):
        pytest.skip(f"this machine does not let this user mount: {script}")
    return list(wrapper)


def overlay(lower: Path, place: Path) -> tuple[Path, str]:
    """Return the path of an overlay file system on a directory, and the command that mounts it.

    Args:
        lower: The directory, which stays unchanged.
        place: A directory for the other layers.
    """
    upper, work, merged = (place / name for name in ("upper", "work", "merged"))
    for path in (upper, work, merged):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    return merged, shlex.join(["mount", "-t", "overlay", "overlay", "-o", options, str(merged)])


def read_only(path: Path) -> str:
    """Return the command that makes a directory read-only."""
    quoted = shlex.quote(str(path))
    return f"mount --bind {quoted} {quoted} && mount -o remount,bind,ro {quoted}"
