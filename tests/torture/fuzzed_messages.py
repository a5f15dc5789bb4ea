"""Messages of any bytes: on the wire, and in the decoders alone.

The first proof sends all calls of both services to a real server process over several connections at once: messages of
random bytes; messages whose fields have hostile texts and extreme integers, are duplicated or are missing; and messages
that were corrupted after that. Every call must be answered with a meaningful status, while a well-behaved client stores
and retrieves. The server must log no errors, and its memory must not grow.

The second one lets Atheris search for inputs that reach new code of the decoders; it runs in a separate process,
`fuzzed_decoding`.
"""

import asyncio
import base64
import importlib.util
import itertools
import json
import math
import os
import re
import struct
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import grpc
import grpc.aio
import psutil

from cogment_model_registry.records.lifecycle import AnnotationChange
from cogment_model_registry.testing.bytes import hash_of
from cogment_model_registry.wire import lifecycle
from cogment_model_registry.wire import messages as m
from cogment_model_registry.wire.watching import WatchReply, WatchRequest
from tests.client import Client, connected
from tests.processes import ServerProcess, clean_environment
from tests.server.test_model_lifecycle import Lifecycle
from tests.torture.oracle import unharmed_server
from tests.torture.proof import Figures, Proof

_CONNECTIONS = 4
_AT_ONCE = 160
_GROWTH_MAX_BYTES = 96 * 2**20
"""How much the server's memory may grow after the first part of the calls: its buffers, and fragmentation."""

_REQUEST_MAX_BYTES = 64 * 1024
_FLAGS = (
    f"--request_max_bytes={_REQUEST_MAX_BYTES}",
    "--reply_max_bytes=20000",
    "--user_data_max_bytes=2000",
    "--cache_max_items=50",
    "--cache_max_bytes=4000000",
    "--upload_idle_seconds=20",
    "--log_format=json",
)

_MEANINGFUL = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DATA_LOSS,
}
_LIFECYCLE_MEANINGFUL = {
    *_MEANINGFUL,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.ALREADY_EXISTS,
}
_WATCH_SECONDS = 0.1
"""How long to wait for a message of a watch; there may be none."""

_TELLING_SECONDS = 1.0
"""How long to wait for a watch of the second service: it always sends `caught_up` after the existing versions."""

_TOLD_MAX = 20
"""The largest number of replies of a watch that are read."""

_TOKENS = 50
"""How many tokens of watches are kept: the newest, and none of an earlier server."""

_GOOD_ID = "the model of a well-behaved client, which is never generated below"
_MODELS_MAX = 100
"""Above this number of models, the well-behaved client deletes those of the others."""


# The parts of a message. See https://protobuf.dev/programming-guides/encoding/

_IDS = [b"m", b"n", b"m-v000001", "été".encode(), b"123", b"x" * 128]
_HOSTILE = [
    *(b"", b".", b"..", b"../m", b"/", b"m/../n", b"m\0", b"\0", b"%2e", b"m\n[error", b" m", b"m ", b"-", b"x" * 129),
    *(b"\xff", b"\xc0\xae", b"\xed\xa0\x80", b"m\xe2\x80\xae", b"e\xcc\x81", b"\xef\xbc\x8f", b"x" * 5000),
    *(b"0", b"1", b"-1", b"@1", b"@", b"@@1", b"9" * 25, b"9" * 5000, b"1e9", b"\xd9\xa3", b"007", b"NaN", b"%s%n"),
    *(b"A" * 43 + b"=", b"A" * 44, b"====", b"overall_load", b"*", b"yes", b"!!python/object:os.system []"),
]
_TEXTS = _IDS * 6 + _HOSTILE
_INTEGERS = [
    *(0, 1, 2, 3, 10, 127, 128, 10_000, 2**21),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1),
    *(2**64 - number for number in (1, 1, 1, 2, 3, 10, 2**31)),  # negative ones, INT32_MIN the last
]


