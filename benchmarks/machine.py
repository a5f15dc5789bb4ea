"""The machine and the software of a run."""

import contextlib
import datetime
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from benchmarks.processes import ROOT


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine, the software and the moment of a run.

    Attributes:
        date: When the run began, in UTC.
        cores: The number of processors that the run may use.
        processor: Their name.
        memory_mib: All memory.
        load: The load average of the minute before the run.
        kernel: The system and its version.
        file_system: The file system of the archives.
        python: The version of Python.
        grpcio: The version of grpcio.
        commit: The commit of the working copy; with a mark if it has changes.
    """

    date: str
    cores: int
    processor: str
    memory_mib: int
    load: float
    kernel: str
    file_system: str
    python: str
    grpcio: str
    commit: str

    @classmethod
    def here(cls, directory: Path) -> "Machine":
        """Return this machine, now.

        Args:
            directory: The directory of the archives.
        """
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            processor=_processor(),
            memory_mib=psutil.virtual_memory().total // 2**20,
            load=round(psutil.getloadavg()[0], 2),
            kernel=f"{platform.system()} {platform.release()}",
            file_system=_file_system(directory),
            python=platform.python_version(),
            grpcio=grpc.__version__,
            commit=_commit(),
        )


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _file_system(directory: Path) -> str:
    resolved = str(directory.resolve())
    mounts = [
        part
        for part in psutil.disk_partitions(all=True)
        if resolved == part.mountpoint or resolved.startswith(part.mountpoint.rstrip("/") + "/")
    ]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"


def _commit() -> str:
    def git(*arguments: str) -> str:
        finished = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
        return finished.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
