"""How far a watcher has been told, and the token with which it resumes.

A token names the last change that was told, which means something until the server stops; and, for a few models, how
far each has been told, which means something after a restart too.
"""

import base64
import json
from dataclasses import dataclass, field
from functools import lru_cache

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX

PLACES_MAX = 64
"""With how many models a token names the place of each."""

_TOKEN_MAX_CHARACTERS = 256 * 1024  # with the longest ids, escaped
_WHOLE_MAX = 2**63 - 1

LIFE_UNKNOWN = _WHOLE_MAX
"""The life in the place of a model that was told, and removed since then: a later life of it is another one."""


@dataclass(slots=True)
class Place:
    """How far a model has been told.

    Attributes:
        life: The life of the model that was told; 0 for none.
        number: The highest number that was told or skipped.
        told: The number of the version that was told last.
        lost_sequence: The last change that made versions disappear.
        changed: The last change of the model itself.
        digest: Stands for what was told about the model itself.
    """

    life: int = 0
    number: int = 0
    told: int = 0
    lost_sequence: int = 0
    changed: int = 0
    digest: int = 0

    def parts(self) -> tuple[int, ...]:
        """Return its values, in their order."""
        return self.life, self.number, self.told, self.lost_sequence, self.changed, self.digest


@dataclass(slots=True)
class Token:
    """Where a watch goes on.

    Attributes:
        epoch: The epoch of the sequence numbers.
        sequence: All changes up to this one were told, if they were told in order.
        model_id: The model of the version that was told last; it may have others with the same sequence number.
        number: The number of that version.
        places: How far each model was told; None when there are too many.
    """

    epoch: int
    sequence: int = 0
    model_id: str = ""
    number: int = 0
    places: dict[str, Place] | None = field(default_factory=dict)

    def encode(self) -> str:
        """Return the text of the token."""
        places = None
        if self.places is not None and len(self.places) <= PLACES_MAX:
            places = tuple([(model_id, *place.parts()) for model_id, place in self.places.items()])
        return _encode((self.epoch, self.sequence, self.model_id, self.number, places))

    @classmethod
    def decode(cls, text: str) -> "Token":
        """Return the token with a text.

        Raises:
            InvalidError: It has no such text.
        """
        try:
            if len(text) > _TOKEN_MAX_CHARACTERS:
                raise ValueError
            parts = json.loads(base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True))
            epoch, sequence, model_id, number, listed = parts
            places = None
            if listed is not None:
                places = {_text(each[0]): _place(each[1:]) for each in listed}
                if len(places) != len(listed) or len(places) > PLACES_MAX:
                    raise ValueError
            return cls(_whole(epoch), _whole(sequence), _text(model_id), _number(number), places)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise InvalidError("resume_token is malformed: it must be one that a watch has given") from None


@lru_cache(64)
def _encode(parts: tuple[object, ...]) -> str:
    """Return parts as text: once for all watchers that are equally far."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()


def _place(parts: list[object]) -> Place:
    life, number, told, lost_sequence, changed, digest = parts
    return Place(_whole(life), _number(number), _number(told), _whole(lost_sequence), _whole(changed), _whole(digest))


def _whole(value: object, largest: int = _WHOLE_MAX) -> int:
    if type(value) is not int or not 0 <= value <= largest:
        raise ValueError(value)
    return value


def _number(value: object) -> int:
    return _whole(value, VERSION_NUMBER_MAX)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    value.encode()  # a lone surrogate, which no message can carry, is a ValueError
    return value
