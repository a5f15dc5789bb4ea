"""The bytes of messages that are too large, or too many, to go through protobuf's objects.

Protobuf's parser copies the bytes of a chunk twice and its encoder once more. A chunk of data is one field inside at
most one other, so it is split and built by hand here; anything that does not look exactly like what an encoder writes
is left to protobuf, which knows the rules for fields that are repeated, unknown or in odd order.

The encoding is protobuf's: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Sequence

_LENGTH_DELIMITED = 2
_BODY_TAG = 2 << 3 | _LENGTH_DELIMITED  # CreateVersionRequestChunk.body
_DATA_CHUNK_TAG = 1 << 3 | _LENGTH_DELIMITED  # Body.data_chunk, RetrieveVersionDataReplyChunk.data_chunk
_UPLOAD_DATA_TAG = 2 << 3 | _LENGTH_DELIMITED  # UploadVersionRequest.data_chunk
_READ_CHUNK_TAG = 2 << 3 | _LENGTH_DELIMITED  # ReadVersionReply.data_chunk
_WATCH_DATA_TAG = 3 << 3 | _LENGTH_DELIMITED  # WatchReply.data
_WATCH_LAST = bytes((2 << 3, 1))  # WatchReply.Data.last, which is true
_WATCH_VERSION_DATA_TAG = 9 << 3 | _LENGTH_DELIMITED  # WatchReply.version_data
_MORE = 0x80  # the bit of a byte of a varint that says that more follow; the others are seven bits of the value
_LENGTH_SHIFTS = (7, 14, 21, 28)  # of the bytes of a length that follow the first: lengths stay below 2 GiB
_SMALL_VARINTS = [bytes((value,)) for value in range(_MORE)]


def split_body(message: bytes) -> memoryview | None:
    """Return the data of a `CreateVersionRequestChunk` that is a body, without a copy.

    Args:
        message: The encoded chunk.

    Returns:
        A view of the data inside `message`, or None when the message is not plainly a body, for protobuf to judge.
    """
    if not message or message[0] != _BODY_TAG:
        return None
    inner = _sole_field(message, 0, _BODY_TAG)
    if inner is None:
        return None
    if inner == len(message):
        return memoryview(b"")
    start = _sole_field(message, inner, _DATA_CHUNK_TAG)
    return None if start is None else memoryview(message)[start:]


def _sole_field(message: bytes, start: int, tag: int) -> int | None:
    """Return where the value starts of the one field that fills `message` from `start` on, or None if none does."""
    field = _first_field(message, start, tag)
    return field[0] if field is not None and field[1] == len(message) else None


def _first_field(message: bytes, start: int, tag: int) -> tuple[int, int] | None:
    """Return where the value starts and stops of the field with which `message` goes on from `start`.

    None if it is another field.
    """
    end = len(message)
    position = start + 1
    if position >= end or message[start] != tag:
        return None
    length = message[position]
    if length >= _MORE:
        length &= ~_MORE
        for shift in _LENGTH_SHIFTS:
            position += 1
            if position == end:
                return None
            byte = message[position]
            if byte < _MORE:
                length |= byte << shift
                break
            length |= (byte & ~_MORE) << shift
        else:
            return None
    position += 1
    stop = position + length
    return (position, stop) if stop <= end else None


def split_data_chunk(message: bytes) -> memoryview | None:
    """Return the data of a `RetrieveVersionDataReplyChunk`, without a copy; None for protobuf to judge."""
    if not message:
        return memoryview(b"")
    start = _sole_field(message, 0, _DATA_CHUNK_TAG)
    return None if start is None else memoryview(message)[start:]


def split_upload_data(message: bytes) -> memoryview | None:
    """Return the data of an `UploadVersionRequest`, without a copy; None for protobuf to judge."""
    start = _sole_field(message, 0, _UPLOAD_DATA_TAG)
    return None if start is None else memoryview(message)[start:]


def build_upload_data(data: memoryview | bytes) -> bytes:
    """Return the encoded `UploadVersionRequest` that has `data`, copied once."""
    return b"".join((bytes((_UPLOAD_DATA_TAG,)), _varint(len(data)), data))


def split_read_chunk(message: bytes) -> memoryview | None:
    """Return the data of a `ReadVersionReply` that has some, without a copy; None for protobuf to judge."""
    start = _sole_field(message, 0, _READ_CHUNK_TAG)
    return None if start is None else memoryview(message)[start:]


def split_watch_data(message: bytes) -> tuple[memoryview, bool] | None:
    """Return the data of a `WatchReply`, without a copy, and whether it is the last; None for protobuf to judge."""
    start = _sole_field(message, 0, _WATCH_DATA_TAG)
    if start is None:
        return None
    is_last = message[start : start + len(_WATCH_LAST)] == _WATCH_LAST
    start += len(_WATCH_LAST) if is_last else 0
    if start == len(message):
        return memoryview(b""), is_last
    inner = _sole_field(message, start, _DATA_CHUNK_TAG)
    return None if inner is None else (memoryview(message)[inner:], is_last)


def build_watch_data(parts: Sequence[memoryview | bytes], *, is_last: bool) -> bytes:
    """Return the encoded `WatchReply` with the bytes of `parts`, copied once."""
    size_bytes = sum(len(part) for part in parts)
    before = (_WATCH_LAST if is_last else b"") + bytes((_DATA_CHUNK_TAG,)) + _varint(size_bytes)
    return b"".join((bytes((_WATCH_DATA_TAG,)), _varint(len(before) + size_bytes), before, *parts))


def split_version_data(message: bytes) -> tuple[memoryview, bytes] | None:
    """Return the data with which a `WatchReply` begins, without a copy, and the rest; None if it begins otherwise."""
    field = _first_field(message, 0, _WATCH_VERSION_DATA_TAG)
    return None if field is None else (memoryview(message)[field[0] : field[1]], message[field[1] :])


def build_version_data(parts: Sequence[memoryview | bytes], rest: bytes) -> bytes:
    """Return the encoded `WatchReply` that has the bytes of `parts`, copied once, and goes on with `rest`."""
    size_bytes = sum(len(part) for part in parts)
    return b"".join((bytes((_WATCH_VERSION_DATA_TAG,)), _varint(size_bytes), *parts, rest))


def build_body(data: memoryview | bytes) -> bytes:
    """Return the encoded `CreateVersionRequestChunk` that has `data` as its body, copied once."""
    tag, size = bytes((_DATA_CHUNK_TAG,)), _varint(len(data))
    inner_bytes = len(tag) + len(size) + len(data)
    return b"".join((bytes((_BODY_TAG,)), _varint(inner_bytes), tag, size, data))


def build_data_chunk(parts: Sequence[memoryview | bytes]) -> bytes:
    """Return the encoded `RetrieveVersionDataReplyChunk` with the bytes of `parts`, copied once."""
    return _built(_DATA_CHUNK_TAG, parts) if any(parts) else b""  # proto3 leaves out an empty field


def build_read_chunk(parts: Sequence[memoryview | bytes]) -> bytes:
    """Return the encoded `ReadVersionReply` with the bytes of `parts`, copied once."""
    return _built(_READ_CHUNK_TAG, parts)


def _built(tag: int, parts: Sequence[memoryview | bytes]) -> bytes:
    return b"".join((_SMALL_VARINTS[tag], _varint(sum(map(len, parts))), *parts))


def embed(field_number: int, payload: bytes) -> bytes:
    """Return `payload` as the length-delimited field `field_number` of the message around it."""
    return b"".join((_varint(field_number << 3 | _LENGTH_DELIMITED), _varint(len(payload)), payload))


def _varint(value: int) -> bytes:
    if value < _MORE:
        return _SMALL_VARINTS[value]
    encoded = bytearray()
    while value >= _MORE:
        encoded.append((value | _MORE) & 0xFF)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
