"""Retention: the deletion of the versions of a model that its rules do not keep.

A dry run and a real run decide alike, by `retention_rules.decide`. Between a decision and the deletion of a
version everything may change, so each deletion looks again in the turn of the model: when a version is gone that a
rule may have counted, or tags, metrics, aliases, tiers or rules have changed, it is decided again. New versions cannot
make a version kept that was not, so they change nothing.
"""

import asyncio
import bisect
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from time import time_ns

from cogment_model_registry.errors import DataLossError, NotFoundError
from cogment_model_registry.records.lifecycle import Decision, Version
from cogment_model_registry.records.retention import ModelAnnotations, ModelChange, RetentionRule, check_model_revision
from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.registry.contracts import (
    Archive,
    Catalog,
    ModelOutline,
    ModelRef,
    ModelState,
    Search,
    TransientStore,
    VersionStore,
)
from cogment_model_registry.registry.filters import ARCHIVED, BY_NUMBER, position_of
from cogment_model_registry.registry.holds import Holds
from cogment_model_registry.registry.registry import Registry
from cogment_model_registry.registry.retention_rules import Candidate, Rules, Verdict, decide
from cogment_model_registry.system.tasks import run_to_end

_PAGE = 200
"""How many versions are looked at at once, which is how long other calls may have to wait."""

_INLINE_MAX = 1000
"""How many versions are decided about on the event loop; more take a thread."""

_ATTEMPTS_MAX = 10
"""How often a model may change before a single deletion until the rest is left to the next run."""

_UNSETTLED = "the model changed too often while it was decided; the next run looks again"


class _OutdatedError(Exception):
    """A decision no longer holds; leaves the change of a model without changing anything."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The state of a model in which its rules have nothing to delete, whatever the time."""

    ref: ModelRef
    outline: ModelOutline


