"""The calls of both services in any order, compared with the same plain model.

Versions are promoted, tagged and deleted and aliases moved between the calls of `state_machine`. Each random filter of
a search is generated together with a Python function that accepts the same versions. After each sequence, both services
must show the same.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import grpc
import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from cogment_model_registry.records.lifecycle import AliasChange, AnnotationChange
from cogment_model_registry.wire import lifecycle
from tests.server.test_model_lifecycle import ABORTED, PRECONDITION, Lifecycle
from tests.torture.proof import Figures, Proof
from tests.torture.state_machine import (
    INVALID,
    MISSING,
    STEPS,
    USER_DATA_MAX_BYTES,
    Model,
    Refused,
    RegistryMachine,
    Reply,
    Version,
    World,
    ids,
    numbers,
)

_ALIASES = ("production", "canary", "été")
_BAD_ALIASES = ("latest", "7", "-1", "a/b", "")
_TAGS, _METRICS = ("stage", "a b"), ("return", "loss")

Key = int | str
Accepts = Callable[[str, Version], bool]


# Generated values.

aliases = st.sampled_from([*_ALIASES * 5, *_BAD_ALIASES])
keys = st.one_of(numbers, st.integers(-3, -1), aliases)
tag_texts = st.sampled_from(["best", "new", "", "two words", "é\u2028", 'quoted "', "x" * 30])
metric_values = st.sampled_from([0.0, 1.5, -1.5, 487.5, 1e300, 5e-324])
revisions = st.sampled_from(["any", "any", "right", "wrong"])
changes = st.lists(
    st.tuples(aliases, numbers | st.none(), st.sampled_from(["any", "any", "right", "right", "wrong", "new"])),
    min_size=1,
    max_size=3,
)


def quoted(text: str) -> str:
    """Return a text quoted as in a filter."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: bool(a == b),
    "!=": lambda a, b: bool(a != b),
    "<": lambda a, b: bool(a < b),
    "<=": lambda a, b: bool(a <= b),
    ">": lambda a, b: bool(a > b),
    ">=": lambda a, b: bool(a >= b),
}


def field_of(name: str, version: Version) -> Any:
    """Return the value of a field of a version; None if it has none."""
    kind, _, key = name.partition(".")
    entries: dict[str, Any] = {
        "tags": version.tags,
        "metrics": version.metrics,
        "user_data": version.info.user_data,
    }
    if kind in entries:
        return entries[kind].get(key.strip('"'))
    return {
        "version_number": version.info.version_number,
        "archived": version.info.archived,
        "data_size": version.info.data_size,
        "creation_timestamp": version.info.creation_timestamp,
    }[kind]


@st.composite
def comparisons(draw: st.DrawFn) -> tuple[str, Accepts]:
    """Return a comparison, and a function that accepts the same versions."""
    name, values = draw(
        st.sampled_from(
            [
                ("version_number", st.integers(-1, 12)),
                ("data_size", st.integers(0, 3000)),
                ("creation_timestamp", st.sampled_from([0, 1, 907957639, 2**63, 2**64 - 1])),
                ("metrics.return", metric_values),
                ("metrics.loss", metric_values),
                ("tags.stage", tag_texts),
                ('tags."a b"', tag_texts),
                ("user_data.key", st.sampled_from(["", "0", "é"])),
            ]
        )
    )
    value, symbol = draw(values), draw(st.sampled_from(sorted(_COMPARE)))
    text = f"{name} {symbol} {quoted(value) if isinstance(value, str) else repr(value)}"

    def accepts(_: str, version: Version) -> bool:
        found = field_of(name, version)
        return found is not None and _COMPARE[symbol](found, value)

    return text, accepts


