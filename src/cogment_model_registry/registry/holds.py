"""Versions that somebody needs for a while, so that retention does not delete them."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Holds:
    """Who needs which versions."""

    def __init__(self) -> None:
        self._holds: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)

    @contextmanager
    def holding(self, model_id: str, number: int, reason: str) -> Iterator[None]:
        """Return the context manager in which a version is needed.

        Args:
            model_id: Its model.
            number: Its number.
            reason: Why, as `of` says.
        """
        hold = (number, reason)
        self._holds[model_id].append(hold)
        try:
            yield
        finally:
            self._holds[model_id].remove(hold)
            if not self._holds[model_id]:
                del self._holds[model_id]

    def of(self, model_id: str) -> Mapping[int, str]:
        """Return the numbers of the versions of a model that are needed now, and why."""
        return dict(self._holds.get(model_id, ()))
