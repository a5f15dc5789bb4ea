"""Reports of consumers among the events of a watch: a slow watcher receives the newest report of each consumer."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TypeAlias

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.news import Event
from cogment_model_registry.registry.consumers import Consumers

Events: TypeAlias = "AsyncGenerator[tuple[str, Event], None]"


async def with_consumers(
    events: Events, consumers: Consumers, is_wanted: Callable[[str], bool], token: str
) -> AsyncGenerator[tuple[str, Event | Consumer], None]:
    """Yield events, and between them the consumers that exist and what they report; a slow watcher skips reports.

    Args:
        events: The events of the watch; closed by the caller.
        consumers: The consumers.
        is_wanted: Whether consumers of a model are wanted.
        token: The token of the watcher.
    """
    newest: dict[tuple[str, str], Consumer] = {}
    news = asyncio.Event()

    def note(consumer: Consumer) -> None:
        if is_wanted(consumer.model_id):
            newest[consumer.model_id, consumer.consumer_id] = consumer
            news.set()

    with consumers.listening(note, elsewhere=True):
        for consumer in await consumers.find():
            note(consumer)
        following = asyncio.ensure_future(anext(events))
        reporting = asyncio.ensure_future(news.wait())
        try:
            while True:
                await asyncio.wait([following, reporting], return_when=asyncio.FIRST_COMPLETED)
                if reporting.done():
                    news.clear()
                    while newest:
                        yield token, newest.pop(next(iter(newest)))
                    reporting = asyncio.ensure_future(news.wait())
                if following.done():
                    token, event = following.result()
                    yield token, event
                    following = asyncio.ensure_future(anext(events))
        finally:
            for task in (following, reporting):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