def varint(value: int) -> bytes:
    """Return a number in groups of seven bits."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(encoded) + bytes((value,))


def delimited(number: int, payload: bytes) -> bytes:
    """Return a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


Field = Callable[[Random], bytes]


def text(number: int) -> Field:
    """Return a generator of texts."""
    return lambda random: delimited(number, random.choice(_TEXTS))


def integer(number: int) -> Field:
    """Return a generator of integers of variable length."""
    return lambda random: varint(number << 3) + varint(random.choice(_INTEGERS))


def fixed(number: int) -> Field:
    """Return a generator of integers of eight bytes."""
    return lambda random: varint(number << 3 | 1) + struct.pack("<Q", random.choice(_INTEGERS))


def several(number: int) -> Field:
    """Return a generator of packed lists of integers."""
    return lambda random: delimited(
        number, b"".join(varint(random.choice(_INTEGERS)) for _ in range(random.choice((1, 1, 2, 5, 300))))
    )


def message(number: int, *fields: Field) -> Field:
    """Return a generator of nested messages."""
    return lambda random: delimited(number, filled(random, fields))


def filled(random: Random, fields: Sequence[Field]) -> bytes:
    """Return a message that has each field once, never, or twice."""
    return b"".join(field(random) for field in fields for _ in range(random.choice((1, 1, 1, 1, 1, 1, 0, 2))))


_USER_DATA = message(2, text(1), text(2))
_SHAPES: dict[str, Sequence[Field]] = {
    "CreateOrUpdateModel": (message(1, text(1), _USER_DATA),),
    "DeleteModel": (text(1),),
    "RetrieveModels": (text(1), integer(3), text(4)),
    "RetrieveVersionInfos": (text(1), several(2), integer(2), integer(3), text(4)),
    "RetrieveVersionData": (text(1), integer(2)),
    "VersionUpdate": (text(1),),
    "Version": (),
    "Status": (text(1), text(1)),
}
_VERSION_INFO = (text(1), integer(2), fixed(3), integer(4), text(5), fixed(6), message(7, text(1), text(2)))


# The second service. See wire/protos/cogment_model_registry/v1/lifecycle.proto.


def number(number: int) -> Field:
    """Return a generator of floating-point numbers."""
    doubles = (0.0, -0.0, 1.5, 487.5, -1e308, 5e-324, math.nan, math.inf, -math.inf)
    return lambda random: varint(number << 3 | 1) + struct.pack("<d", random.choice(doubles))


def alias(number: int) -> Field:
    """Return a generator of names of aliases."""
    return lambda random: delimited(number, random.choice((*_ALIASES, *_ALIASES, *_TEXTS)))


def small(number: int) -> Field:
    """Return a generator of integers that are often valid: a number of a version, a revision, or a flag."""
    return lambda random: varint(number << 3) + varint(random.choice((*range(8), *_INTEGERS)))


def one_of(*fields: Field) -> Field:
    """Return a generator of one of several fields."""
    return lambda random: random.choice(fields)(random)


def some(field: Field) -> Field:
    """Return a generator of lists."""
    return lambda random: b"".join(field(random) for _ in range(random.choice((0, 1, 1, 2, 3, 50))))


_ALIASES = [b"production", b"canary", b"best", b"latest", b"-1", b"7"]
_FIELDS = ["version_number", "archived", "data_size", "creation_timestamp", "data_hash"]
_FIELDS += ["metrics.return", "tags.stage", "user_data.key", 'tags."a b"', "aliases", "metrics", "nothing.at_all"]
_OPERATORS = ["=", "!=", "<", "<=", ">", ">=", ":", "=~", "=="]
_VALUES = ["1", "-1", "0", "3.5", "1e9", "1e999", "9" * 25, "true", "FALSE", "best", "*", '"a b"', "'\\'", '"\\"']
_VALUES += ["2026-11-27T10:00:00Z", "2026-11-27T10:00:00+23:59", "9999-99-99T99:99:99Z", "0001-01-01T00:00:00Z", "NaN"]
_VALUES += ["é", '"é\0\u202e"', "-0", "2" * 20, "A" * 43 + "=", "production", "x" * 300]


