"""The position of a watcher in the events of models, and the token with which it resumes.

A token has the sequence number of the last change that was sent, which is valid until the server stops; and, for a few
models, the position in each, which is valid after a restart too.
"""

import base64
import json
from dataclasses import dataclass, field
from functools import lru_cache

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.versions import VERSION_NUMBER_MAX

POSITIONS_MAX = 64
"""Up to so many models, a token has the position in each."""

_TOKEN_MAX_CHARACTERS = 256 * 1024  # with the longest ids, escaped
_WHOLE_MAX = 2**63 - 1

LIFE_UNKNOWN = _WHOLE_MAX
"""The life in the position of a model that was sent, and removed since then: a later life of it is another one."""


@dataclass(slots=True)
class Position:
    """What a watcher has received of a model.

    Attributes:
        life: The life of the model that was sent; 0 for none.
        number: The highest number that was sent or skipped.
        sent: The number of the version that was sent last.
        lost_sequence: The last change that made versions disappear.
        changed: The last change of the model itself.
        digest: Changes with what was sent about the model itself.
    """

    life: int = 0
    number: int = 0
    sent: int = 0
    lost_sequence: int = 0
    changed: int = 0
    digest: int = 0

    def parts(self) -> tuple[int, ...]:
        """Return its values, in their order."""
        return self.life, self.number, self.sent, self.lost_sequence, self.changed, self.digest


@dataclass(slots=True)
class Token:
    """Where a watch continues.

    Attributes:
        epoch: The epoch of the sequence numbers.
        sequence: All changes up to this one were sent, if they were sent in order.
        model_id: The model of the version that was sent last; it may have others with the same sequence number.
        number: The number of that version.
        positions: The position in each model; None when there are too many.
    """

    epoch: int
    sequence: int = 0
    model_id: str = ""
    number: int = 0
    positions: dict[str, Position] | None = field(default_factory=dict)

    def encode(self) -> str:
        """Return the text of the token."""
        positions = None
        if self.positions is not None and len(self.positions) <= POSITIONS_MAX:
            positions = tuple([(model_id, *position.parts()) for model_id, position in self.positions.items()])
        return _encode((self.epoch, self.sequence, self.model_id, self.number, positions))

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
            positions = None
            if listed is not None:
                positions = {_text(each[0]): _position(each[1:]) for each in listed}
                if len(positions) != len(listed) or len(positions) > POSITIONS_MAX:
                    raise ValueError
            return cls(_whole(epoch), _whole(sequence), _text(model_id), _number(number), positions)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError):
            raise InvalidError("resume_token is malformed: it must be one that a watch has given") from None


@lru_cache(64)
def _encode(parts: tuple[object, ...]) -> str:
    """Return parts as text: once for all watchers with the same position."""
    return base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()


def _position(parts: list[object]) -> Position:
    life, number, sent, lost_sequence, changed, digest = parts
    return Position(
        _whole(life), _number(number), _number(sent), _whole(lost_sequence), _whole(changed), _whole(digest)
    )


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