class Application:
    """Rules that are applied to a model, or tried. Made by `Retention.plan`.

    Attributes:
        deleted: How many versions were deleted so far.
        freed_bytes: How many bytes these had.
    """

    def __init__(
        self,
        retention: "Retention",
        ref: ModelRef,
        trial: Sequence[RetentionRule] | None,
        only: Collection[int] | None = None,
    ) -> None:
        self._retention = retention
        self._ref = ref
        self._trial = trial
        self._only = only
        self._revision = 0
        self._rules = Rules((), ref.model_id)
        self._numbers: list[int] = []  # of the versions that existed when it was decided and were not deleted here
        self._changes = 0
        self._candidates: dict[int, Candidate] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._doomed: deque[Verdict] = deque()
        self._held: Mapping[int, str] = {}
        self._is_unsettled = False
        self.deleted = 0
        self.freed_bytes = 0

    @property
    def doomed(self) -> Sequence[Verdict]:
        """The versions that are still to be deleted, ordered by number."""
        return self._doomed

    @property
    def kept(self) -> Sequence[Verdict]:
        """The versions that are kept, ordered by number."""
        return [verdict for verdict in self._verdicts.values() if not verdict.is_deleted]

    @property
    def mark(self) -> Mark | None:
        """The state of the model after all was deleted; None if rules may say something else later."""
        depends_on_time = any(rule.keep_seconds for rule in self._rules.rules)
        if self._is_unsettled or depends_on_time or self._doomed or self._held:
            return None
        newest = self._numbers[-1] if self._numbers else 0
        return Mark(self._ref, ModelOutline(self._changes, len(self._numbers), newest))

    def check_revision(self, expected: int) -> None:
        """Refuse to go on if the rules are those of another revision of the model; 0 for any.

        Raises:
            ConflictError: They are.
        """
        now = ModelAnnotations(revision=self._revision)
        check_model_revision(self._ref.model_id, now, ModelChange(expected_revision=expected))

    async def decisions(self, verdicts: Sequence[Verdict]) -> AsyncGenerator[Decision, None]:
        """Yield verdicts with their versions, without those that do not exist any more."""
        listed = [*verdicts]
        for start in range(0, len(listed), _PAGE):
            page = {verdict.number: verdict for verdict in listed[start : start + _PAGE]}
            for version in await self._retention.describe(self._ref, [*page]):
                verdict = page[version.number]
                yield Decision(version, verdict.is_deleted, verdict.reason)

    async def decide(self) -> None:
        """Look at all versions, and decide about them."""
        state = await self._retention.catalog.get_state(self._ref)
        self._numbers, self._changes = [*state.numbers], state.changes
        annotations = await self._retention.annotations_of(self._ref.model_id)
        rules = annotations.retention if self._trial is None else self._trial
        self._rules, self._revision = Rules(rules, self._ref.model_id), annotations.revision
        self._candidates = await self._retention.look_at(self._ref, self._rules, state.numbers)
        await self._decide()

    async def _decide(self) -> None:
        newest = self._numbers[-1] if self._numbers else 0
        elsewhere = await self._retention.catalog.held_elsewhere(self._ref)
        self._held = {**elsewhere, **self._retention.holds.of(self._ref)}
        arguments = self._rules.rules, [*self._candidates.values()], newest, self._held, self._retention.now_ns()
        if len(self._candidates) > _INLINE_MAX:
            verdicts = await asyncio.to_thread(decide, *arguments)
        else:
            verdicts = decide(*arguments)
        self._verdicts = {verdict.number: verdict for verdict in verdicts}
        only = self._only
        self._doomed = deque(each for each in verdicts if each.is_deleted and (only is None or each.number in only))

    async def delete(self) -> AsyncGenerator[Decision, None]:
        """Delete one version after the other, and yield each; decide again when the model has changed.

        To be closed with `contextlib.aclosing`. Left early, the rest stays.

        Raises:
            NotFoundError: The model was deleted.
            UnavailableError: The archive takes no writes.
        """
        attempts = 0
        while self._doomed:
            decision = await run_to_end(self._delete(self._doomed[0].number))
            if decision is not None:
                attempts = 0
                yield decision
                continue
            attempts += 1
            if attempts == _ATTEMPTS_MAX:
                for verdict in self._doomed:
                    self._verdicts[verdict.number] = replace(verdict, is_deleted=False, reason=_UNSETTLED)
                self._doomed.clear()
                self._is_unsettled = True
                return
            await self._decide_again()

    async def _delete(self, number: int) -> Decision | None:
        """Delete a version if that is still right in the turn of the model; None if it is not."""
        try:
            with ExitStack() as removal:
                async with self._retention.catalog.removing_version(self._ref, number) as info:
                    [version] = await self._retention.catalog.describe([info])
                    await self._require_doomed(number)
                    removal.enter_context(self._retention.holds.removing(self._ref, number))
                    await self._retention.store_of(info).remove_version(info)
        except (_OutdatedError, NotFoundError, DataLossError):
            return None
        verdict = self._verdicts.pop(number)
        self._doomed.remove(verdict)
        del self._candidates[number]
        del self._numbers[bisect.bisect_left(self._numbers, number)]
        self.deleted += 1
        self.freed_bytes += verdict.size_bytes
        return Decision(version, True, verdict.reason)

    async def _require_doomed(self, number: int) -> None:
        outline = await self._retention.catalog.get_outline(self._ref, self._numbers[-1])
        if outline.changes != self._changes:
            raise _OutdatedError
        if outline.versions != len(self._numbers):
            await self._drop_others(await self._retention.catalog.get_state(self._ref))
        if number in await self._retention.catalog.held_elsewhere(self._ref):
            raise _OutdatedError
        # Nothing is awaited from here to the mark of the removal, after which nobody can hold the version any more.
        if not self._verdicts[number].is_deleted or number in self._retention.holds.of(self._ref):
            raise _OutdatedError

    async def _decide_again(self) -> None:
        state = await self._retention.catalog.get_state(self._ref)
        if state.changes != self._changes:
            await self.decide()
        else:
            await self._drop_others(state)

    async def _drop_others(self, state: ModelState) -> None:
        """Decide again without the versions that are gone; newer ones change nothing about those that were there."""
        numbers = set(state.numbers)
        self._numbers = [number for number in self._numbers if number in numbers]
        self._candidates = {number: each for number, each in self._candidates.items() if number in numbers}
        await self._decide()