def random_filter(random: Random, depth: int = 0) -> str:
    """Return a filter, parts of which may be wrong."""
    dice = random.random()
    if depth > 5 or dice < 0.5:
        gap = random.choice(("", " "))
        return gap.join((random.choice(_FIELDS), random.choice(_OPERATORS), random.choice(_VALUES)))
    parts = [random_filter(random, depth + 1) for _ in range(random.choice((1, 2, 2, 3)))]
    if dice < 0.65:
        return "(" + random.choice((" AND ", " OR ", " ", " NOT ")).join(parts) + ")"
    if dice < 0.75:
        return random.choice(("NOT ", "-", "NOT NOT ")) + parts[0]
    if dice < 0.97:
        return random.choice((" AND ", " OR ", " ")).join(parts)
    return random.choice(
        ("(" * 4000, "(" * 2000 + "archived=true" + ")" * 2000, "NOT " * 1000 + parts[0], parts[0] * 99)
    )


def filter_text(random: Random) -> str:
    """Return a filter that is often valid, and sometimes corrupted anywhere."""
    made = random_filter(random) if random.random() < 0.8 else ""
    if made and random.random() < 0.1:
        position = random.randrange(len(made))
        made = (
            made[:position] + random.choice(("(", ")", '"', "'", "\0", "\n", ".", "-", "OR", "")) + made[position + 1 :]
        )
    return made


def accepting(number: int) -> Field:
    """Return a generator of filters."""
    return lambda random: delimited(number, filter_text(random).encode())


def flag(number: int) -> Field:
    """Return a generator of truth values."""
    return lambda random: varint(number << 3) + varint(random.choice((1, 1, 0)))


def search(random: Random) -> bytes:
    """Return a search, often with a page token that fits the request but has arbitrary values."""
    model_id = random.choice((*_IDS, b"", b"m")).decode()
    order = random.choice(_FIELDS) + random.choice(("", " desc", " asc", " down", " desc desc"))
    question = (model_id, filter_text(random), random.choice(("", order)))
    values = (None, True, 1, -1, 2**63, 2**64 - 1, 2**64, 10**400, 1.5, math.inf, math.nan, "", "best", "\0", "\ud800")
    position = (random.choice(values), random.choice((*values, "m")), random.choice((*values, 1, 2)))
    token = lifecycle.build_token(question, position) if random.random() < 0.5 else ""
    if token and random.random() < 0.2:
        token = random.choice((token[:-4], token + "AAAA", base64.b64encode(random.randbytes(30)).decode(), "é" * 9))
    request = lifecycle.ListVersionsRequest(
        model_id=question[0],
        filter=question[1],
        order_by=question[2],
        page_size=random.choice((0, 1, 2, 1000, 2**32 - 1)),
        page_token=token,
    )
    return request.SerializeToString()


def random_token(random: Random, known: Sequence[str]) -> str:
    """Return a token of a watch: one from the server, one with other values, or something that is not a token."""
    values: list[Any] = [
        0,
        1,
        2,
        3,
        7,
        2**31,
        2**53,
        2**62,
        2**63 - 1,
        2**63,
        10**30,
        -1,
        1.5,
        math.inf,
        True,
        None,
        "m",
        [],
        {},
    ]
    parts: list[Any] = [random.choice(values) for _ in range(random.choice((3, 5, 5, 5, 6)))]
    if known and random.random() < 0.7:
        token = random.choice(known)
        if random.random() < 0.4:
            return token
        parts = json.loads(base64.urlsafe_b64decode(token))
        inner = random.choice([parts, *(parts[-1] or ())])
        inner[random.randrange(len(inner))] = random.choice(values)
    elif random.random() < 0.5:
        place = [random.choice(_IDS).decode(), *(random.choice(values) for _ in range(random.choice((5, 6, 6, 7))))]
        parts[-1] = [place] * random.choice((1, 1, 2, 70))
    token = base64.urlsafe_b64encode(json.dumps(parts, separators=(",", ":")).encode()).decode()
    return (
        token if random.random() < 0.8 else random.choice((token[:-3], token + "=", "[" * 5000, "é" * 9, " " + token))
    )


