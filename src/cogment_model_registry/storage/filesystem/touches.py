"""Changes of a file's ctime that this process made itself.

The ctime of a file shows whether its bytes may have changed since they were checked. It also changes when a file gets
or loses a name, as those do that several versions share. What the archive does itself says nothing about the bytes, so
it is noted here.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator

from cogment_model_registry.storage.filesystem.files import Files

_FILES_MAX = 4096
_TIMES_MAX = 64


class OwnTouches:
    """The times of files between which nothing but their names changed, by inode; the newest ones."""

    def __init__(self) -> None:
        self._times: OrderedDict[int, list[int]] = OrderedDict()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def touching(self, files: Files, file: int) -> Iterator[None]:
        """Return a context manager for one operation on the names of an open file."""
        with self._lock:
            before = files.status(file)
            yield
            self._note(before.st_ino, before.st_ctime_ns, files.status(file).st_ctime_ns)

    def _note(self, inode: int, before_ns: int, after_ns: int) -> None:
        times = self._times.pop(inode, [])
        if before_ns not in times:
            times = [before_ns]  # something else changed it in between
        self._times[inode] = [*times, after_ns][-_TIMES_MAX:]
        if len(self._times) > _FILES_MAX:
            self._times.popitem(last=False)

    def explain(self, inode: int, one_ns: int, other_ns: int) -> bool:
        """Return whether nothing but names changed between two times of a file."""
        if one_ns == other_ns:
            return True
        with self._lock:
            times = self._times.get(inode, ())
            return one_ns in times and other_ns in times