@st.composite
def having(draw: st.DrawFn) -> tuple[str, Accepts]:
    """Return a filter on the tier, an alias or an entry, and a function that accepts the same versions."""
    kind = draw(st.sampled_from(["archived", "aliases", "tags", "metrics"]))
    if kind == "archived":
        wanted = draw(st.booleans())
        return f"archived = {str(wanted).lower()}", lambda _, version: version.info.archived == wanted
    if kind == "aliases":
        return has_alias(draw(st.sampled_from(_ALIASES)))
    key = draw(st.sampled_from(_TAGS if kind == "tags" else _METRICS))
    return f"{kind}:{quoted(key)}", lambda _, version: key in (version.tags if kind == "tags" else version.metrics)


def has_alias(name: str) -> tuple[str, Accepts]:
    return f"aliases:{quoted(name)}", lambda _, version: name in version.aliases


def negated(part: tuple[str, Accepts]) -> tuple[str, Accepts]:
    return f"NOT ({part[0]})", lambda model_id, version: not part[1](model_id, version)


def joined(parts: Sequence[tuple[str, Accepts]], is_and: bool) -> tuple[str, Accepts]:
    text = (" AND " if is_and else " OR ").join(f"({part[0]})" for part in parts)
    together = all if is_and else any
    return text, lambda model_id, version: together(part[1](model_id, version) for part in parts)


filters = st.recursive(
    comparisons() | having(),
    lambda inner: inner.map(negated) | st.builds(joined, st.lists(inner, min_size=2, max_size=3), st.booleans()),
    max_leaves=5,
) | st.just(("", lambda _model_id, _version: True))
page_sizes = st.sampled_from([1, 2, 0])
orders = st.sampled_from(["", "version_number", "archived", "data_size", "metrics.return", "tags.stage"])


