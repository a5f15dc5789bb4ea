"""The latest version of a model in parameters that exist, loaded when their owner says so: between two steps."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar

from cogment_model_registry.client.blocking import ModelRegistry, track_applied
from cogment_model_registry.client.signatures import TrustedKeys
from cogment_model_registry.errors import InvalidError
from cogment_model_registry.frameworks.versions import about
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.versions import VersionInfo

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

_T = TypeVar("_T")
_D = TypeVar("_D")


class TrackOptions(TypedDict, total=False):
    """Further arguments of `track` of each framework: those of `ModelRegistry.track`, and of `decode`."""

    archived: bool
    alias: str | None
    verify: "TrustedKeys | None"
    consumer: str | None
    labels: Mapping[str, str] | None
    ttl_seconds: int
    prefix: str
    strict: bool


class Tracked(Generic[_T]):
    """Parameters that follow the latest version of a model. Made by `track`; enter it using `with`.

    A thread fetches each new version, and `update` loads it. Use it from one thread at a time: the one that uses the
    parameters.

    Attributes:
        value: The parameters; with JAX, those of `version`, or those that were given until the first is loaded.
        version: The version that was loaded last; None until the first.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        model_id: str,
        value: _T,
        *,
        stage: Callable[[memoryview], _D],
        load: Callable[[_D], _T],
        options: Mapping[str, Any],
    ) -> None:
        """Prepare to track.

        Args:
            registry: The client.
            model_id: The model.
            value: The parameters.
            stage: Turns the bytes of a version into what `load` takes, on the thread.
            load: Loads it, and returns the parameters.
            options: Those of `track_applied`.
        """
        self.value = value
        self.version: VersionInfo | None = None
        self._load = load
        # In a list, so that it can be released once it is loaded.
        self._latest, self._reporter = track_applied(registry, model_id, lambda data: [stage(data)], **options)
        self._tried: VersionInfo | None = None
        self._refusal: InvalidError | None = None

    def __enter__(self) -> "Self":
        self._latest.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._latest.__exit__(kind, error, traceback)

    def update(self) -> VersionInfo | None:
        """Load the latest version that is at hand, unless it was loaded; never waits for the registry.

        Call it between two steps, and never between a forward pass and its backward pass.

        Returns:
            The version; None if nothing changed: there is no other one, or it does not fit, as `error` says then.
        """
        snapshot = self._latest.snapshot
        if snapshot is None or snapshot[0] == self._tried:
            return None
        version, staged = snapshot
        self._tried = version
        try:
            self.value = self._load(staged.pop())
        except Exception as error:
            if self._reporter is not None:
                self._reporter.note("failed", error=error)
            if not isinstance(error, InvalidError):
                raise
            self._refusal = about(version, error.message)
            return None
        self.version, self._refusal = version, None
        if self._reporter is not None:
            self._reporter.note_applied(version.number)
        return version

    def wait_for(self, newer_than: int = 0, timeout: float | None = None) -> VersionInfo:
        """Wait for a version with a higher number, load it, and return it; for an alias, one with another number.

        Args:
            newer_than: The number of the version that the caller has; 0 for none.
            timeout: How many seconds to wait at most; None for no limit.

        Raises:
            InvalidError: The version does not fit; the parameters are as before.
            TimedOutError: None came; the message includes `error`, if one is set.
            ClosedError: None will come: the model is not tracked, or the client was closed.
        """
        version = self._latest.wait_for(newer_than, timeout)
        self.update()
        if self._refusal is not None:
            raise self._refusal
        return self.version or version

    @property
    def error(self) -> BaseException | None:
        """Why the parameters may not be the latest; None without a problem. See `Latest.error`."""
        return self._refusal or self._latest.error

    @property
    def consumer(self) -> Consumer | None:
        """What the registry last answered to a report; None until then, and without a consumer's id."""
        return self._latest.consumer

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: version {self.version.number if self.version else None} of {self._latest!r}>"


def split(options: TrackOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of `ModelRegistry.track`, and those of `decode`."""
    fit = {"prefix", "strict"}
    given: dict[str, Any] = {**options}
    return (
        {name: option for name, option in given.items() if name not in fit},
        {name: option for name, option in given.items() if name in fit},
    )
