"""Errors of gRPC in the registry's own terms: what a call is about, and what its failure means."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import grpc

from cogment_model_registry.client.endpoints import DEFAULT, ENDPOINT_VARIABLE
from cogment_model_registry.errors import ClosedError, LimitedError, ModelRegistryError
from cogment_model_registry.wire import channels, convert, pushback

_ADVICE = f"start a server there with `cogment services model_registry`, or name its endpoint in {ENDPOINT_VARIABLE}"
"""What to do if no server is at the default address."""


@dataclass(frozen=True, slots=True)
class Subject:
    """The subject of a call, with which an error's message begins.

    Attributes:
        text: A description; empty for none.
        model_id: Its model, if it has one.
        version_number: Its version, if it has one.
    """

    text: str
    model_id: str | None = None
    version_number: int | None = None

    def message(self, text: str) -> str:
        """Return a message about it."""
        return f"{self.text}: {text}" if self.text else text


class Peer(Protocol):
    """Where calls go."""

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed."""

    @property
    def peer(self) -> str:
        """The endpoint, for messages."""


@contextmanager
def translated(subject: Subject, peer: Peer, where: str = "", kind: str = channels.REGISTRY) -> Generator[None]:
    """Return a context manager that translates errors of gRPC into those of the registry.

    Args:
        subject: What the calls are about.
        peer: Where they go.
        where: Whom they are for; the peer by default.
        kind: What that is.
    """
    try:
        yield
    except grpc.RpcError as error:
        if peer.is_closed:
            raise ClosedError from error
        where = where or peer.peer
        error_type, message = channels.described(error, where, kind, _ADVICE if where == str(DEFAULT) else "")
        raised = error_type(
            subject.message(message),
            model_id=subject.model_id,
            version_number=subject.version_number,
        )
        if isinstance(raised, LimitedError):
            raised.retry_after_seconds = pushback.retry_after_seconds(error) or 0.0
        raise raised from error
    except convert.DecodeError as error:
        raise ModelRegistryError(
            subject.message("the server sent a malformed reply"),
            model_id=subject.model_id,
            version_number=subject.version_number,
        ) from error


def is_of_request(error: ModelRegistryError) -> bool:
    """Return whether only a request cannot be done now, as its server says, and the server goes on."""
    return isinstance(error.__cause__, grpc.RpcError) and pushback.is_serving(error.__cause__)
