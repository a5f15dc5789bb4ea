"""Locks on files, between processes."""

import fcntl
import time


def lock_soon(file: int, attempts: int, pause_seconds: float) -> bool:
    """Lock a file by its descriptor, and return whether that succeeded within some attempts.

    Args:
        file: Its descriptor; closing it releases the lock.
        attempts: How often to ask for the lock.
        pause_seconds: How long to wait after each failed attempt.
    """
    for _ in range(attempts):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause_seconds)
        else:
            return True
    return False