def watch(random: Random, known: Sequence[str]) -> bytes:
    """Return a request to watch, often with a token that may be valid."""
    request = WatchRequest(
        model_ids=random.choices([each.decode() for each in _IDS], k=random.choice((0, 1, 1, 2, 70))),
        resume_token=random_token(random, known) if random.random() < 0.7 else "",
        inline_max_bytes=random.choice((0, 1, 100, 10_000, 2**63, 2**64 - 1)),
        consumers=random.random() < 0.5,
        filter=random.choice((filter_text(random), "")),
        known_hash=random.choice(("", hash_of(b""), "A" * 44)),
        in_one_reply=random.random() < 0.5,
    )
    return request.SerializeToString() + varint(2 << 3) + varint(random.choice((0, 0, 0, 1, 1, 1, 2, 2**64 - 1)))


_VERSION_REF = (text(1), one_of(small(2), alias(3)))
_TAG, _METRIC = (text(1), text(2)), (text(1), number(2))
_RULE = message(1, small(1), accepting(2), small(3), small(4), text(5), flag(6), small(7), small(8))
_RETENTION = one_of(message(4, some(_RULE)), lambda _: b"")
_SHARE = (small(1), small(2), small(3), small(4))
_CONSUMER = (alias(1), text(2), small(3), small(4), text(5), some(message(6, *_TAG)), small(7), some(small(8)))
_CHANGE = message(2, alias(1), one_of(small(2), small(2), integer(3)), small(4))
_LIFECYCLE_SHAPES: dict[str, Sequence[Field]] = {
    "ListVersions": (some(message(2, *_VERSION_REF)), text(1), one_of(text(3), text(4), integer(5), text(6))),
    "UpdateVersion": (
        message(1, *_VERSION_REF),
        some(message(2, *_TAG)),
        some(text(3)),
        some(message(4, *_METRIC)),
        some(text(5)),
        one_of(small(6), lambda _: b""),
    ),
    "PromoteVersion": (message(1, *_VERSION_REF), some(alias(2))),
    "DeleteVersion": (
        message(1, *_VERSION_REF),
        small(2),
        one_of(message(3, *_VERSION_REF), lambda _: b""),
        one_of(text(4), lambda _: b"", lambda _: b""),
    ),
    "SetAliases": (text(1), some(_CHANGE)),
    "ListModels": (some(text(1)), one_of(accepting(2), lambda _: b""), integer(3), one_of(text(4), lambda _: b"")),
    "UpdateModel": (text(1), some(message(2, *_TAG)), some(text(3)), _RETENTION, small(5), message(6, *_SHARE)),
    "ApplyRetention": (
        text(1),
        flag(2),
        one_of(message(3, some(_RULE)), lambda _: b""),
        some(integer(4)),
        one_of(small(5), lambda _: b"", lambda _: b""),
    ),
    "ReportConsumer": (message(1, *_CONSUMER),),
    "ListConsumers": (text(1), one_of(accepting(2), lambda _: b""), integer(3), one_of(text(4), lambda _: b"")),
    "Watch": (some(text(1)), small(2), text(3), integer(4), flag(5), accepting(6), text(7), flag(8)),
    "ReadVersion": (message(1, *_VERSION_REF), small(2), small(3), one_of(text(4), lambda _: b"", lambda _: b"")),
}
_LIFECYCLE_METHODS = [*_LIFECYCLE_SHAPES, "UploadVersion", "UploadVersion", "ListVersions", "UpdateVersion"]
_LIFECYCLE_METHODS += ["PromoteVersion", "SetAliases", "Watch"]
_METHODS = [*_SHAPES, "RetrieveVersionData", "CreateVersion", "CreateVersion", *_LIFECYCLE_METHODS]

