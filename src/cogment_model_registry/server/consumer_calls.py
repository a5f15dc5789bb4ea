"""The calls of ModelLifecycle for consumers: decode the request, call the rules, encode the reply."""

from collections.abc import Awaitable, Sequence

import structlog

from cogment_model_registry.errors import InvalidError, shown
from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.registry.access import find_readable
from cogment_model_registry.registry.consumers import Consumers
from cogment_model_registry.registry.filters import CONSUMERS, parse_filter
from cogment_model_registry.server.peers import is_for_a_peer
from cogment_model_registry.serving.calls import Call, UnaryAnswers
from cogment_model_registry.wire import consumers as wire
from cogment_model_registry.wire.lifecycle import build_token, fitting, page_size, parse_token

_log = structlog.stdlib.get_logger(__name__)


class ConsumerCalls:
    """Answers the calls for consumers.

    Args:
        rules: What answers.
        reply_max_bytes: Where a reply ends.
    """

    def __init__(self, rules: Consumers, reply_max_bytes: int) -> None:
        self._rules = rules
        self._reply_max_bytes = reply_max_bytes

    def answers(self) -> UnaryAnswers:
        """Return the methods by the names of the calls."""
        return {
            "ReportConsumer": (wire.ReportConsumerRequest, self._report_consumer),
            "ListConsumers": (wire.ListConsumersRequest, self._list_consumers),
        }

    async def _report_consumer(self, request: wire.ReportConsumerRequest, call: Call) -> bytes:
        message = request.consumer
        call.about(model_id=message.model_id, consumer=message.consumer_id, number=message.version_number)
        consumer = await self._rules.report(wire.consumer_from_message(message))
        return wire.ReportConsumerReply(consumer=wire.consumer_message(consumer)).SerializeToString()

    async def _list_consumers(self, request: wire.ListConsumersRequest, call: Call) -> bytes:
        if request.model_id:
            call.about(model_id=request.model_id)
        # A consumer that comes or goes in the meantime moves no page: the next one begins after a model and an id.
        question = (request.model_id, request.filter)
        after = _position(parse_token(request.page_token, question, 2))
        limit = page_size(request.page_size)
        accepted = parse_filter(request.filter, CONSUMERS)

        listing = self._rules.find_here if is_for_a_peer(call) else self._rules.find

        def find(after: tuple[str, str], limit: int) -> Awaitable[Sequence[Consumer]]:
            return listing(request.model_id or None, accepted, after, limit)

        found = await find_readable(
            call.caller, find, after, limit, lambda each: (each.model_id, (each.model_id, each.consumer_id))
        )
        page = fitting(map(wire.consumer_message, found), self._reply_max_bytes)
        token = ""
        if len(page) < len(found) or len(found) == limit:
            token = build_token(question, (page[-1].model_id, page[-1].consumer_id))
        return wire.ListConsumersReply(consumers=page, next_page_token=token).SerializeToString()


def _position(parts: list[str | int | float | bool | None] | None) -> tuple[str, str]:
    """Return the model and the consumer after which a page begins.

    Raises:
        InvalidError: They are none.
    """
    if parts is None:
        return "", ""
    model_id, consumer_id = parts
    if not isinstance(model_id, str) or not isinstance(consumer_id, str):
        raise InvalidError("page_token is malformed")
    return model_id, consumer_id


def log_change(consumer: Consumer) -> None:
    """Log that a consumer failed or is gone."""
    fields = {"model_id": consumer.model_id, "consumer": consumer.consumer_id, "number": consumer.version_number}
    if consumer.state == "failed":
        _log.warning("consumer failed", **fields, error=shown(consumer.error))
    elif not consumer.is_live:
        _log.info("consumer gone", **fields)
