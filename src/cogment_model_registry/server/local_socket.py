"""The UNIX socket of a server: where it is, who may connect, and one request of each connection.

A peer gets one request and one reply, so one that dawdles holds a connection and nothing else; there are places for so
many. Who it is comes from the kernel: another user is refused, and cannot even reach a socket in the directory that
belongs to this one.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator

import structlog

from cogment_model_registry.errors import StartError
from cogment_model_registry.server.local_calls import LocalCalls, Peer
from cogment_model_registry.settings import AUTO
from cogment_model_registry.wire import local

_log = structlog.stdlib.get_logger(__name__)

_DIRECTORY = "cogment-model-registry"
_RUNTIME = "XDG_RUNTIME_DIR"
_SUFFIX = ".sock"

_CONNECTIONS_MAX = 256
"""How many peers may be connected: each has a descriptor, and may have sent another one."""

_REQUEST_SECONDS = 5.0
"""How long a peer may take for its request, which it sends right after it has connected."""

_BACKLOG = 128
_PAUSE_SECONDS = 0.1
"""How long to wait where no connection can be accepted, since no descriptor is left."""


class LocalSocket:
    """A socket that listens. Made by `opened`.

    Args:
        path: Where it is.
        listener: The socket.

    Attributes:
        path: As above.
        socket_id: What requests must carry, so that no server answers those for another one at the same path.
    """

    def __init__(self, path: str, listener: socket.socket) -> None:
        self.path = path
        self.socket_id = secrets.token_hex(16)
        self._listener = listener
        self._user = os.geteuid()
        self._pause: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()

    def serve(self, calls: LocalCalls) -> None:
        """Begin to serve peers, until `stop`."""
        loop = asyncio.get_running_loop()
        # A task that accepts could be cancelled with a connection that nobody closes then.
        loop.add_reader(self._listener, self._accept, loop, calls)

    async def stop(self, grace_seconds: float) -> None:
        """Serve nobody else, and give the answers under way their time."""
        asyncio.get_running_loop().remove_reader(self._listener)
        if self._pause is not None:
            self._pause.cancel()
        for task in [*self._waiting]:
            task.cancel()
        if under_way := {*self._waiting, *self._answering}:
            _, late = await asyncio.wait(under_way, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _accept(self, loop: asyncio.AbstractEventLoop, calls: LocalCalls) -> None:
        try:
            connection, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("accepting a local connection failed", reason=error.strerror)
            loop.remove_reader(self._listener)
            self._pause = loop.call_later(_PAUSE_SECONDS, self.serve, calls)
            return
        connection.setblocking(False)
        if len(self._waiting) + len(self._answering) >= _CONNECTIONS_MAX:
            _log.debug("local connection refused", reason="there are too many")
            connection.close()
            return
        task = loop.create_task(self._serve(connection, calls))
        self._waiting.add(task)
        task.add_done_callback(functools.partial(self._end, connection))

    def _end(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()  # also of a task that was cancelled before it began
        self._waiting.discard(task)
        self._answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("serving a local connection failed unexpectedly", exc_info=error)

    async def _serve(self, connection: socket.socket, calls: LocalCalls) -> None:
        """Serve a peer, and close what it sent and what it gets."""
        descriptors: list[int] = []
        handed: list[int] = []
        try:
            peer = Peer(*local.peer_of(connection))
            if peer.user != self._user:
                _log.warning("local connection refused", reason="another user", user=peer.user, pid=peer.process)
                return
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = await _received(connection, descriptors)
            self._note_request()
            reply = await calls.answer(request, self.socket_id, peer, descriptors, handed)
            local.send(connection, reply, handed)
        except local.NoMessageError:
            pass  # another server that starts has looked whether this one lives
        except (local.MalformedError, OSError) as error:  # a peer that is slow or gone, or speaks something else
            _log.debug("local connection ended", reason=str(error) or type(error).__name__)
        finally:
            local.close_all(descriptors)
            local.close_all(handed)

    def _note_request(self) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._waiting.discard(task)
            self._answering.add(task)


async def _received(connection: socket.socket, descriptors: list[int]) -> bytes:
    """Return a message, and add its descriptors to a list, once there is one."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(BlockingIOError):
            return local.receive(connection, descriptors)
        readable = loop.create_future()
        loop.add_reader(connection, _set, readable)
        try:
            await readable
        finally:
            loop.remove_reader(connection)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


@contextlib.contextmanager
def opened(setting: str) -> Iterator[LocalSocket | None]:
    """Return a context manager with the socket that the setting asks for; it removes the socket at its end.

    Args:
        setting: A path; `AUTO` for one in the runtime directory, or none where that cannot be; empty for none.

    Raises:
        StartError: There can be none at the path.
    """
    if not setting:
        yield None
        return
    try:
        if not local.is_supported():
            raise OSError("this system cannot hand over descriptors")
        path = setting if setting != AUTO else _path_of_its_own()
        listener = _listening(path)
    except OSError as error:
        reason = error.strerror or str(error)
        if setting != AUTO:
            raise StartError(f"the local socket {setting} is not available: {reason}") from None
        _log.info("serving without a local socket", reason=reason)
        yield None
        return
    with listener:
        status = os.lstat(path)
        try:
            yield LocalSocket(path, listener)
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.lstat(path), status):  # another server may have replaced it
                    os.unlink(path)


def _path_of_its_own() -> str:
    """Return a new path in the directory for the sockets of this user, from which those of dead servers are removed."""
    directory = own_directory()
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if name.endswith(_SUFFIX) and _is_dead(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
    return os.path.join(directory, f"{os.getpid()}-{secrets.token_hex(4)}{_SUFFIX}")


def variable_of_directory() -> str:
    """Return the name of the variable that says where `own_directory` is."""
    above = os.environ.get(_RUNTIME, "")
    is_used = above and os.path.isdir(above) and os.lstat(above).st_uid == os.geteuid()
    return _RUNTIME if is_used else "TMPDIR"


def own_directory() -> str:
    """Return the directory for sockets, which nobody else can enter.

    Raises:
        OSError: There is none.
    """
    if variable_of_directory() == _RUNTIME:
        directory = os.path.join(os.environ[_RUNTIME], _DIRECTORY)
    else:
        directory = os.path.join(tempfile.gettempdir(), f"{_DIRECTORY}-{os.geteuid()}")
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    status = os.lstat(directory)  # a link of another user would lead elsewhere
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(f"{directory} is not a directory that belongs to this user alone")
    return directory


def _listening(path: str) -> socket.socket:
    """Return a socket that listens at a path, for this user alone; one of a dead server is replaced.

    It gets its name when it listens, so that whoever finds it refusing connections knows that its server is dead.
    """
    if os.path.lexists(path) and not _is_dead(path):
        raise OSError("another server, or something else, is there")
    listener = local.new_socket()
    new = f"{path}.{secrets.token_hex(4)}"
    try:
        listener.setblocking(False)
        listener.bind(new)
        try:
            os.chmod(new, 0o600)
            listener.listen(_BACKLOG)
            os.rename(new, path)
        except BaseException:
            os.unlink(new)
            raise
    except BaseException:
        listener.close()
        raise
    return listener


def _is_dead(path: str) -> bool:
    """Return whether there is a socket at which nobody listens."""
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            with local.new_socket() as probe:
                probe.setblocking(False)  # a busy server would let it wait
                try:
                    probe.connect(path)
                except ConnectionRefusedError:
                    return True
    return False