_ODD_FIELDS = [
    b"\x0b\x0c",  # an empty group
    b"\x0b" * 50,  # groups that never end
    b"\x0c",  # the end of a group that did not begin
    b"\x0a\xff\xff\xff\xff\x0f",  # a length of 4 GiB
    b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of -1
    b"\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80",  # a number that never ends
    b"\x00\x01",  # field number 0
    b"\x0f",  # a wire type that does not exist
    delimited(1, delimited(1, delimited(1, b"\x0a\x7f"))),
    delimited(1000, b"unknown"),
    varint(2**29 - 1 << 3) + b"\x01",
    delimited(1, b"\x0a") * 30,
    b"\x0d\x00\x00\x00\x00",
    b"\x08\x01",
    b"\x11" + bytes(8),
]


def nested(levels: int) -> bytes:
    """Return deeply nested messages."""
    inner = b""
    for _ in range(levels):
        inner = delimited(1, inner)
    return inner


_DEEP = nested(500)


def flipped(random: Random, data: bytes) -> bytes:
    """Return a message with flipped bits."""
    changed = bytearray(data or b"\0")
    for _ in range(random.choice((1, 1, 2, 8))):
        changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def inserted(random: Random, data: bytes) -> bytes:
    """Return a message with something malformed inserted, often where a field ends."""
    position = random.choice((len(data), random.randrange(len(data) + 1)))
    odd = random.choice([*_ODD_FIELDS, random.randbytes(random.choice((1, 2, 9)))])
    return data[:position] + odd + data[position:]


_WAYS_TO_SPOIL: list[Callable[[Random, bytes], bytes]] = [
    flipped,
    flipped,
    inserted,
    inserted,
    lambda random, data: data[: random.randrange(len(data) + 1)],
    lambda _, data: data + data,
    lambda random, _: random.choice((_DEEP, random.randbytes(random.choice((0, 1, 5, 40, 300))))),
]


def corrupted(random: Random, data: bytes) -> bytes:
    """Return a message with an error in it."""
    return random.choice(_WAYS_TO_SPOIL)(random, data)


def random_message(random: Random, fields: Sequence[Field]) -> bytes:
    """Return a message that may be valid or not."""
    data = filled(random, fields)
    while random.random() < 0.4:
        data = corrupted(random, data)
    if random.random() < 0.0005:
        data += delimited(99, bytes(_REQUEST_MAX_BYTES))  # larger than a message may be
    return data


def random_upload(random: Random) -> list[bytes]:
    """Return the chunks of an upload, valid or in any order."""
    pieces = [random.randbytes(random.choice((0, 1, 100, 3000))) for _ in range(random.choice((0, 1, 1, 2, 3)))]
    chunks = [delimited(2, delimited(1, piece)) for piece in pieces]
    if random.random() < 0.5:
        archived = random.random() < 0.2
        info = m.ModelVersionInfo(model_id="m", archived=archived, data_size=sum(len(piece) for piece in pieces))
        info.model_id = random.choice(_IDS).decode()
        chunks.insert(0, delimited(1, delimited(1, info.SerializeToString())))
    else:
        chunks.insert(0, delimited(1, delimited(1, random_message(random, _VERSION_INFO))))
    if random.random() < 0.3:
        random.shuffle(chunks)
    if random.random() < 0.3:
        position = random.randrange(len(chunks))
        chunks[position] = corrupted(random, chunks[position])
    return chunks


