"""What consumers report, next to what a watcher is told of versions: the newest report of each, whoever is slow."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TypeAlias

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.records.news import Event
from cogment_model_registry.registry.consumers import Consumers

Told: TypeAlias = "AsyncGenerator[tuple[str, Event], None]"


async def with_consumers(
    events: Told, consumers: Consumers, is_wanted: Callable[[str], bool], token: str
) -> AsyncGenerator[tuple[str, Event | Consumer], None]:
    """Yield events, and between them the consumers that exist and what they report; a slow watcher skips reports.

    Args:
        events: What a watcher is told; closed by the caller.
        consumers: Who reports.
        is_wanted: Whether consumers of a model are told.
        token: The token of the watcher.
    """
    newest: dict[tuple[str, str], Consumer] = {}
    news = asyncio.Event()

    def note(consumer: Consumer) -> None:
        if is_wanted(consumer.model_id):
            newest[consumer.model_id, consumer.consumer_id] = consumer
            news.set()

    with consumers.listening(note):
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
