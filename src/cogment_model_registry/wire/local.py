"""Messages with file descriptors over the UNIX socket of a server: one request and one reply on each connection.

A message is one packet (SOCK_SEQPACKET), so none is ever half there, and one that is too long is refused as a whole. A
descriptor that comes along counts from its arrival on: whoever receives a message closes all of its descriptors.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Sequence

import grpc

from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.wire import convert, lifecycle
from cogment_model_registry.wire._generated.cogment_model_registry.v1 import local_pb2

LocalRequest = local_pb2.LocalRequest
LocalReply = local_pb2.LocalReply

PATH_STATUS = "local_socket"
ID_STATUS = "local_socket_id"
"""The names of the statuses that say where the socket of a server is, and what requests must carry."""

STRANGER = grpc.StatusCode.UNIMPLEMENTED
"""The status of a server that a request is not for."""

MESSAGE_MAX_BYTES = 64 * 1024
"""The longest message: the system takes packets of more than 200 KiB, but a sender of many would fill its memory."""

_DESCRIPTORS_MAX = 1
"""How many descriptors come with a message at most; the system closes what exceeds it."""

_PEER = struct.Struct("3i")  # pid, uid and gid: struct ucred of unix(7)


class MalformedError(Exception):
    """A packet that is none of the protocol; the message says in what way."""


class NoMessageError(MalformedError):
    """The connection was closed without a packet."""


class RefusedError(Exception):
    """The server did not do what it was asked for; the message says why."""


class StrangerError(RefusedError):
    """Another server answered than the one that the request is for."""


def is_supported() -> bool:
    """Return whether the system can hand over descriptors in packets, and knows the user at the other end."""
    names = ("AF_UNIX", "SOCK_SEQPACKET", "SO_PEERCRED", "MSG_CMSG_CLOEXEC", "send_fds")
    return all(hasattr(socket, name) for name in names)


def new_socket() -> socket.socket:
    """Return a UNIX socket of packets."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """Return the process and the user that connected, or that listened when this end connected."""
    pid, uid, _gid = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return pid, uid


def send(connection: socket.socket, message: bytes, descriptors: Sequence[int]) -> None:
    """Send a message with descriptors, which stay the caller's.

    Raises:
        OSError: It could not be sent, as `BlockingIOError` where that would have to wait.
    """
    socket.send_fds(connection, [message], [*descriptors])


def receive(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Return the next message, and add the descriptors that came with it to a list, for the caller to close.

    Raises:
        MalformedError: It is too long, or came with more descriptors than a message may have.
        NoMessageError: There is none, since the connection was closed.
        OSError: None could be received, as `BlockingIOError` where none is there.
    """
    message, received, flags, _address = socket.recv_fds(
        connection, MESSAGE_MAX_BYTES, _DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
    )
    descriptors += received
    if flags & socket.MSG_TRUNC:
        raise MalformedError(f"a message has more than {MESSAGE_MAX_BYTES} bytes")
    if flags & socket.MSG_CTRUNC:
        raise MalformedError("a message came with too many descriptors")
    if not message:
        raise NoMessageError("the connection was closed without a message")
    return message


def close_all(descriptors: list[int]) -> None:
    """Close descriptors, and empty the list."""
    while descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptors.pop())


def read_request(
    socket_id: str, model_id: str, number: int, expected_hash: str, *, authorization: str = "", forwarded_peer: str = ""
) -> bytes:
    """Return the request for a descriptor of a version, which must have a hash."""
    read = lifecycle.read_request(model_id, number, 0, None, expected_hash)
    request = LocalRequest(
        local_socket_id=socket_id, read=read, authorization=authorization, forwarded_peer=forwarded_peer
    )
    return request.SerializeToString()


def upload_request(socket_id: str, header: UploadHeader, authorization: str = "") -> bytes:
    """Return the request that goes with sealed memory."""
    upload = lifecycle.upload_header_message(header)
    request = LocalRequest(local_socket_id=socket_id, upload=upload, authorization=authorization)
    return request.SerializeToString()


def refusal(status: grpc.StatusCode, details: str) -> bytes:
    """Return the reply of a status other than OK."""
    number: int = status.value[0]
    return LocalReply(refusal=LocalReply.Refusal(status=number, details=details)).SerializeToString()


def read(*, is_handed_over: bool) -> bytes:
    """Return the reply to a read, which comes with a descriptor or not."""
    return LocalReply(handed_over=is_handed_over).SerializeToString()


def uploaded(version: Version) -> bytes:
    """Return the reply to an upload."""
    return LocalReply(version=lifecycle.version_message(version)).SerializeToString()


def read_reply(message: bytes) -> Version | None:
    """Return the version in a reply, if any.

    Raises:
        MalformedError: It is no reply.
        RefusedError: Nothing was done; the message says why.
        StrangerError: The request was for another server.
    """
    try:
        reply = LocalReply.FromString(message)
    except convert.DecodeError as error:
        raise MalformedError("the reply is malformed") from error
    kind = reply.WhichOneof("reply")
    if kind is None:
        raise MalformedError("the reply has nothing")
    if kind == "refusal":
        is_stranger = reply.refusal.status == STRANGER.value[0]
        raise (StrangerError if is_stranger else RefusedError)(reply.refusal.details)
    return lifecycle.version_from_message(reply.version) if kind == "version" else None
