"""Consumers: processes that report which version of a model they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from cogment_model_registry.errors import InvalidError, counted, quoted
from cogment_model_registry.records.notebooks import Shown
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX, check_model_id, user_data_bytes

State: TypeAlias = Literal["unknown", "loading", "active", "failed", "gone"]
STATES: tuple[State, ...] = get_args(State)

TTL_DEFAULT_SECONDS = 30
"""How long a report counts that does not say."""

TTL_MAX_SECONDS = 86_400
"""The longest time that a report may count."""

ERROR_MAX_BYTES = 1024
LABELS_MAX_BYTES = 2048
HELD_MAX = 64
"""How many versions a consumer may hold."""


@dataclass(frozen=True, slots=True)
class Consumer(Shown):
    """A process that reports which version of a model it runs.

    Attributes:
        model_id: The model.
        consumer_id: Its name, which no other consumer of the model has.
        version_number: The version that it runs; 0 for none yet.
        state: ``loading``, ``active``, ``failed`` (to load a version; it still runs the one before), ``gone``, or
            ``unknown``, which a consumer may leave it at.
        error: Why it failed.
        labels: What it says about itself, such as its host.
        ttl_seconds: It is gone if it does not report again within this time.
        held_versions: The versions that are neither evicted nor deleted because of it.
        versions_behind: How many visible versions are newer than the one it runs. Filled in by the registry.
        seconds_behind: How long ago the first version that it does not have became visible; 0 if it runs the newest.
            Filled in by the registry.
        reported_ns: When it reported last, in nanoseconds since the Unix epoch. Filled in by the registry.
    """

    model_id: str
    consumer_id: str
    version_number: int = 0
    state: State = "unknown"
    error: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: int = 0
    held_versions: tuple[int, ...] = ()
    versions_behind: int = 0
    seconds_behind: float = 0.0
    reported_ns: int = 0

    def with_lag(self, versions_behind: int, seconds_behind: float, reported_ns: int) -> "Consumer":
        """Return it with what the registry fills in. `dataclasses.replace` takes twice as long, at each report."""
        return Consumer(
            self.model_id,
            self.consumer_id,
            self.version_number,
            self.state,
            self.error,
            self.labels,
            self.ttl_seconds,
            self.held_versions,
            versions_behind,
            seconds_behind,
            reported_ns,
        )

    @property
    def is_live(self) -> bool:
        """Whether it reports."""
        return self.state != "gone"


def check_consumer(consumer: Consumer, id_max_bytes: int) -> None:
    """Refuse a report that breaks a rule. The id of a consumer obeys the rules of model ids.

    Raises:
        InvalidError: It does.
    """
    try:
        check_model_id(consumer.consumer_id, id_max_bytes)
    except InvalidError as error:
        name = quoted(consumer.consumer_id)
        problem = error.message.removeprefix(f"model_id {name} ")
        raise InvalidError(f"consumer_id {name} {problem}", model_id=consumer.model_id) from None
    problem = _problem_of(consumer)
    if problem:
        raise InvalidError(f"consumer {quoted(consumer.consumer_id)}: {problem}", model_id=consumer.model_id)


def _problem_of(consumer: Consumer) -> str:
    """Return what is wrong with a report; empty if nothing is."""
    number, ttl_seconds = consumer.version_number, consumer.ttl_seconds
    if not 0 <= number <= VERSION_NUMBER_MAX:
        return f"version_number is {number}; it must be from 1, or 0 for a consumer that runs none yet"
    if consumer.state == "active" and not number:
        return "it is active, but runs no version; give the version_number"
    if not 0 <= ttl_seconds <= TTL_MAX_SECONDS:
        return f"ttl_seconds {ttl_seconds} must be from 1 to {TTL_MAX_SECONDS}, or 0 for {TTL_DEFAULT_SECONDS}"
    error_bytes, labels_bytes = len(consumer.error.encode(errors="surrogatepass")), user_data_bytes(consumer.labels)
    if error_bytes > ERROR_MAX_BYTES:
        return f"error has {counted(error_bytes, 'byte')} of UTF-8; at most {ERROR_MAX_BYTES} are allowed"
    if labels_bytes > LABELS_MAX_BYTES:
        return f"labels have {counted(labels_bytes, 'byte')} of UTF-8; at most {LABELS_MAX_BYTES} are allowed"
    return _holding_problem(consumer.held_versions)


def _holding_problem(numbers: Sequence[int]) -> str:
    if len(numbers) > HELD_MAX:
        return f"held_versions has {len(numbers)} entries; at most {HELD_MAX} are allowed"
    wrong = next((number for number in numbers if not 0 < number <= VERSION_NUMBER_MAX), None)
    return "" if wrong is None else f"held_versions has {wrong}, which is no version number"