def random_repeatable_upload(random: Random) -> list[bytes]:
    """Return the messages of a repeatable upload, valid or in any order, often with the same id."""
    pieces = [random.randbytes(random.choice((0, 1, 100, 3000))) for _ in range(random.choice((0, 1, 1, 2, 3)))]
    data = b"".join(pieces)
    info = m.ModelVersionInfo(model_id=random.choice(_IDS).decode(), archived=random.random() < 0.2)
    info.data_size = len(data)
    info.data_hash = random.choice(("", hash_of(data), hash_of(b"")))
    details = [
        *(some(message(2, *_TAG)), some(message(3, *_METRIC)), one_of(alias(4), lambda _: b"", lambda _: b"")),
        *(one_of(text(5), lambda random: delimited(5, b"request %d" % random.randrange(20))), flag(6)),
    ]
    sound = delimited(1, info.SerializeToString())
    first = sound if random.random() < 0.7 else delimited(1, random_message(random, _VERSION_INFO))
    messages = [delimited(1, first + filled(random, details)), *(delimited(2, piece) for piece in pieces)]
    if random.random() < 0.2:
        random.shuffle(messages)
    if random.random() < 0.2:
        position = random.randrange(len(messages))
        messages[position] = corrupted(random, messages[position])
    return messages[: random.randrange(1, len(messages) + 1)] if random.random() < 0.2 else messages


# The clients.


