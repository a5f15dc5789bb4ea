"""A run: its scope, its directory, and the processes that its figures share."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks import processes
from benchmarks.clients import Upload, prepare, shape_like, upload_seconds
from benchmarks.load import Load, job
from benchmarks.measures import MIB, Blocks, Curve, Result
from benchmarks.processes import ServerProcess

Outcome = Result | Curve


class NotHereError(Exception):
    """This machine lacks something that a benchmark needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The registry, and its floor."""

    registry: ServerProcess
    floor: ServerProcess

    def mark(self) -> None:
        """Reset the count of processor time."""
        self.registry.mark_processor()
        self.floor.mark_processor()

    def processor_ratio(self, calls: Blocks | None = None, floor_calls: Blocks | None = None) -> float:
        """Return the processor time of a call since `mark`, divided by that of a call to the floor.

        Args:
            calls: The number of calls; if None, the same as for the floor.
            floor_calls: The number of calls to the floor.
        """
        ratio = self.registry.marked_processor_seconds() / max(self.floor.marked_processor_seconds(), 0.01)
        if calls and floor_calls:
            ratio *= sum(map(sum, floor_calls)) / sum(map(sum, calls))
        return round(ratio, 3)


class Bench:
    """The shared parts of a run.

    Args:
        directory: The directory for archives and files, on the disk to be measured.
        quick: Whether to measure less, in less time.
        mlflow: The program of MLflow, if it is not in `PATH`.

    Attributes:
        quick: As above.
        mlflow: As above.
        budget_mib: The default memory budget of registries.
    """

    def __init__(self, directory: Path, *, quick: bool, mlflow: str = "") -> None:
        self.quick = quick
        self.mlflow = mlflow
        self.budget_mib = 128 if quick else 512
        self._directory = directory
        self._loads: list[Load] = []
        self._places = 0

    def choose(self, full: int, quick: int) -> int:
        """Return the first of two numbers, or the second one in a quick run."""
        return quick if self.quick else full

    def note(self, text: str) -> str:
        """Return a text in a quick run, and nothing in a full one."""
        return text if self.quick else ""

    def load(self, index: int) -> Load:
        """Return one of the processes that make calls."""
        while len(self._loads) <= index:
            self._loads.append(Load())
        return self._loads[index]

    def free_bytes(self) -> int:
        """Return the free space of the measured disk."""
        return shutil.disk_usage(self._directory).free

    def require_room(self, size_bytes: int) -> None:
        """Raise `NotHereError` unless the measured disk has this much free space."""
        if self.free_bytes() < size_bytes:
            raise NotHereError(f"the disk has no space for {size_bytes // MIB:,} MiB")

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """Return a context manager for an empty directory, which is removed at the end."""
        self._places += 1
        path = self._directory / f"place-{self._places}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def registry(self, *flags: str, budget_mib: int = 0) -> Iterator[ServerProcess]:
        """Return a context manager for a registry with an empty archive."""
        with (
            self.place() as place,
            processes.registry(
                place / "archive", f"--cache_max_bytes={(budget_mib or self.budget_mib) * MIB}", *flags
            ) as registry,
        ):
            yield registry

    @contextlib.contextmanager
    def pair(self, *flags: str, model_id: str = "walker", budget_mib: int = 0) -> Iterator[Pair]:
        """Return a context manager for a registry with one model, and a floor."""
        with ExitStack() as stack:
            registry = stack.enter_context(self.registry(*flags, budget_mib=budget_mib))
            floor = stack.enter_context(processes.floor())
            for server in (registry, floor):
                self.load(0).run(job(prepare, server.port, [model_id]))
            yield Pair(registry, floor)

    def fit_floor(self, pair: Pair, upload: Upload, *, with_bytes: bool = False) -> None:
        """Let the floor answer with messages of the same sizes as the registry; creates a version.

        Args:
            pair: The registry and the floor.
            upload: The version.
            with_bytes: Whether watchers receive the same message as followers of the registry, with the bytes.
        """
        self.load(0).run(job(shape_like, pair.registry.port, pair.floor.port, upload, with_bytes=with_bytes))

    def fill_budget(self, registry: ServerProcess, upload: Upload) -> None:
        """Publish versions until each further one evicts another, as in normal use: memory is then recycled."""
        self.load(0).run(job(upload_seconds, registry.port, upload, self.budget_mib * MIB // upload.size_bytes + 1))

    def close(self) -> None:
        """End the processes that make calls."""
        for load in self._loads:
            load.close()
        self._loads.clear()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: Its name for `--only`.
        what: Its description for `--list`.
        run: Measures it.
    """

    name: str
    what: str
    run: Callable[[Bench], Sequence[Outcome]]
