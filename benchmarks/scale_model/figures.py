"""What was measured: the costs of single units of work, from which the model computes."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from benchmarks.machine import Machine
from benchmarks.processes import ROOT

FILE = ROOT / "docs/benchmarks/scale.json"


def figure(unit: str, what: str) -> float:
    """Return the field of a figure, with its unit and a description."""
    value: float = field(metadata={"unit": unit, "what": what})
    return value


@dataclass(frozen=True, slots=True)
class Figures:
    """The measured costs. Seconds of a core are processor time of one process, in user and system mode."""

    publish: float = figure("core s / GiB", "receive a transient version: check, keep, answer")
    send: float = figure("core s / GiB", "send a version from memory")
    send_tls: float = figure("core s / GiB", "the same over TLS")
    relay: float = figure("core s / GiB", "receive a version from another server, check it, and keep it")
    bucket_read: float = figure("core s / GiB", "read a version from the object store, check it, and send it")
    bucket_write: float = figure("core s / GiB", "receive a version, and write it to the object store")
    send_cores: float = figure("cores", "that a server can keep busy while it sends, until its busiest thread is")
    idle: float = figure("MiB", "memory of an idle server")
    connection: float = figure("KiB", "memory of a connection")
    watcher: float = figure("KiB", "memory of a watcher on a connection that exists")
    notify: float = figure("core ms", "notify one watcher of a version")
    small_publish: float = figure("core ms", "publish 1 KiB: processor time of the server")
    small_publish_database: float = figure("core ms", "publish 1 KiB: processor time of PostgreSQL")
    small_store_database: float = figure("core ms", "store 1 KiB: processor time of PostgreSQL")
    lookup: float = figure("core ms", "look up the latest version, 16 at once: processor time of the server")
    lookup_database: float = figure("core ms", "the same: processor time of PostgreSQL; calls at once share a query")
    hear: float = figure("core ms", "hear of a version that another server published, with one watcher of its model")
    server_database: float = figure("core ms / s", "of PostgreSQL for one idle server")
    version_row: float = figure("bytes", "an archived version in PostgreSQL, with its indexes")
    transient_row: float = figure("bytes", "a transient version in PostgreSQL, with its indexes")
    model_row: float = figure("bytes", "a model in PostgreSQL, with its indexes")


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a run, with its machine.

    Attributes:
        machine: Where and when it was.
        versions: Version of each program that took part, by its name.
        figures: What was measured.
    """

    machine: Machine
    versions: dict[str, str]
    figures: Figures

    @classmethod
    def read(cls, path: Path = FILE) -> "Measured":
        """Return what a run wrote."""
        content = json.loads(path.read_text())
        values = {name: each["value"] for name, each in content["figures"].items()}
        return cls(Machine(**content["machine"]), content["versions"], Figures(**values))

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        figures = {
            name: {"value": round(value, 4), "unit": unit, "what": what}
            for name, value, unit, what in rows(self.figures)
        }
        content = {"machine": asdict(self.machine), "versions": self.versions, "figures": figures}
        path.write_text(json.dumps(content, indent=1) + "\n")


def rows(figures: Figures) -> Iterator[tuple[str, float, str, str]]:
    """Yield the name, the value, the unit and the description of each figure."""
    for each in fields(figures):
        yield each.name, getattr(figures, each.name), each.metadata["unit"], each.metadata["what"]
