"""What the model says, as tables in Markdown."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from benchmarks.scale_model import keeping, spreading
from benchmarks.scale_model.costs import costs
from benchmarks.scale_model.figures import Figures, Measured, rows
from benchmarks.scale_model.inputs import Inputs, Machines, Work
from benchmarks.scale_model.spreading import Route, published, stored


def table(*lines: Sequence[str]) -> str:
    """Return a table; the first line has the names of the columns."""
    head, *rest = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rest))


def number(value: float) -> str:
    """Return a number with three digits that count, or with all before the point."""
    if value == 0:
        return "0"
    digits = max(0, 2 - int(f"{value:e}".partition("e")[2]))
    return f"{value:,.{digits}f}"


def size(value: float) -> str:
    """Return a count of bytes in the unit that fits."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000:
            return f"{number(value)} {unit}"
        value /= 1024
    return f"{number(value)} PiB"


def measured(run: Measured) -> str:
    """Return the table of the figures of a run."""
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    about = (
        f"Measured on {machine.date[:10]} at commit `{machine.commit}`: {machine.cores} cores ({machine.processor}), "
        f"{machine.memory_mib // 1024} GiB, {machine.kernel}, Python {machine.python}, grpcio {machine.grpcio}, "
        f"{versions}. The load was {machine.load} before."
    )
    lines = [(what, f"{number(value)} {unit}") for _, value, unit, what in rows(run.figures)]
    return f"{about}\n\n" + table(("figure", "value"), *lines)


def plain(value: float) -> str:
    """Return an input as it was given."""
    return f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"


def _plan(name: str, route: Route, work: Work, machines: Machines, figures: Figures) -> Sequence[str]:
    """Return the line of a piece of work: the fewest servers in time, and the number that is done first."""
    fewest = spreading.fewest(route, work, machines, figures)
    fastest = spreading.fastest(route, work, machines, figures)
    shown = fewest or fastest
    return (
        name,
        size(work.version_bytes * work.fetches * work.publishing_models / work.interval_seconds) + "/s",
        f"{fewest.servers:,}" if fewest else "**none is in time**",
        f"{size(fewest.sent_bytes / work.interval_seconds)}/s" if fewest else "",
        shown.limit,
        f"{fastest.servers:,}: {number(fastest.seconds)} s",
        size(spreading.memory_bytes(work, shown.servers, figures)) if route is published else "",
    )


_HEAD = ("work", "bytes to actors", "servers", "the busiest sends", "limit", "fastest", "memory of each")


def sizes(inputs: Inputs, figures: Figures) -> str:
    """Return the table of versions of several sizes, with the other inputs as they are."""
    lines = []
    for mib in (1, 10, 100, 256, 512, 1024):
        work = replace(inputs.work, version_gib=mib / 1024)
        lines.append(_plan(f"versions of {size(work.version_bytes)}", published, work, inputs.machines, figures))
    return table(_HEAD, *lines)


def knobs(inputs: Inputs, figures: Figures) -> str:
    """Return the table of what helps."""
    work, machines = inputs.work, inputs.machines
    eight = replace(work, actors_per_fetch=work.actors_per_fetch * 8)
    cases: list[tuple[str, Route, Work, Machines, Figures]] = [
        ("as asked", published, work, machines, figures),
        ("over TLS", published, work, machines, replace(figures, send=figures.send_tls)),
        ("half the size", published, replace(work, version_gib=work.version_gib / 2), machines, figures),
        (
            "five times the interval",
            published,
            replace(work, interval_seconds=work.interval_seconds * 5),
            machines,
            figures,
        ),
        ("8 actors share a fetch", published, eight, machines, figures),
        (
            "64 actors share a fetch",
            published,
            replace(eight, actors_per_fetch=work.actors_per_fetch * 64),
            machines,
            figures,
        ),
        ("a quarter of the processor time", published, work, machines, _faster(figures, 4)),
        ("a network of 10 Gbit/s", published, work, replace(machines, network_gbit=10.0), figures),
        ("stored, not published", stored, work, machines, figures),
        ("stored, and 8 actors share a fetch", stored, eight, machines, figures),
    ]
    return table(_HEAD, *(_plan(*case) for case in cases))


def _faster(figures: Figures, times: float) -> Figures:
    """Return figures of faster servers."""
    return replace(figures, send=figures.send / times, publish=figures.publish / times, relay=figures.relay / times)


def kept(inputs: Inputs, figures: Figures) -> str:
    """Return the table of what is kept."""
    taken = keeping.room(inputs.kept, figures)
    given = inputs.kept
    return table(
        ("what", "how much"),
        (f"{given.versions:,.0f} versions and {given.models:,.0f} models in PostgreSQL", size(taken.database_bytes)),
        (f"bytes of versions of {plain(given.archived_mib)} MiB in the object store", size(taken.stored_bytes)),
        ("objects in it", f"{taken.objects:,.0f}"),
        (
            f"written by {plain(given.stores_per_second)} stores a second",
            f"{number(keeping.written_gib_per_second(given))} GiB/s",
        ),
        ("days until that many versions exist", number(given.versions / given.stores_per_second / 86_400)),
    )


def database(inputs: Inputs, figures: Figures) -> str:
    """Return the table of what PostgreSQL can take."""
    machines, work = inputs.machines, inputs.work
    publishes = work.publishing_models / work.interval_seconds
    share = publishes / keeping.publishes_per_second(machines, figures)
    return table(
        (f"with {plain(machines.database_cores)} cores of PostgreSQL", "a second"),
        ("publishes", number(keeping.publishes_per_second(machines, figures))),
        ("stores", number(keeping.stores_per_second(machines, figures))),
        (
            "look-ups of the latest version, 16 at once on each server",
            number(keeping.lookups_per_second(machines, figures)),
        ),
        ("publishes of this work", f"{number(publishes)} ({share:.4%} of that)"),
    )


def money(inputs: Inputs, figures: Figures) -> str:
    """Return the table of what a month takes, and of what it costs as far as prices were given."""
    asked = (published, inputs.work, inputs.machines, figures)
    plan = spreading.fewest(*asked) or spreading.fastest(*asked)
    every = list(costs(inputs, plan, figures))
    lines = [
        (each.what, f"{number(each.quantity)} {each.unit}", number(each.amount) if each.price else "no price given")
        for each in every
    ]
    return table(
        ("a month takes", "quantity", "cost"),
        *lines,
        (
            "all of it",
            "",
            number(sum(each.amount for each in every)) if any(each.price for each in every) else "no price given",
        ),
    )


def options(*parts: type[Any]) -> str:
    """Return the table of the reader's inputs."""
    lines = [
        (f"`--{each.name}`", plain(float(str(each.default))), each.metadata["what"])
        for part in parts
        for each in fields(part)
    ]
    return table(("option", "default", "what"), *lines)


def report(inputs: Inputs, run: Measured) -> dict[str, str]:
    """Return the tables of the model, by their titles."""
    work, figures = inputs.work, run.figures
    title = f"{work.actors:,.0f} actors, a version of {size(work.version_bytes)} every {plain(work.interval_seconds)} s"
    return {
        title: knobs(inputs, figures),
        "Smaller versions": sizes(inputs, figures),
        "What is kept": kept(inputs, figures),
        "PostgreSQL": database(inputs, figures),
        "A month": money(inputs, figures),
    }