class _Sender:
    """Makes calls, and checks the status of each."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], random: Random, figures: Figures) -> None:
        self._random = random
        self._figures = figures
        self._calls: dict[tuple[str, int], Any] = {}
        self._tokens: deque[str] = deque(maxlen=_TOKENS)
        for number, (channel, service) in enumerate(itertools.product(channels, m.SERVICE_NAMES)):
            for method in {*_METHODS}:
                path = f"/{lifecycle.SERVICE_NAME if method in _LIFECYCLE_METHODS else service}/{method}"
                if method == "CreateVersion":
                    call: Any = channel.stream_unary(path)
                elif method == "UploadVersion":
                    call = channel.stream_stream(path)
                elif method in ("RetrieveVersionData", "ReadVersion", "VersionUpdate", "Watch"):
                    call = channel.unary_stream(path)
                else:
                    call = channel.unary_unary(path)
                self._calls[method, number] = call
        self._variants = len(channels) * len(m.SERVICE_NAMES)

    async def make_calls(self, rounds: Iterator[int]) -> None:
        """Make calls until all were made."""
        for _ in rounds:
            await self._make_call()

    async def _make_call(self) -> None:
        method = self._random.choice(_METHODS)
        invoke = self._calls[method, self._random.randrange(self._variants)]
        if method == "CreateVersion":
            sent = random_upload(self._random)
            code, details = await _upload(invoke, sent)
        elif method == "UploadVersion":
            sent = random_repeatable_upload(self._random)
            code, details = await _read(invoke(iter(sent), timeout=60))
        elif method == "Watch":
            known = [*self._tokens]
            sent = [watch(self._random, known) if self._random.random() < 0.7 else self._random_message(method)]
            code, details = await _watch(invoke(sent[0], timeout=_TELLING_SECONDS), self._note_reply)
        elif method == "ListVersions" and self._random.random() < 0.8:
            sent = [search(self._random)]
            code, details = await _ask(invoke, sent[0], method)
        else:
            sent = [self._random_message(method)]
            code, details = await _ask(invoke, sent[0], method)
        self._figures.count("calls")
        if details == "Internal error from Core":
            # Reported by grpc.aio itself, if an upload is refused while the client writes
            # (https://github.com/grpc/grpc/issues/36066).
            self._figures.count("refused with a status from the client library")
            return
        meaningful = _LIFECYCLE_MEANINGFUL if method in _LIFECYCLE_METHODS else _MEANINGFUL
        assert code in meaningful, f"{method} of {_shown(sent)} ended with {code}: {details}"
        self._figures.count("answered with OK", code == grpc.StatusCode.OK)

    def _random_message(self, method: str) -> bytes:
        return random_message(self._random, {**_SHAPES, **_LIFECYCLE_SHAPES}[method])

    def _note_reply(self, message: bytes) -> bool:
        """Record a reply of a watch, and its token for later calls; return whether more follows at once."""
        self._figures.count("replies of watches")
        reply = WatchReply.FromString(message)
        assert reply.WhichOneof("event"), f"a watch sent an empty message: {message.hex()}"
        if reply.resume_token:
            self._tokens.append(reply.resume_token)
        return not reply.caught_up


def _shown(chunks: Sequence[bytes]) -> str:
    return ", ".join(chunk[:300].hex() + ("..." if len(chunk) > 300 else "") for chunk in chunks)


async def _upload(invoke: Any, chunks: Sequence[bytes]) -> tuple[grpc.StatusCode, str]:
    async def each() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return await _outcome(invoke(each(), timeout=60))


async def _ask(invoke: Any, data: bytes, method: str) -> tuple[grpc.StatusCode, str]:
    if method == "VersionUpdate":
        return await _watch(invoke(data, timeout=_WATCH_SECONDS), lambda _: False)
    if method in ("RetrieveVersionData", "ReadVersion"):
        return await _read(invoke(data, timeout=60))
    return await _outcome(invoke(data, timeout=60))


async def _outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def _read(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


async def _watch(call: Any, note: Callable[[bytes], bool]) -> tuple[grpc.StatusCode, str]:
    """Read the replies of a watch, as long as more follows at once."""
    try:
        for _ in range(_TOLD_MAX):
            message = await call.read()
            if message is grpc.aio.EOF:
                return await call.code(), await call.details() or ""
            if not note(message):
                break
    except grpc.aio.AioRpcError as error:
        # A watch that has nothing to send ends with our own deadline.
        ours = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        return grpc.StatusCode.OK if ours else error.code(), error.details() or ""
    call.cancel()
    return grpc.StatusCode.OK, ""


async def _behave_well(client: Client, random: Random, figures: Figures) -> None:
    """Store, promote and retrieve until cancelled, and delete the models of the others when there are many."""
    await client.create_model(_GOOD_ID)
    lifecycle_calls = Lifecycle(client)
    while True:
        await _promote_one(client, lifecycle_calls, random)
        data = random.randbytes(random.choice((0, 10, 5000)))
        info = await client.store(_GOOD_ID, data)
        assert await client.data(_GOOD_ID, info.version_number) == data, "a well-behaved client received wrong bytes"
        figures.count("versions stored and retrieved by another client")
        if int((await client.status("models"))["models"]) > _MODELS_MAX:
            for model in (await client.models()).model_infos:
                if model.model_id != _GOOD_ID:
                    await _delete_if_there(client, model.model_id)


async def _promote_one(client: Client, lifecycle_calls: Lifecycle, random: Random) -> None:
    """Promote a version with an alias and a tag, find it by them, and delete it."""
    data = random.randbytes(random.choice((0, 10, 5000)))
    number = (await client.publish(_GOOD_ID, data)).version_number
    try:
        await lifecycle_calls.promote(number, "good", model_id=_GOOD_ID)
    except grpc.aio.AioRpcError as error:
        if error.code() == grpc.StatusCode.NOT_FOUND:
            return  # evicted, if each model of the others has its newest version in memory
        raise
    await lifecycle_calls.update("good", AnnotationChange({"number": str(number)}), _GOOD_ID)
    found = await lifecycle_calls.find(model_id=_GOOD_ID, filter=f'aliases:good AND tags.number = "{number}"')
    assert [each.version_info.version_number for each in found.versions] == [number], f"a search found {found}"
    assert await client.data(_GOOD_ID, number) == data, "a well-behaved client received wrong bytes"
    await lifecycle_calls.delete(number, force=True, model_id=_GOOD_ID)


async def _delete_if_there(client: Client, model_id: str) -> None:
    try:
        await client.delete_model(model_id)
    except grpc.aio.AioRpcError as error:
        if error.code() != grpc.StatusCode.NOT_FOUND:
            raise


async def _send(server: ServerProcess, rounds: int, random: Random, figures: Figures) -> None:
    """Make the calls over several connections at once, in parallel with a well-behaved client."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connected(server.port)) for _ in range(_CONNECTIONS + 1)]
        sender = _Sender([client.channel for client in clients[1:]], random, figures)
        behaving = asyncio.create_task(_behave_well(clients[0], random, figures))
        memory = psutil.Process(server.pid).memory_info
        first = rounds // 5
        try:
            await _all_of(sender, iter(range(first)), behaving)
            before_bytes = memory().rss
            await _all_of(sender, iter(range(rounds - first)), behaving)
            grown_bytes = memory().rss - before_bytes
        finally:
            behaving.cancel()
            await asyncio.gather(behaving, return_exceptions=True)
    figures.peak("MiB of growth of the server", grown_bytes / 2**20)
    assert grown_bytes < _GROWTH_MAX_BYTES, f"the server grew by {grown_bytes} bytes"