class Retention:
    """Applies rules to models.

    Args:
        registry: The registry, whose limits hold.
        catalog: What exists.
        archive: Where archived versions live.
        transient: Where transient versions live.
        holds: Who needs which versions.
        now_ns: The clock, in nanoseconds since the Unix epoch.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        archive: Archive,
        transient: TransientStore,
        *,
        holds: Holds,
        now_ns: Callable[[], int] = time_ns,
    ) -> None:
        self.catalog = catalog
        self.holds = holds
        self.now_ns = now_ns
        self._registry = registry
        self._archive = archive
        self._transient = transient

    async def plan(
        self,
        model_id: str,
        rules: Sequence[RetentionRule] | None = None,
        only: Collection[int] | None = None,
    ) -> Application:
        """Decide about the versions of a model, and delete nothing yet.

        Args:
            model_id: The model.
            rules: Rules to try; None for those of the model.
            only: The numbers of the only versions that may be deleted; None for all.

        Raises:
            InvalidError: The id or a rule breaks a rule.
            NotFoundError: The model does not exist.
        """
        self._registry.check_model_id(model_id)
        application = Application(self, await self.catalog.find(model_id), rules, only)
        await application.decide()
        return application

    async def has_changed(self, mark: Mark) -> bool:
        """Return whether a model has changed since its rules had nothing to delete."""
        try:
            return await self.catalog.get_outline(mark.ref) != mark.outline
        except NotFoundError:
            return True

    def require_writable(self, model_id: str) -> None:
        """Refuse to delete where the registry is read-only; see `Registry.require_writable`."""
        self._registry.require_writable(model_id)

    # What applications call.

    def store_of(self, info: VersionInfo) -> VersionStore:
        """Return the store that has a version."""
        return self._archive if info.archived else self._transient

    async def annotations_of(self, model_id: str) -> ModelAnnotations:
        """Return the rules of a model, and their revision."""
        summaries = await self.catalog.summarize([await self.catalog.get_model(model_id)])
        return summaries[0].annotations if summaries else ModelAnnotations()

    async def look_at(self, ref: ModelRef, rules: Rules, numbers: Sequence[int]) -> dict[int, Candidate]:
        """Return what rules need to know of the versions of a model with these numbers, as far as they exist."""
        found: dict[int, Candidate] = {}
        wanted = set(numbers)
        search = Search(ref.model_id, ARCHIVED, BY_NUMBER, None, _PAGE)
        while page := await self.catalog.search(search):
            found.update((version.number, rules.look_at(version)) for version in page if version.number in wanted)
            search = replace(search, after=position_of(BY_NUMBER, page[-1]))
        others = [number for number in numbers if number not in found]
        for start in range(0, len(others), _PAGE):
            page = await self.describe(ref, others[start : start + _PAGE])
            found.update((version.number, rules.look_at(version)) for version in page)
            await asyncio.sleep(0)
        return {number: found[number] for number in numbers if number in found}

    async def describe(self, ref: ModelRef, numbers: Sequence[int]) -> list[Version]:
        """Return versions of a model in the order given, without those that do not exist any more."""
        try:
            infos = await self.catalog.get_versions(ref.model_id, numbers)
        except (NotFoundError, DataLossError):
            infos = []
            for number in numbers:
                with suppress(NotFoundError, DataLossError):
                    infos += await self.catalog.get_versions(ref.model_id, [number])
        return await self.catalog.describe(infos)
