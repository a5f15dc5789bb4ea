"""The flags that say which registry a command calls, and how; and completion of names from that registry."""

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click
from click.shell_completion import CompletionItem

from cogment_model_registry.cli.running import ending_in_time, ending_on_signals, translating_errors

if TYPE_CHECKING:
    from cogment_model_registry import ModelRegistry

    _Number = click.ParamType[float]
else:
    _Number = click.ParamType  # before click 8.4 it takes no type

_P = ParamSpec("_P")
_R = TypeVar("_R")

RETRY_SECONDS = 3.0
"""How long a command tries to reach a registry, unless `--retry_seconds` sets it: a person waits for the answer."""

_SECONDS_MAX = 1_000_000
"""The longest time that a flag takes: eleven days."""

_COMPLETION_SECONDS = 1.0
"""How long a completion may take: the shell waits for it."""

_THREAD_SECONDS = 1.0
"""How long a thread may take to end; one of gRPC's takes less than a millisecond."""


@dataclass(frozen=True, slots=True)
class Flags:
    """The values of the flags that all commands have.

    Attributes:
        endpoint: Where the registry is; None to let the environment and the Directory say.
        directory_endpoint: The address of the Directory.
        directory_authentication_token: The token of the registry there.
        token_file: The file with the token that says who calls.
        tls_ca: The file of the authorities that are trusted.
        tls_certificate: The file of the certificate to show.
        tls_key: The file of its key.
        timeout_seconds: How long the command may take; None for the defaults of the library for each call.
        retry_seconds: How long a registry that is unavailable is retried; None for the defaults.
        as_json: Whether to print JSON.
        is_quiet: Whether to print nothing but what was asked for.
    """

    endpoint: str | None
    directory_endpoint: str | None
    directory_authentication_token: str | None
    token_file: str | None
    tls_ca: str | None
    tls_certificate: str | None
    tls_key: str | None
    timeout_seconds: float | None
    retry_seconds: float | None
    as_json: bool
    is_quiet: bool

    @contextlib.contextmanager
    def connected(self) -> Iterator["ModelRegistry"]:
        """Return a context manager with the registry; signals end the command cleanly in it.

        Raises:
            SettingError: A flag or an environment variable is malformed.
            TimedOutError: The command takes longer than it may.
        """
        retry_seconds = RETRY_SECONDS if self.retry_seconds is None else self.retry_seconds
        with (
            translating_errors("the command"),
            ending_on_signals(),
            _registry(self, retry_seconds) as registry,
            ending_in_time(self.timeout_seconds, registry.close),
        ):
            yield registry

    def say(self, message: str) -> None:
        """Print what was done, unless the output is for programs."""
        if not self.is_quiet and not self.as_json:
            click.echo(message)


@contextlib.contextmanager
def _registry(flags: Flags, retry_seconds: float) -> Iterator["ModelRegistry"]:
    # gRPC's C core would write to standard error by itself; it reads this when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cogment_model_registry import ModelRegistry  # noqa: PLC0415 # after the line above, and not for --help

    try:
        with ModelRegistry(
            flags.endpoint,
            directory_endpoint=flags.directory_endpoint,
            directory_authentication_token=flags.directory_authentication_token,
            token_file=flags.token_file,
            tls_ca=flags.tls_ca,
            tls_certificate=flags.tls_certificate,
            tls_key=flags.tls_key,
            timeout=flags.timeout_seconds,
            retry_seconds=retry_seconds,
            progress=False,
        ) as registry:
            yield registry
    finally:
        _join_threads()


def _join_threads() -> None:
    """Wait for the threads of gRPC, which end once the connection is closed.

    A process that ends while one of them is in C++ may be aborted: Python ends such a thread by unwinding its stack.
    """
    for thread in threading.enumerate():
        # The client's threads, which threading calls dummies if they wrote a log line, cannot be joined.
        if thread.daemon and thread is not threading.current_thread() and not thread.name.startswith("Dummy-"):
            thread.join(_THREAD_SECONDS)


