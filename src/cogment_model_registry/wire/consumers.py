"""Between the records of consumers and the messages of ModelLifecycle."""

import base64

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.consumers import STATES, Consumer
from cogment_model_registry.wire import convert
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import lifecycle_pb2

ReportConsumerRequest = lifecycle_pb2.ReportConsumerRequest
ReportConsumerReply = lifecycle_pb2.ReportConsumerReply
ListConsumersRequest = lifecycle_pb2.ListConsumersRequest
ListConsumersReply = lifecycle_pb2.ListConsumersReply
ConsumerMessage = lifecycle_pb2.Consumer


def consumer_message(consumer: Consumer) -> lifecycle_pb2.Consumer:
    """Return the message that describes a consumer."""
    return lifecycle_pb2.Consumer(
        consumer_id=consumer.consumer_id,
        model_id=consumer.model_id,
        version_number=consumer.version_number,
        state=f"STATE_{consumer.state.upper()}",
        error=consumer.error,
        labels=consumer.labels,
        ttl_seconds=consumer.ttl_seconds,
        held_versions=consumer.held_versions,
        versions_behind=consumer.versions_behind,
        seconds_behind=consumer.seconds_behind,
        reported_timestamp=consumer.reported_ns,
    )


def consumer_text(consumer: Consumer) -> str:
    """Return a consumer as a text of ASCII, of at most some 7,000 characters."""
    return base64.b64encode(consumer_message(consumer).SerializeToString()).decode()


def consumer_in(text: str) -> Consumer | None:
    """Return the consumer in a text; None if it is not one that this release understands."""
    try:
        return consumer_from_message(lifecycle_pb2.Consumer.FromString(base64.b64decode(text)))
    except (ValueError, convert.DecodeError, InvalidError):
        return None


def consumer_from_message(message: lifecycle_pb2.Consumer) -> Consumer:
    """Return the consumer that a message describes.

    Raises:
        InvalidError: Its state does not exist.
    """
    if not 0 <= message.state < len(STATES):  # of a newer release, perhaps
        states = ", ".join(f"STATE_{state.upper()}" for state in STATES)
        text = f"consumer {quoted(message.consumer_id)}: state {message.state} is unknown; the states are {states}"
        raise InvalidError(text, model_id=message.model_id)
    return Consumer(
        model_id=message.model_id,
        consumer_id=message.consumer_id,
        version_number=message.version_number,
        state=STATES[message.state],
        error=message.error,
        labels=convert.entries(message.labels),
        ttl_seconds=message.ttl_seconds,
        held_versions=tuple(message.held_versions) if message.held_versions else (),
        versions_behind=message.versions_behind,
        seconds_behind=message.seconds_behind,
        reported_ns=message.reported_timestamp,
    )
