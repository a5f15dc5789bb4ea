"""The memory that the machine lets this process use.

A process in a container sees the memory of the whole host, while its control group may allow it a fraction; the
smaller of the two is what it can use.
"""

import ctypes
import gc
import os
from pathlib import Path


def usable_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of memory that this process may use: physical memory, or its control group's limit.

    Args:
        proc: Where the kernel's process information is mounted.
        cgroups: Where the control groups are mounted (version 2, or 1 with the memory controller below `memory`).
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_cgroup_limits_bytes(proc, cgroups)])


def _cgroup_limits_bytes(proc: Path, cgroups: Path) -> list[int]:
    """Return the limits of this process's control group and of the groups around it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return []
    limits: list[int] = []
    for line in lines:
        # cgroups(7): hierarchy-ID:controller-list:cgroup-path, with an empty list for version 2.
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            root, file_name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, file_name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            limits.extend(_limit_bytes(group / file_name))
            group = group.parent
    return limits


def _limit_bytes(file: Path) -> list[int]:
    """Return the limit in `file`, or nothing without a limit ("max", or a group without the file)."""
    try:
        return [int(file.read_text())]
    except (OSError, ValueError):
        return []


_HEAP_OPTIONS = {
    -8: 2,  # M_ARENA_MAX
    -3: 32 * 1024 * 1024,  # M_MMAP_THRESHOLD: the highest that glibc takes
    -1: 32 * 1024 * 1024,  # M_TRIM_THRESHOLD
}
"""The options of the heap; see mallopt(3)."""

_COLLECTED_AFTER = 10_000
"""After how many new objects cycles are collected; Python's default is 700."""


def tune_heap() -> None:
    """Let the C library keep few heaps, and keep some of the freed memory, where it can; call it before threads start.

    glibc gives each thread a heap of its own, up to eight for each core, and large messages that were freed linger in
    each of them. Memory that it returns at once, on the other hand, must be allocated again for the next message, page
    by page, which takes several times as long as filling it.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        for option, value in _HEAP_OPTIONS.items():
            set_option(option, value)


def tune_garbage_collection() -> None:
    """Let the collector of cycles look less often, and not at what exists now, which stays.

    A thousand watchers that are woken at once make more objects than it waits for by default, and it would look at all
    of them several times. What matters is freed without it.
    """
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


def release_free_memory() -> None:
    """Return freed memory that the allocator keeps to the system, where the C library can.

    glibc keeps the memory between used blocks in each of its arenas: after a hundred large messages at once, several
    times the memory in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
