"""What clients do, each in a thread of its own, one operation after the other; and how they record it.

Most go on until they are stopped. Those that follow a model end when they have received its last version, whose tag
says so.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from cogment_model_registry import Gap, ModelRegistry
from cogment_model_registry.errors import ClosedError, ConflictError, ModelRegistryError, NotFoundError
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.testing.bytes import hash_of
from tests.torture.oracle import payload
from tests.torture.several_servers.history import Kind, Operation, Outcome, to_line

ALIAS = "production"
LAST = "last"
"""How the tag of the last version of a model begins."""

TIMEOUT_SECONDS = 20.0
"""How long a call may take, with all its retries: longer than most faults."""

_PAUSE_SECONDS = 0.25
_RECENT = 10


def data_of(tag: str, size_bytes: int) -> bytes:
    """Return bytes that name their tag, and of which two tags have no part in common."""
    return f"{tag}\n".encode() + payload(tag, size_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What a process does.

    Attributes:
        name: Its name.
        endpoints: The addresses of the servers, by name.
        models: The models.
        seed: The source of its random choices.
        threads: How many threads do each kind of work.
        path: Where it records.
    """

    name: str
    endpoints: dict[str, str]
    models: list[str]
    seed: str
    threads: dict[str, int]
    path: str


class Recorder:
    """Writes the operations of all threads into one file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def note(self, operation: Operation) -> None:
        """Record an operation."""
        with self._lock:
            self._file.write(to_line(operation))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Draft:
    """An operation that has begun."""

    def __init__(self, operation: Operation) -> None:
        self.operation = operation

    def set(self, **fields: object) -> None:
        """Set what is known of it now."""
        self.operation = dataclasses.replace(self.operation, **fields)  # type: ignore[arg-type]

    def show(self, version: VersionInfo) -> None:
        """Set what a reply says of a version."""
        tag = version.user_data.get("tag", "")
        self.set(number=version.number, tag=tag, data_hash=version.data_hash, archived=version.archived)

    def show_bytes(self, data: bytes) -> None:
        """Set what the bytes of a version are."""
        tag = data.split(b"\n", 1)[0].decode("utf-8", "replace")
        self.set(tag=tag, data_hash=hash_of(data))


class Worker:
    """One thread: its client, its models, and what it records.

    Args:
        name: Its name in the history.
        task: The task of the process.
        recorder: Where it records.
        stop: Set when it shall end.
        server: The only server that it asks; empty for all.
    """

    def __init__(
        self, name: str, task: Task, recorder: Recorder, stop: threading.Event | None = None, *, server: str = ""
    ) -> None:
        self.name = name
        self.server = server
        self.random = Random(f"{task.seed} {name}")
        self.models = task.models
        endpoints = [task.endpoints[server]] if server else [*task.endpoints.values()]
        self.registry = ModelRegistry(",".join(endpoints), timeout=TIMEOUT_SECONDS, progress=False)
        self.stop = stop or threading.Event()
        self._recorder = recorder
        self._count = 0

    def repeat(self, act: Callable[[str], None]) -> None:
        """Act on one model after the other, until the end."""
        while not self.stop.wait(self.random.uniform(0, _PAUSE_SECONDS)):
            act(self.random.choice(self.models))

    @contextmanager
    def doing(self, kind: Kind, model_id: str, **fields: object) -> Iterator[Draft]:
        """Return a context manager that records an operation, with its error, which ends there."""
        began_ns = time.monotonic_ns()
        draft = Draft(
            Operation(
                client=self.name,
                kind=kind,
                model_id=model_id,
                began_ns=began_ns,
                ended_ns=began_ns,
                outcome=Outcome.OK,
                server=self.server,
            )
        )
        draft.set(**fields)
        try:
            yield draft
        except ModelRegistryError as error:
            draft.set(outcome=_outcome_of(error), error=f"{type(error).__name__}: {error}")
        draft.set(ended_ns=time.monotonic_ns())
        self._recorder.note(draft.operation)

    def next_tag(self) -> str:
        """Return a tag that nobody else has."""
        self._count += 1
        return f"{self.name} {self._count}"


def _outcome_of(error: ModelRegistryError) -> Outcome:
    if isinstance(error, ConflictError):
        return Outcome.CONFLICT
    if isinstance(error, NotFoundError):
        return Outcome.ABSENT
    return Outcome.UNKNOWN if error.may_be_done or isinstance(error, ClosedError) else Outcome.FAILED


def create(worker: Worker, model_id: str, tag: str, size_bytes: int, *, archived: bool) -> None:
    """Publish or store a version."""
    data = data_of(tag, size_bytes)
    upload = worker.registry.store if archived else worker.registry.publish
    with worker.doing(Kind.CREATE, model_id, tag=tag, data_hash=hash_of(data), archived=archived) as draft:
        draft.set(number=upload(model_id, data, user_data={"tag": tag}, create=False).number)


def train(worker: Worker) -> None:
    """Publish, store and promote."""

    def act(model_id: str) -> None:
        dice = worker.random.random()
        if dice < 0.15:
            promote(worker, model_id)
        else:
            size_bytes = int(2 ** worker.random.uniform(0, 18 if dice < 0.95 else 21))
            create(worker, model_id, worker.next_tag(), size_bytes, archived=dice < 0.45)

    worker.repeat(act)


def promote(worker: Worker, model_id: str) -> None:
    """Make a recent version archived."""
    number = recent_number(worker, model_id)
    if number:
        with worker.doing(Kind.PROMOTE, model_id, number=number):
            worker.registry.promote(model_id, number)


def look_at_latest(worker: Worker, model_id: str) -> int:
    """Look the latest version up, and return its number; 0 if there is none, or no answer."""
    with worker.doing(Kind.LATEST, model_id) as draft, contextlib.suppress(NotFoundError):
        draft.show(worker.registry.get_version(model_id))
    return draft.operation.number


def recent_number(worker: Worker, model_id: str) -> int:
    """Return the number of one of the newest versions, which may be gone; 0 if there is none, or no answer."""
    latest = look_at_latest(worker, model_id)
    return max(1, latest - worker.random.randrange(_RECENT)) if latest else 0


def delete(worker: Worker) -> None:
    """Delete versions that are not among the newest ones."""

    def act(model_id: str) -> None:
        versions: list[VersionInfo] = []
        with contextlib.suppress(ModelRegistryError):
            versions = worker.registry.list_versions(model_id)
        if len(versions) > _RECENT:
            number = worker.random.choice(versions[:-_RECENT]).number
            with worker.doing(Kind.DELETE, model_id, number=number) as draft:
                try:
                    worker.registry.delete_version(model_id, number)
                except NotFoundError as error:  # lost, or an earlier deletion of unknown outcome
                    draft.set(outcome=Outcome.UNKNOWN, error=str(error))

    worker.repeat(act)


def deploy(worker: Worker) -> None:
    """Move an alias from the revision that was read."""

    def act(model_id: str) -> None:
        revision = read_alias(worker, model_id)
        number = recent_number(worker, model_id)
        if number and revision is not None:
            with worker.doing(Kind.MOVE, model_id, number=number, expected=revision) as draft:
                alias = worker.registry.set_alias(model_id, ALIAS, number, expected=revision)
                draft.set(number=alias.version_number, revision=alias.revision)

    worker.repeat(act)


def read_alias(worker: Worker, model_id: str) -> int | None:
    """Read the alias, and return its revision; None without an answer."""
    with worker.doing(Kind.READ_ALIAS, model_id) as draft:
        alias = worker.registry.aliases(model_id).get(ALIAS)
        if alias is not None:
            draft.set(number=alias.version_number, revision=alias.revision)
    return draft.operation.revision if draft.operation.outcome is Outcome.OK else None


def read(worker: Worker) -> None:
    """Look at what one server shows."""

    def act(model_id: str) -> None:
        number = recent_number(worker, model_id)
        if number:
            with worker.doing(Kind.FIND, model_id, number=number) as draft:
                draft.show(worker.registry.get_version(model_id, number))
        if number and worker.random.random() < 0.3:
            with worker.doing(Kind.RETRIEVE, model_id, number=number) as draft:
                draft.show_bytes(worker.registry.retrieve(model_id, number))
        read_alias(worker, model_id)

    worker.repeat(act)


def track(worker: Worker, model_id: str) -> None:
    """Follow the latest version of a model, with its bytes, to the last one."""
    tag, number = "", 0
    with worker.registry.track(model_id, decode=hash_of) as latest:
        while not tag.startswith(LAST):
            latest.wait_for(newer_than=number)
            assert latest.snapshot is not None
            version, data_hash = latest.snapshot
            with worker.doing(Kind.NEWS, model_id) as draft:
                draft.show(version)
                draft.set(data_hash=data_hash)
            tag, number = version.user_data["tag"], version.number


def watch(worker: Worker, model_id: str) -> None:
    """Follow all versions of a model to the last one, and retrieve some of them."""
    for news in worker.registry.watch(model_id, all=True):
        if isinstance(news, Gap):
            with worker.doing(Kind.GAP, model_id, number=news.first_number, last_number=news.last_number):
                pass
            continue
        with worker.doing(Kind.NEWS, model_id) as draft:
            draft.show(news)
        if news.user_data["tag"].startswith(LAST):
            return
        if worker.random.random() < 0.3:
            retrieve(worker, news)


def retrieve(worker: Worker, version: Version) -> None:
    """Retrieve a version that was announced."""
    with worker.doing(Kind.RETRIEVE, version.model_id, number=version.number) as draft:
        draft.show_bytes(worker.registry.retrieve(version))


WORKS = {"train": train, "delete": delete, "deploy": deploy, "read": read}
"""Works that end with the input of the process. `read` has one thread for each server."""

FOLLOWING = {"track": track, "watch": watch}
"""Works that end with the last version of a model. They have a thread for each model."""
