"""All news of some models over successive connections, each with the token that resumes after it."""

from collections.abc import AsyncGenerator, Sequence
from typing import TypeAlias

from cogment_model_registry.client.calls import Calls, method_path
from cogment_model_registry.client.deadlines import Backoff, Deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.lifecycle_calls import missing_service
from cogment_model_registry.client.streams import streaming
from cogment_model_registry.client.watching import CHECK_SECONDS, Connected, Disconnected, stream_seconds
from cogment_model_registry.errors import TimedOutError, UnavailableError, WrongServerError, counted
from cogment_model_registry.records.news import News
from cogment_model_registry.wire import messages
from cogment_model_registry.wire import watching as wire
from cogment_model_registry.wire.lifecycle import SERVICE_NAME

_Event: TypeAlias = News | Connected | Disconnected


async def follow(
    calls: Calls, model_ids: Sequence[str], resume_token: str, *, accepted: str, consumers: bool
) -> AsyncGenerator[_Event, None]:
    """Yield the news of some models, and the changes of the connection.

    Args:
        calls: Makes the calls.
        model_ids: The models; none for all.
        resume_token: Where to go on; empty for the beginning.
        accepted: A filter of versions.
        consumers: Whether what consumers report is news.

    Raises:
        ModelRegistryError: The server does not have the call, or refuses the token or the filter.
    """
    subject = Subject(f"watching {counted(len(model_ids), 'model') if model_ids else 'all models'}")
    token = resume_token
    backoff = Backoff()
    while True:
        try:
            # A stream is silent while nothing is new, and also when its server vanished.
            await calls.without_retries().unary(
                "Version", messages.VersionRequest(), messages.ServiceVersionInfo, subject, Deadline(CHECK_SECONDS)
            )
            yield Connected()
            request = wire.watch_request(model_ids, token, every=True, accepted=accepted, consumers=consumers)
            path = method_path("Watch", SERVICE_NAME)
            async with streaming(calls, path, request, subject, stream_seconds()) as replies:
                while (message := await replies.read()) is not None:
                    reply = wire.decode_reply(message)
                    if isinstance(reply, wire.Bytes):
                        continue  # nobody asked for them
                    token = reply.token or token
                    if reply.event is not None:  # it is None if it is one of a newer release
                        backoff = Backoff()
                        yield News(reply.event, token)
        except WrongServerError as error:
            raise missing_service(subject) from error
        except (UnavailableError, TimedOutError) as error:
            yield Disconnected(error)
            await calls.backend.sleep(backoff.next_seconds(error))
