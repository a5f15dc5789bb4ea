"""Sends posts to one receiver, in order: each is tried until it is confirmed or given up, and then the next one.

The time of a whole try is limited, not only that between two bytes. A redirect counts as a failure, since it could send
a signed post anywhere. Only the status and the headers of an answer are read.
"""

import http.client
import json
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from cogment_model_registry._version import __version__
from cogment_model_registry.bridges.webhooks.configuration import Hook
from cogment_model_registry.bridges.webhooks.signing import headers_of
from cogment_model_registry.bridges.webhooks.state import Post, State
from cogment_model_registry.errors import PreconditionError

_log = logging.getLogger("cogment_model_registry.webhooks")

_GONE = 410
"""The status by which a receiver refuses a post permanently."""

FINISH_SECONDS = 1.0
"""How long a try may continue after the process was told to stop, since an interrupted post is sent again later."""


class DeadLetters:
    """The file of events that were given up, as one JSON document on each line.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, hook: str, posts: Iterable[Post], reason: str) -> None:
        """Add events of a hook, durably.

        Raises:
            PreconditionError: The file cannot be written.
        """
        lines = [
            {
                "hook": hook,
                "message_id": post.message_id,
                "tries": post.tries,
                "given_up": time.time(),
                "reason": reason,
                "event": json.loads(post.body),
            }
            for post in posts
        ]
        try:
            # Opened each time, so that it may be moved away.
            with self._lock, open(self._path, "a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise PreconditionError(f"the dead letters {self._path.name} cannot be written: {reason}") from error


class Delivery:
    """Posts the events of one hook, on a thread.

    Args:
        hook: The hook.
        state: The database with its waiting events.
        dead_letters: The file for events that are given up.
        waiting_max: How many may wait.
        on_error: Called on the thread, with an error that ends it.
    """

    def __init__(
        self,
        hook: Hook,
        state: State,
        dead_letters: DeadLetters,
        waiting_max: int,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._hook = hook
        self._state = state
        self._dead_letters = dead_letters
        self._waiting_max = waiting_max
        self._on_error = on_error
        self._is_stopped = threading.Event()
        self._attempt: _Attempt | None = None
        self._thread = threading.Thread(target=self._run, name=f"webhook {hook.name}")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop_soon(self) -> None:
        """Begin no further try."""
        self._is_stopped.set()
        with self._state.news:
            self._state.news.notify_all()

    def stop(self, until: float) -> None:
        """Stop, also in the middle of a try; its event then waits for the next start.

        Args:
            until: How long the try may take, by `time.monotonic`.
        """
        self.stop_soon()
        self._thread.join(max(until - time.monotonic(), 0))
        attempt = self._attempt
        if attempt is not None:
            attempt.cut()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._is_stopped.is_set():
                post = self._next()
                if post is not None:
                    self._deliver(post)
        except BaseException as error:
            _log.error("hook=%s stopped by an error: %s", self._hook.name, error)
            self._on_error(error)

    def _next(self) -> Post | None:
        """Return the next event; wait for one if there is none, and return None when it is time to stop."""
        with self._state.news:
            self._state.news.wait_for(
                lambda: self._is_stopped.is_set() or self._state.first_post(self._hook.name) is not None
            )
            return None if self._is_stopped.is_set() else self._state.first_post(self._hook.name)

    def _deliver(self, post: Post) -> None:
        """Try to post an event once, and wait if it failed."""
        waiting = self._state.waiting(self._hook.name)
        if waiting > self._waiting_max:
            self._give_up(post, f"{waiting} events wait; the limit is {self._waiting_max}")
            return
        attempt = self._attempt = _Attempt(self._hook)
        failure, retry_after_seconds = attempt.post(post)
        self._attempt = None
        if not failure:
            self._state.remove_posts(self._hook.name, [post])
            _log.info("hook=%s id=%s tries=%d delivered", self._hook.name, post.message_id, post.tries + 1)
            return
        if self._is_stopped.is_set():
            return  # which may have been the failure
        post = self._state.note_failure(post)
        age_seconds = time.time() - (post.first_try or 0)
        if failure == f"status {_GONE}" or age_seconds >= self._hook.give_up_seconds:
            self._give_up(post, failure)
            return
        pause_seconds = max(self._pause_seconds(post.tries), retry_after_seconds)
        pause_seconds = min(pause_seconds, self._hook.longest_pause_seconds)
        _log.warning(
            "hook=%s id=%s tries=%d failed: %s; next try in %.1f s",
            self._hook.name,
            post.message_id,
            post.tries,
            failure,
            pause_seconds,
        )
        with self._state.news:  # events are added in the meantime, and may exceed the limit
            self._state.news.wait_for(
                lambda: self._is_stopped.is_set() or self._state.waiting(self._hook.name) > self._waiting_max,
                pause_seconds,
            )

    def _pause_seconds(self, tries: int) -> float:
        doubled: float = self._hook.first_pause_seconds * 2 ** min(tries - 1, 30)
        return min(doubled, self._hook.longest_pause_seconds) * random.uniform(0.75, 1.0)  # noqa: S311 # no secret

    def _give_up(self, post: Post, reason: str) -> None:
        self._dead_letters.add(self._hook.name, [post], reason)
        self._state.remove_posts(self._hook.name, [post])
        _log.error("hook=%s id=%s tries=%d given up: %s", self._hook.name, post.message_id, post.tries, reason)


class _Attempt:
    """One try to post an event.

    Args:
        hook: The receiver.
    """

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._connection: http.client.HTTPConnection | None = None
        self._is_cut = threading.Event()

    def post(self, post: Post) -> tuple[str, float]:
        """Post an event.

        Returns:
            The reason of a failure, empty if the post was confirmed; and the value of Retry-After, in seconds.
        """
        hook = self._hook
        parts = urlsplit(hook.url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        timer = threading.Timer(hook.timeout_seconds, self.cut)
        timer.daemon = True
        timer.start()
        connection = self._connection = self._opened(parts.scheme, str(parts.hostname), parts.port)
        try:
            headers = {
                **headers_of(hook.keys, post.message_id, int(time.time()), post.body),
                "Content-Type": "application/json",
                "User-Agent": f"cogment-model-registry/{__version__}",
                "Connection": "close",
            }
            connection.connect()
            if self._is_cut.is_set():  # while there was nothing to cut, such as between two addresses of the host
                raise TimeoutError
            connection.request("POST", target, body=post.body, headers=headers)
            answer = connection.getresponse()
            if self._is_cut.is_set():
                return f"no answer within {hook.timeout_seconds:g} s", 0
            if 200 <= answer.status < 300:
                return "", 0
            what = "a redirect, which is not followed: " if 300 <= answer.status < 400 else ""
            return f"{what}status {answer.status}", _seconds(answer.getheader("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            if self._is_cut.is_set() or isinstance(error, TimeoutError):
                return f"no answer within {hook.timeout_seconds:g} s", 0
            # Messages of some errors contain parts of the answer, or the address.
            reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            return f"{hook.shown_url} cannot be reached: {reason}", 0
        finally:
            timer.cancel()
            connection.close()

    def _opened(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        seconds = self._hook.timeout_seconds
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=seconds)

    def cut(self) -> None:
        """Abort it."""
        self._is_cut.set()
        opened = self._connection.sock if self._connection is not None else None
        if opened is not None:
            try:
                opened.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it is over


def _seconds(text: str | None) -> float:
    """Return the seconds in the header Retry-After; 0 for none, or for a date."""
    return float(text) if text and text.isascii() and text.isdecimal() and len(text) < 8 else 0.0
