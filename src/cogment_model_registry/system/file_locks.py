"""Locks on files, between processes."""

import os
import time

try:
    import fcntl
except ImportError:  # on Windows
    import msvcrt

    def _lock(file: int) -> None:
        os.lseek(file, 0, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]

else:

    def _lock(file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_soon(file: int, attempts: int, pause_seconds: float) -> bool:
    """Lock a file by its descriptor, and return whether that succeeded within some attempts.

    Args:
        file: Its descriptor; closing it releases the lock.
        attempts: How often to ask for the lock.
        pause_seconds: How long to wait after each failed attempt.
    """
    for _ in range(attempts):
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):  # the latter on Windows
            time.sleep(pause_seconds)
        else:
            return True
    return False
