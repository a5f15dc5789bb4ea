"""One run: start everything, let faults happen while clients work, and compare what they saw with the promises."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from cogment_model_registry.records.versions import VersionInfo
from tests.torture.oracle import in_round
from tests.torture.proof import Figures
from tests.torture.several_servers import checks
from tests.torture.several_servers.aliases import check_aliases
from tests.torture.several_servers.faults import Fault, deck
from tests.torture.several_servers.history import History, Kind, Outcome, Trouble
from tests.torture.several_servers.live import ANSWERED
from tests.torture.several_servers.logs import complaints
from tests.torture.several_servers.recovery import kind_of, quartiles, recovery_ms
from tests.torture.several_servers.stage import FOLLOWING, MODELS, SERVERS, WORKING, Stage, stage
from tests.torture.several_servers.workers import LAST, Recorder, Task, Worker, create
from tests.waiting import until, wait_until

GOAL_MS = 5_000
"""How soon after a fault clients should go on. On a busy machine they may take longer, so it is counted only."""

_CALM_SECONDS = 1.5
_AUDITORS = 8
"""How many versions are retrieved at the same time at the end."""


def count_clients() -> int:
    """Return how many clients record something: threads for each server, for each model, or alone."""
    alone = sum(number for kinds in WORKING.values() for kind, number in kinds.items() if kind != "read")
    return alone + len(SERVERS) + sum(len(MODELS) * number for kinds in FOLLOWING.values() for number in kinds.values())


async def until_answered(on: Stage, since_ns: int) -> None:
    """Wait until each client was answered since a moment."""

    def have_gone_on() -> bool:
        on.check_clients()
        on.read_logs()
        return not on.live.waiting(since_ns, count_clients())

    await until(have_gone_on, lambda: f"not answered: {on.live.waiting(since_ns, count_clients())}")


async def happen(on: Stage, fault: Fault, random: Random) -> Trouble:
    """Let a fault happen, wait until all clients go on, and let them work for a while."""
    trouble = await fault.happen(on, random)
    try:
        await until_answered(on, trouble.ended_ns)
        if fault.repair:
            await fault.repair(on)
            await until_answered(on, time.monotonic_ns())
    except AssertionError as error:
        error.add_note(f"after {trouble}")
        raise
    await asyncio.sleep(random.uniform(0, _CALM_SECONDS))
    return trouble


class Auditor:
    """Looks at everything at the end, when nothing fails any more."""

    def __init__(self, on: Stage) -> None:
        self._stage = on
        endpoints = {name: on.endpoint(name) for name in SERVERS}
        path = on.place / "auditor.history"
        path.touch()
        on.live.add(path)
        self._recorder = Recorder(path)
        self._task = Task("auditor", endpoints, [*MODELS], "", {}, str(path))

    def worker(self, server: str = "") -> Worker:
        """Return a client of one server, or of all."""
        return Worker(f"auditor {server}".strip(), self._task, self._recorder, server=server)

    def begin(self) -> None:
        """Create the models."""
        with self.worker().registry as registry:
            for model_id in MODELS:
                registry.create_model(model_id)

    def create_last(self) -> None:
        """Store the last version of each model, by which those that follow it end."""
        worker = self.worker()
        with worker.registry:
            for model_id in MODELS:
                create(worker, model_id, f"{LAST} of {model_id}", 100, archived=True)

    def retrieve_all(self, history: History) -> int:
        """Retrieve all versions that each server lists, and return when that began.

        Args:
            history: What the clients saw. Each server must list what remains of it; after a crash of PostgreSQL, a
                server may need some seconds to announce what it has.
        """
        began_ns = time.monotonic_ns()
        models = history.by_model()
        for server in SERVERS:
            worker = self.worker(server)
            with worker.registry:
                for model_id in MODELS:
                    self._retrieve_model(worker, model_id, checks.remaining(models[model_id], began_ns))
        self._recorder.close()
        return began_ns

    def _retrieve_model(self, worker: Worker, model_id: str, kept: set[int]) -> None:
        def retrieve(version: VersionInfo) -> None:
            with worker.doing(Kind.RETRIEVE, model_id, number=version.number) as draft:
                draft.show_bytes(worker.registry.retrieve(version))

        def missing() -> set[int]:
            return kept - {version.number for version in worker.registry.list_versions(model_id)}

        wait_until(lambda: not missing(), lambda: f"{worker.server} has lost of {model_id}: {sorted(missing())}")
        with ThreadPoolExecutor(_AUDITORS) as pool:
            for done in [pool.submit(retrieve, version) for version in worker.registry.list_versions(model_id)]:
                done.result()


async def observe(on: Stage, faults: list[Fault], random: Random, figures: Figures) -> tuple[History, int]:
    """Let faults happen while clients work; return what they saw, and when the audit at the end began."""
    await asyncio.gather(*map(on.start_server, SERVERS))
    auditor = Auditor(on)
    await asyncio.to_thread(auditor.begin)
    await on.start_clients(WORKING | FOLLOWING, random)
    await until_answered(on, 0)
    troubles = []
    for number, fault in enumerate(faults):
        with in_round(number):
            troubles.append(await happen(on, fault, random))
        figures.count(fault.name)
    await on.stop_clients([*WORKING])
    await asyncio.to_thread(auditor.create_last)
    await on.stop_clients([*FOLLOWING])
    on.read_logs()
    on.live.read()
    audit_ns = await asyncio.to_thread(auditor.retrieve_all, History.of(on.live.operations, troubles, on.removed))
    on.read_logs()
    on.live.read()
    figures.count("leases removed", len(on.removed))
    return History.of(on.live.operations, troubles, on.removed), audit_ns


def check(history: History, audit_ns: int, figures: Figures) -> None:
    """Compare what was seen with the promises."""
    checks.check_identities(history)
    figures.count("acknowledged uploads", checks.check_numbers(history))
    looks, stale = checks.check_visibility(history)
    figures.count("looks at a model", looks)
    figures.count("looks that were out of date while PostgreSQL was away", stale)
    figures.count("news", checks.check_watchers(history))
    watchers = {one.client for one in history.having(Kind.NEWS) if " watch " in one.client}
    figures.count("gaps", checks.check_all_news(history, watchers))
    figures.count("operations on aliases", check_aliases(history))
    figures.count("versions found on all servers at the end", checks.check_remaining(history, SERVERS, audit_ns))
    for name in ("numbers given twice", "versions lost or torn", "moves of an alias lost"):
        figures.count(name, 0)
    unanswered = [one for one in history.operations if one.outcome not in ANSWERED]
    figures.count("operations that failed or have an unknown outcome", len(unanswered))
    figures.count("of them unknown", sum(one.outcome is Outcome.UNKNOWN for one in unanswered))


def measure(history: History, figures: Figures) -> None:
    """Count how long clients needed to go on."""
    starts = [trouble.began_ns for trouble in history.troubles]
    all_ms: list[float] = []
    late: list[str] = []
    for trouble, next_ns in zip(history.troubles, [*starts, None][1:], strict=True):
        needed_ms = recovery_ms(history, trouble, next_ns)
        all_ms += needed_ms.values()
        late += [f"{kind_of(client)} after {trouble.name}" for client, ms in needed_ms.items() if ms > GOAL_MS]
    figures.count("clients that a fault held up", len(all_ms))
    figures.count("of them longer than 5 s after its end", len(late))
    for one in sorted(late):
        figures.count(f"of these {one}")
    names = ("lower quartile", "median", "upper quartile", "maximum")
    for name, value in zip(names, quartiles(all_ms), strict=True):
        figures.peak(f"ms until they went on, {name}", value)


async def run(
    place: Path, databases: Path, rounds: int, random: Random, figures: Figures, *, has_own_network: bool
) -> None:
    """Let so many faults happen.

    Args:
        place: An empty directory.
        databases: Another one, which the user of PostgreSQL may enter.
        rounds: The number of faults.
        random: The source of all random choices.
        figures: What was counted.
        has_own_network: Whether this process has a network to itself.
    """
    async with stage(place, databases, has_own_network=has_own_network) as on:
        history, audit_ns = await observe(on, deck(rounds, random), random, figures)
        complained = complaints(on.logged())
        figures.count(f"faults in {on.network.description}", rounds)
    (place / "troubles").write_text("\n".join(map(str, history.excuses)))
    check(history, audit_ns, figures)
    measure(history, figures)
    assert not complained, "\n".join(["servers logged errors:", *complained[:50]])