class LifecycleMachine(RegistryMachine):
    """One sequence of calls of both services."""

    @property
    def _lifecycle(self) -> Lifecycle:
        return Lifecycle(self._world.client)

    def _find(self, model_id: str, key: Key) -> Version:
        """Return the version that a call is about."""
        if key == 0:
            raise Refused(INVALID)
        model = self._expected.find(model_id)
        if key in _BAD_ALIASES:
            raise Refused(INVALID)
        number = model.aliases.get(key, (0, 0))[0] if isinstance(key, str) else key
        version = model.resolve(number)
        if version is None:
            raise Refused(MISSING)
        return version

    def _message(self, version: Version) -> lifecycle.VersionMessage:
        return lifecycle.VersionMessage(
            version_info=version.info,
            tags=version.tags,
            metrics=version.metrics,
            aliases=sorted(version.aliases),
            revision=version.revision,
        )

    def _check_version(self, reply: Reply, version: Version) -> None:
        assert not isinstance(reply, grpc.StatusCode), f"{version} was refused with {reply}"
        self._check(lifecycle.version_message(reply), self._message(version))

    def _take_revision(self, version: Version, reply: Reply) -> None:
        """Take the revision of a reply, which must be a new one."""
        assert not isinstance(reply, grpc.StatusCode), f"{version} was refused with {reply}"
        assert reply.revision > version.revision, f"{reply} does not have a later revision than {version}"
        version.revision = reply.revision

    @rule(model_id=ids, key=keys, names=st.lists(aliases, max_size=2))
    def promote(self, model_id: str, key: Key, names: list[str]) -> None:
        reply = self._world.do(self._lifecycle.promote(key, *names, model_id=model_id))
        try:
            if {*names} & {*_BAD_ALIASES}:
                raise Refused(INVALID)
            version = self._find(model_id, key)
        except Refused as refusal:
            self._check(reply, refusal.code)
            return
        if not version.info.archived:
            self._expected.archive(model_id, version)
            self._take_revision(version, reply)
            self._world.figures.count("promotions")
        for name in names:
            self._point(model_id, name, version.info.version_number)
        self._check_version(reply, version)
        self._learn_aliases(model_id)

    def _point(self, model_id: str, name: str, number: int | None) -> None:
        """Move an alias, whose new revision is not known yet."""
        model = self._expected.models[model_id]
        if name in model.aliases:
            model.versions[model.aliases.pop(name)[0]].aliases.discard(name)
        if number is not None:
            model.aliases[name] = (number, 0)
            model.versions[number].aliases.add(name)

    def _learn_aliases(self, model_id: str) -> None:
        """Read the aliases of a model, and record the revisions of those that were moved."""
        model = self._expected.models[model_id]
        reply = self._world.do(self._lifecycle.models(model_id))
        found = {each.alias: (each.version_number, each.revision) for each in reply.models[0].aliases}
        self._check([*found], sorted(model.aliases))
        for name, (number, revision) in found.items():
            expected, known = model.aliases[name]
            self._check(number, expected)
            assert known == revision or (not known and revision > model.alias_revision), f"{name}: {found}, {model}"
        model.aliases = found
        model.alias_revision = max([model.alias_revision, *(revision for _, revision in found.values())])

    @rule(model_id=ids, wanted=changes)
    def set_aliases(self, model_id: str, wanted: list[tuple[str, int | None, str]]) -> None:
        model = self._expected.models.get(model_id, Model({}))
        requested = []
        for name, number, which in wanted:
            now = model.aliases.get(name, (0, 0))[1]
            expected = {"any": None, "right": now, "wrong": now + 1000, "new": 0}[which]
            requested.append(AliasChange(name, number, expected))
        reply = self._world.do(self._lifecycle.set_aliases(*requested, model_id=model_id))
        try:
            targets = self._check_changes(model_id, requested)
        except Refused as refusal:
            self._check(reply, refusal.code)
            return
        assert not isinstance(reply, grpc.StatusCode), f"{requested} were refused with {reply}"
        for change, version in targets:
            if version and not version.info.archived:
                self._expected.archive(model_id, version)
                version.revision = 0  # a new one, which is read below
            self._point(model_id, change.name, version.info.version_number if version else None)
        self._check({alias.name: alias.version_number for alias in reply}, {n: v[0] for n, v in model.aliases.items()})
        self._learn_aliases(model_id)
        for version in model.versions.values():
            if not version.revision:
                [found] = self._world.do(self._lifecycle.get(version.info.version_number, model_id=model_id))
                self._take_revision(version, found)
        self._world.figures.count("changes of aliases")

    def _check_changes(self, model_id: str, requested: list[AliasChange]) -> list[tuple[AliasChange, Version | None]]:
        """Return the targets of a change of aliases, if it is allowed."""
        names = [change.name for change in requested]
        if {*names} & {*_BAD_ALIASES} or len({*names}) < len(names) or any(c.version_number == 0 for c in requested):
            raise Refused(INVALID)
        model = self._expected.find(model_id)
        targets = [
            (change, None if change.version_number is None else self._find(model_id, change.version_number))
            for change in requested
        ]
        for change in requested:
            now = model.aliases.get(change.name, (0, 0))[1]
            if change.expected_revision is not None and change.expected_revision != now:
                raise Refused(ABORTED)
            if change.version_number is None and not now:
                raise Refused(MISSING)
        return targets

    @rule(
        model_id=ids,
        key=keys,
        tags=st.dictionaries(st.sampled_from(_TAGS), tag_texts | st.none(), max_size=2),
        metrics=st.dictionaries(
            st.sampled_from(_METRICS), metric_values | st.sampled_from([None, math.nan, -math.inf]), max_size=2
        ),
        which=revisions,
    )
    def update(
        self, model_id: str, key: Key, tags: dict[str, str | None], metrics: dict[str, float | None], which: str
    ) -> None:
        change = AnnotationChange(
            {name: text for name, text in tags.items() if text is not None},
            [name for name, text in tags.items() if text is None],
            {name: value for name, value in metrics.items() if value is not None},
            [name for name, value in metrics.items() if value is None],
            self._expected_revision(model_id, key, which),
        )
        reply = self._world.do(self._lifecycle.update(key, change, model_id))
        try:
            version, after = self._updated(model_id, key, change)
        except Refused as refusal:
            self._check(reply, refusal.code)
            return
        version.tags, version.metrics = after
        self._take_revision(version, reply)
        self._check_version(reply, version)
        self._world.figures.count("updates of versions")

    def _expected_revision(self, model_id: str, key: Key, which: str) -> int:
        try:
            now = self._find(model_id, key).revision
        except Refused:
            now = 1
        return {"any": 0, "right": now, "wrong": now + 1000}[which]

    def _updated(
        self, model_id: str, key: Key, change: AnnotationChange
    ) -> tuple[Version, tuple[dict[str, str], dict[str, float]]]:
        """Return a version with its new tags and metrics, if the change is allowed."""
        if not all(map(math.isfinite, change.set_metrics.values())):
            raise Refused(INVALID)
        version = self._find(model_id, key)
        if change.expected_revision not in (0, version.revision):
            raise Refused(ABORTED)
        tags = {name: text for name, text in version.tags.items() if name not in change.remove_tags}
        metrics = {name: value for name, value in version.metrics.items() if name not in change.remove_metrics}
        after = ({**tags, **change.set_tags}, {**metrics, **change.set_metrics})
        before_bytes, after_bytes = annotation_bytes(version.tags, version.metrics), annotation_bytes(*after)
        if before_bytes < after_bytes > USER_DATA_MAX_BYTES:
            raise Refused(INVALID)
        return version, after

    @rule(model_id=ids, key=keys, force=st.booleans())
    def delete_version(self, model_id: str, key: Key, force: bool) -> None:
        reply = self._world.do(self._lifecycle.delete(key, force=force, model_id=model_id))
        try:
            version = self._find(model_id, key)
            if version.aliases and not force:
                raise Refused(PRECONDITION)
        except Refused as refusal:
            self._check(reply, refusal.code)
            return
        self._check(reply, None)
        for name in [*version.aliases]:
            self._point(model_id, name, None)
        self._expected.remove(model_id, version)
        self._world.figures.count("deletions of versions")

    # Most random numbers belong to no version, so these calls choose versions that exist.

    @precondition(lambda self: self._expected.versions_count)
    @rule(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["promote", "promote", "alias", "alias", "update", "delete", "search"]),
                st.integers(0, 30),
                st.sampled_from(_ALIASES),
                st.sampled_from(["any", "right", "right", "wrong", "new"]),
                tag_texts,
                metric_values,
                st.booleans(),
            ),
            min_size=2,
            max_size=6,
        )
    )
    def change_existing(self, steps: list[tuple[str, int, str, str, str, float, bool]]) -> None:
        for kind, which, name, expected, text, value, flag in steps:
            existing = [(each, number) for each, model in self._expected.models.items() for number in model.versions]
            if not existing:
                break
            model_id, number = existing[which % len(existing)]
            if kind == "promote":
                self.promote(model_id, number, [name] if flag else [])
            elif kind == "alias":
                self.set_aliases(model_id, [(name, None if flag and which % 3 == 0 else number, expected)])
            elif kind == "update":
                metrics: dict[str, float | None] = {"return": value} if flag else {}
                self.update(model_id, number, {"stage": text}, metrics, "any" if expected == "new" else expected)
            elif kind == "delete":
                self.delete_version(model_id, name if which % 2 else number, flag)
            else:
                self.search("", has_alias(name), "", flag, 0)

    @rule(accepted=filters, order=orders, down=st.booleans(), size=page_sizes)
    def search_everything(self, accepted: tuple[str, Accepts], order: str, down: bool, size: int) -> None:
        self.search("", accepted, order, down, size)

    @rule(model_id=ids | st.just(""), accepted=filters, order=orders, down=st.booleans(), size=page_sizes)
    def search(self, model_id: str, accepted: tuple[str, Accepts], order: str, down: bool, size: int) -> None:
        text, accepts = accepted
        fields = {"model_id": model_id, "filter": text, "order_by": f"{order} desc" if order and down else order}
        if model_id and not isinstance(self._model(model_id), Model):
            self._check(self._world.do(self._lifecycle.find(**fields)), self._model(model_id))
            return
        expected = [
            (model, version)
            for model in ([model_id] if model_id else sorted(self._expected.models))
            for version in self._expected.models[model].versions.values()
            if accepts(model, version)
        ]
        is_down = bool(order) and down
        name = order or "version_number"
        valued = [each for each in expected if field_of(name, each[1]) is not None]
        lacking = [each for each in expected if field_of(name, each[1]) is None]
        valued.sort(key=lambda each: (field_of(name, each[1]), each[0], each[1].info.version_number), reverse=is_down)
        lacking.sort(key=lambda each: (each[0], each[1].info.version_number), reverse=is_down)
        found: list[Any] = []
        token = ""
        while True:
            reply = self._world.do(self._lifecycle.find(**fields, page_size=size, page_token=token))
            assert not isinstance(reply, grpc.StatusCode), f"the search {fields} was refused with {reply}"
            found += reply.versions
            token = reply.next_page_token
            if not token:
                break
        self._check(found, [self._message(version) for _, version in valued + lacking])
        self._world.figures.count("searches")

    @rule(model_id=ids, wanted=st.lists(keys, min_size=1, max_size=4))
    def look_up(self, model_id: str, wanted: list[Key]) -> None:
        reply = self._world.do(self._lifecycle.get(*wanted, model_id=model_id))
        try:
            if 0 in wanted or wanted[0] in _BAD_ALIASES:
                raise Refused(INVALID)
            expected = [self._message(self._find(model_id, key)) for key in wanted]
        except Refused as refusal:
            self._check(reply, refusal.code)
            return
        self._check([lifecycle.version_message(version) for version in reply], expected)

    def compare_everything(self) -> None:
        """Compare what both services show."""
        super().compare_everything()
        self.search("", ("", lambda _model_id, _version: True), "version_number", False, 0)
        models = self._world.do(self._lifecycle.models()).models
        self._check([model.model_info.model_id for model in models], sorted(self._expected.models))
        for message in models:
            model = self._expected.models[message.model_info.model_id]
            archived = [len(version.data) for version in model.versions.values() if version.info.archived]
            self._check(
                (message.versions, message.latest_version_number, message.archived_bytes),
                (len(model.versions), max(model.versions, default=0), sum(archived)),
            )
            self._learn_aliases(message.model_info.model_id)


def annotation_bytes(tags: dict[str, str], metrics: dict[str, float]) -> int:
    """Return the size of tags and metrics; a metric counts as its name and 8 bytes."""
    return len("".join([*tags.keys(), *tags.values(), *metrics.keys()]).encode()) + 8 * len(metrics)


def attempt(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Generate sequences of calls, and compare each reply with the model."""
    set_hypothesis_home_dir(".cache/hypothesis")
    limits = settings(
        max_examples=rounds,
        stateful_step_count=STEPS,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking a failure may take hundreds of sequences
        suppress_health_check=list(HealthCheck),
    )
    with asyncio.Runner() as runner:
        world = World(place, runner, figures)
        try:

            @hypothesis.seed(random.getrandbits(64))
            class Sequences(LifecycleMachine):
                def __init__(self) -> None:
                    super().__init__(world)

            run_state_machine_as_test(Sequences, settings=limits)
            world.end(kill=False)
        finally:
            world.close()


PROOF = Proof(
    name="state_machine",
    promise="Every call answers as documented, after any sequence of other calls",
    attempt=attempt,
    unit="sequences",
    short=4,
    long=1_000,
    batch=100,
)