class Seconds(_Number):
    """A number of seconds: how long something may take.

    Args:
        may_be_zero: Whether it may be no time at all.
    """

    name = "seconds"

    def __init__(self, *, may_be_zero: bool = False) -> None:
        self._may_be_zero = may_be_zero

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds that a word says."""
        try:
            seconds = float(str(value))
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds <= _SECONDS_MAX or not (seconds or self._may_be_zero):
            least = "from 0 on" if self._may_be_zero else "larger than 0"
            self.fail(f"{value!r} is not allowed; it must be a number of seconds {least}", param, ctx)
        return seconds


_COMMON = (
    click.option(
        "--endpoint",
        metavar="ENDPOINT",
        help="Address of the registry: grpc://host:port, grpcs://host:port for TLS, or cogment://discover to ask a "
        "Directory; several of the first two, separated by commas, serve the same models.  [env var: "
        "COGMENT_MODEL_REGISTRY_ENDPOINT; default: the registry that the Directory knows if one is given, else grpc://localhost:9002]",
    ),
    click.option(
        "--directory_endpoint",
        metavar="ENDPOINT",
        help="Address of the Directory: grpc://host:port, or grpcs://host:port for TLS.  "
        "[env var: COGMENT_DIRECTORY_ENDPOINT]",
    ),
    click.option(
        "--directory_authentication_token",
        metavar="TOKEN",
        help="Token of the registry in the Directory.  [env var: COGMENT_DIRECTORY_AUTHENTICATION_TOKEN]",
    ),
    click.option(
        "--token_file",
        metavar="PATH",
        help="File with the token that says who calls.  [env vars: COGMENT_MODEL_REGISTRY_TOKEN_FILE, or "
        "COGMENT_MODEL_REGISTRY_TOKEN for the token itself]",
    ),
    click.option(
        "--tls_ca",
        metavar="FILE",
        help="PEM file of the authorities that are trusted over TLS.  [env var: COGMENT_MODEL_REGISTRY_TLS_CA; "
        "default: the public ones that gRPC knows]",
    ),
    click.option(
        "--tls_certificate",
        metavar="FILE",
        help="PEM file of the certificate to show, for servers that require one.  "
        "[env var: COGMENT_MODEL_REGISTRY_CLIENT_CERTIFICATE]",
    ),
    click.option(
        "--tls_key",
        metavar="FILE",
        help="PEM file of the key of that certificate.  [env var: COGMENT_MODEL_REGISTRY_CLIENT_KEY]",
    ),
    click.option(
        "--timeout",
        metavar="SECONDS",
        type=Seconds(),
        help="How long the command may take.  [default: no limit for the whole; 30 for each call, and 60 plus 1 for "
        "each MiB for a transfer]",
    ),
    click.option(
        "--retry_seconds",
        metavar="SECONDS",
        type=Seconds(may_be_zero=True),
        help=f"How long to retry while the registry is unavailable.  [default: {RETRY_SECONDS:g}]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, with documented fields."),
    click.option("--quiet", "is_quiet", is_flag=True, help="Print only the result, and no progress."),
)


_TEXTS = (
    *("endpoint", "directory_endpoint", "directory_authentication_token", "token_file"),
    *("tls_ca", "tls_certificate", "tls_key"),
)
"""The flags that the library checks."""


def common_flags(command: Callable[Concatenate[Flags, _P], _R]) -> Callable[_P, _R]:
    """Add the flags that all commands share, which the command gets as its first argument."""

    @functools.wraps(command)
    def with_flags(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        return command(_flags(kwargs), *args, **kwargs)

    decorated: Callable[_P, _R] = with_flags
    for option in reversed(_COMMON):
        decorated = option(decorated)
    return decorated


def _flags(parameters: dict[str, object]) -> Flags:
    """Take the flags out of the parameters of a command."""
    texts = {name: parameters.pop(name, None) for name in _TEXTS}
    given = {name: text if isinstance(text, str) else None for name, text in texts.items()}
    timeout, retry = parameters.pop("timeout", None), parameters.pop("retry_seconds", None)
    return Flags(
        **given,
        timeout_seconds=timeout if isinstance(timeout, float) else None,
        retry_seconds=retry if isinstance(retry, float) else None,
        as_json=parameters.pop("as_json", False) is True,
        is_quiet=parameters.pop("is_quiet", False) is True,
    )


def complete_model(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the ids of models that begin with a word."""
    return _asked(ctx, lambda registry: [CompletionItem(each.model_id) for each in registry.list_models()], incomplete)


def complete_version(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the numbers of the versions of the model on the line, newest first."""
    model_id = ctx.params.get("model_id")
    if not isinstance(model_id, str):
        return []
    return _asked(
        ctx,
        lambda registry: [CompletionItem(str(each.number)) for each in reversed(registry.list_versions(model_id))],
        incomplete,
    )


def _asked(
    ctx: click.Context, question: Callable[["ModelRegistry"], list[CompletionItem]], incomplete: str
) -> list[CompletionItem]:
    """Return the answers of a registry; nothing on an error, which a completion cannot show."""
    flags = _flags({**ctx.params, "timeout": _COMPLETION_SECONDS})
    with contextlib.suppress(Exception), _registry(flags, retry_seconds=0) as registry:
        return [item for item in question(registry) if item.value.startswith(incomplete)]
    return []
