"""What the metadata of a refused call says: when to call again, and whether the server goes on."""

from typing import Any

import pytest

from cogment_model_registry.errors import (
    ClosedError,
    LimitedError,
    ModelRegistryError,
    NotFoundError,
    OutOfServiceError,
    StoppingError,
    UnavailableError,
)
from cogment_model_registry.wire.pushback import is_serving, pushback, retry_after_seconds


class Refused:
    """A call that failed, as gRPC's client shows it."""

    def __init__(self, metadata: Any) -> None:
        self._metadata = metadata

    def trailing_metadata(self) -> Any:
        return self._metadata


@pytest.mark.parametrize(
    ("error", "is_going_on", "seconds"),
    [
        (UnavailableError("the archive fails"), True, None),
        (StoppingError(), False, None),
        (OutOfServiceError("the catalog does not answer here"), False, None),
        (LimitedError("too much", retry_after_seconds=1.5), False, 1.5),
        (NotFoundError("none"), False, None),
        (ClosedError(), False, None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_a_request_that_cannot_be_done_now_says_that_the_server_goes_on(
    error: ModelRegistryError, is_going_on: bool, seconds: float | None
) -> None:
    refused = Refused(pushback(error))
    assert (is_serving(refused), retry_after_seconds(refused)) == (is_going_on, seconds)


def test_a_call_that_failed_without_an_answer_says_nothing() -> None:
    for metadata in (None, ()):
        assert not is_serving(Refused(metadata))