async def _all_of(sender: _Sender, rounds: Iterator[int], behaving: asyncio.Task[None]) -> None:
    """Make calls until all rounds are done, or until one fails."""
    sending = {asyncio.create_task(sender.make_calls(rounds)) for _ in range(_AT_ONCE)}
    pending = {*sending}
    try:
        while pending:
            done, _ = await asyncio.wait({*pending, behaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            pending -= done
    finally:
        for task in sending:
            task.cancel()
        await asyncio.gather(*sending, return_exceptions=True)


def send_messages(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Send messages of any bytes to a server."""
    figures.count("answered with UNKNOWN, INTERNAL or UNAVAILABLE", 0)
    with unharmed_server(place / "archive", *_FLAGS) as server:
        asyncio.run(_send(server, rounds, random, figures))


# The decoders alone.


def decode_inputs(place: Path, rounds: int, random: Random, figures: Figures) -> None:
    """Fuzz the decoders with Atheris."""
    (place / "inputs").mkdir()
    command = [
        # A child process, without exec: the system counts the memory of the parent in the peak of a process.
        *("sh", "-c", '"$@"; exit $?', "sh"),
        *(sys.executable, "-m", "tests.torture.fuzzed_decoding"),
        *(f"-atheris_runs={rounds}", f"-seed={random.randrange(1, 2**31)}", "-timeout=20", "-rss_limit_mb=1024"),
        *("-len_control=10", f"-artifact_prefix={place}{os.sep}", str(place / "inputs")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
    match = re.search(r"^Done (\d+) ", done.stderr, re.MULTILINE)
    assert done.returncode == 0, f"a decoder failed, see {place}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}"
    assert match, f"fuzzing the decoders did not finish:\n{done.stderr[-3000:]}"
    figures.count("inputs decoded", int(match[1]))
    figures.count("inputs that reached new code", len(list((place / "inputs").iterdir())))
    figures.peak("code locations reached", max(int(found) for found in re.findall(r"cov: (\d+)", done.stderr)))


def atheris_missing() -> str:
    """Return why Atheris is not available; empty if it is."""
    return "" if importlib.util.find_spec("atheris") else "Atheris is built only for Linux on x86-64"


PROOF_MESSAGES = Proof(
    name="fuzzed_messages",
    promise="No message from a client is answered with UNKNOWN, INTERNAL or UNAVAILABLE",
    attempt=send_messages,
    unit="calls",
    short=400,
    long=1_000_000,
    batch=50_000,
)

PROOF_DECODING = Proof(
    name="fuzzed_decoding",
    promise="Decoders refuse malformed input, and agree with protobuf on everything else",
    attempt=decode_inputs,
    unit="inputs",
    short=2_000,
    long=1_000_000,
    batch=250_000,
    missing=atheris_missing,
    requirements="Atheris, which is built for Linux on x86-64",
)
