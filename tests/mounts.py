"""Commands that run with other file systems mounted, in their own mount namespace.

Root gets a mount namespace; another user gets one within a user namespace, if the machine allows it.
"""

import functools
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
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


def all_read_only(writable: Sequence[str]) -> str:
    """Return the command that makes all mounts read-only except some, and except those of the kernel.

    It leaves out a mount that a later one hides, such as /run/netns below another /run.
    """
    kept = "|".join([*writable, *(f"{path}|{path}/*" for path in ("/proc", "/sys", "/dev"))])
    remount = f"case $path in {kept}) ;; *) ! mountpoint -q $path || mount -o remount,bind,ro $path ;; esac"
    return f"cut -d ' ' -f 5 /proc/self/mountinfo | while read -r path; do {remount}; done"


def needs_root() -> None:
    """Skip a test if no process can be started as another user on a read-only file system."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("setpriv", "unshare", "mount"))):
        pytest.skip("only root can mount a read-only file system and become another user, on Linux")


def reaching(folder: Path, places: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a prefix of a command that makes some paths accessible to all users.

    A path below a directory that is closed to others, such as /root, is mounted at its path in a mount namespace of the
    command, in which that directory has nothing else.
    """
    paths = [Path(place).resolve() for place in places]
    closed = {path: _closed_above(path) for path in paths}
    if not any(closed.values()):
        return []
    lines = ["set -e"]
    for number, path in enumerate(paths):
        lines += [f"mkdir -p {folder}/{number}", f"mount --bind {shlex.quote(str(path))} {folder}/{number}"]
    lines += [f"mount -t tmpfs -o mode=755 none {shlex.quote(top)}" for top in sorted({*filter(None, closed.values())})]
    for number, (path, top) in enumerate(closed.items()):
        if top:
            there = shlex.quote(str(path))
            lines += [f"mkdir -p {there}", f"mount --bind {folder}/{number} {there}"]
    return ["unshare", "--mount", "sh", "-c", "\n".join([*lines, 'exec "$@"']), "sh"]


def _closed_above(path: Path) -> str:
    """Return the topmost directory above a path that others may not enter; empty if they may enter all."""
    return next((str(each) for each in reversed(path.parents) if not each.stat().st_mode & 0o001), "")
