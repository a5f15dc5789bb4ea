"""A run: how thorough it is, where its files go, and the processes that its figures share."""

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
    """Something that a benchmark needs is not on this machine; the message says what."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The registry, and its floor."""

    registry: ServerProcess
    floor: ServerProcess

    def mark(self) -> None:
        """Begin to count the time of processors anew."""
        self.registry.mark_processor()
        self.floor.mark_processor()

    def processor_ratio(self, calls: Blocks | None = None, floor_calls: Blocks | None = None) -> float:
        """Return what a call has taken of processors since `mark`, divided by what it took for the floor.

        Args:
            calls: How many calls there were; as many as of the floor when None.
            floor_calls: How many there were of the floor.
        """
        ratio = self.registry.marked_processor_seconds() / max(self.floor.marked_processor_seconds(), 0.01)
        if calls and floor_calls:
            ratio *= sum(map(sum, floor_calls)) / sum(map(sum, calls))
        return round(ratio, 3)


class Bench:
    """What all figures of a run share.

    Args:
        directory: Where archives and files go: on the disk that is to be measured.
        quick: Whether less is measured, in less time.
        mlflow: The program of MLflow, if it is not in `PATH`.

    Attributes:
        quick: As above.
        mlflow: As above.
        budget_mib: The memory budget of registries, if a benchmark does not give them one of its own.
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
        """Return how much the disk that is measured has room for."""
        return shutil.disk_usage(self._directory).free

    def require_room(self, size_bytes: int) -> None:
        """Raise `NotHereError` unless the disk that is measured has room for so many bytes."""
        if self.free_bytes() < size_bytes:
            raise NotHereError(f"the disk has no room for {size_bytes // MIB:,} MiB")

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """Open a context with an empty directory, which is removed at the end."""
        self._places += 1
        path = self._directory / f"place-{self._places}"
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def registry(self, *flags: str, budget_mib: int = 0) -> Iterator[ServerProcess]:
        """Open a context with a registry that has an empty archive."""
        with (
            self.place() as place,
            processes.registry(
                place / "archive", f"--cache_max_bytes={(budget_mib or self.budget_mib) * MIB}", *flags
            ) as registry,
        ):
            yield registry

    @contextlib.contextmanager
    def pair(self, *flags: str, model_id: str = "walker", budget_mib: int = 0) -> Iterator[Pair]:
        """Open a context with a registry that has one model, and a floor."""
        with ExitStack() as stack:
            registry = stack.enter_context(self.registry(*flags, budget_mib=budget_mib))
            floor = stack.enter_context(processes.floor())
            for server in (registry, floor):
                self.load(0).run(job(prepare, server.port, [model_id]))
            yield Pair(registry, floor)

    def fit_floor(self, pair: Pair, upload: Upload, *, with_bytes: bool = False) -> None:
        """Let the floor answer with messages of the sizes that the registry answers with; creates a version.

        Args:
            pair: The registry and the floor.
            upload: The version.
            with_bytes: Whether watchers are sent what followers of the registry are, with its bytes.
        """
        self.load(0).run(job(shape_like, pair.registry.port, pair.floor.port, upload, with_bytes=with_bytes))

    def fill_budget(self, pair: Pair, upload: Upload) -> None:
        """Publish versions until each further one evicts another, as it is in use: memory is then recycled."""
        self.load(0).run(
            job(upload_seconds, pair.registry.port, upload, self.budget_mib * MIB // upload.size_bytes + 1)
        )

    def close(self) -> None:
        """End the processes that make calls."""
        for load in self._loads:
            load.close()
        self._loads.clear()


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Something to be measured.

    Attributes:
        name: What `--only` names it.
        what: What it tells, for `--list`.
        run: What measures it.
    """

    name: str
    what: str
    run: Callable[[Bench], Sequence[Outcome]]
