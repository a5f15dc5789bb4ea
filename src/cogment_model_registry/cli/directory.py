"""`cogment client directory`: calls to any Directory, by hand.

The names of commands and flags are those of the original; `--json` and `--timeout` are ours.
"""

import asyncio
import functools
import json
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from cogment_model_registry.cli.connection import Seconds
from cogment_model_registry.cli.groups import Group
from cogment_model_registry.cli.parameters import WholeNumber
from cogment_model_registry.cli.streams import json_text
from cogment_model_registry.errors import InvalidError, NotFoundError, TimedOutError, UnavailableError, counted
from cogment_model_registry.records.addresses import ENDPOINT_FORM, parse_endpoint, parse_properties, parse_token
from cogment_model_registry.records.services import Details, Endpoint, Protocol, Service, ServiceType
from cogment_model_registry.system.certificates import CertificateError, PemFile
from cogment_model_registry.system.paths import expanded
from cogment_model_registry.system.tasks import wait_at_most

if TYPE_CHECKING:
    from cogment_model_registry.discovery.client import DirectoryClient
    from cogment_model_registry.wire.tls import TlsFiles

_F = TypeVar("_F", bound=Callable[..., object])
_T = TypeVar("_T")

_POLL_SECONDS = 0.5
_POLL_CALL_SECONDS = 5.0
"""How long a Directory may take to answer before it is asked again: it may have frozen, or have moved."""

_ANSWER_SECONDS = 10
"""How long a command waits for an answer by default."""

_READY_SECONDS = 60
"""How long `wait_for_ready` waits by default: longer than a Directory takes to check a service again."""

if TYPE_CHECKING:
    _ParamType = click.ParamType[object]
else:
    _ParamType = click.ParamType  # before click 8.4 it takes no type


class _Parsed(_ParamType):
    """A parameter that a function of `records.addresses` parses."""

    def __init__(self, name: str, parse: Callable[[str], object], allowed: str) -> None:
        self.name = name
        self._parse = parse
        self._allowed = allowed

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError:
            self.fail(f"{value!r} is not allowed; it must be {self._allowed}", param, ctx)


def _note(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Keep a flag for `_ask`, which every command calls."""
    if value and parameter.name:
        ctx.meta[f"{__name__}.{parameter.name}"] = value


def _tls_files() -> "TlsFiles":
    """Return the files of the flags."""
    from cogment_model_registry.wire.tls import TlsFiles  # noqa: PLC0415 # it loads gRPC

    meta = click.get_current_context().meta
    names = ("tls_ca", "tls_certificate", "tls_key")
    paths = {name: meta.get(f"{__name__}.{name}") for name in names}
    authorities, certificate, key = (PemFile(name, expanded(path)) if path else None for name, path in paths.items())
    if (certificate is None) != (key is None):
        raise click.UsageError("give --tls_certificate and --tls_key together")
    files = TlsFiles(authorities, (certificate, key) if certificate and key else None)
    try:
        files.read()
    except CertificateError as error:
        raise InvalidError(str(error)) from None
    return files


_ENDPOINT = _Parsed("endpoint", parse_endpoint, ENDPOINT_FORM)
_PROPERTIES = _Parsed("properties", parse_properties, 'properties of the form "name=value,name,name=value"')
_TOKEN = _Parsed("token", parse_token, "printable ASCII")
_TYPE = _Parsed("type", ServiceType, f"one of {', '.join(each.value for each in ServiceType)}")


_TLS_OPTIONS = tuple(
    click.option(
        f"--{name}", metavar="FILE", envvar=variable, show_envvar=True, expose_value=False, callback=_note, help=text
    )
    for name, variable, text in (
        ("tls_key", "COGMENT_DIRECTORY_CLIENT_KEY", "PEM file of the key of that certificate."),
        (
            "tls_certificate",
            "COGMENT_DIRECTORY_CLIENT_CERTIFICATE",
            "PEM file of the certificate to show, if the Directory requires one.",
        ),
        (
            "tls_ca",
            "COGMENT_DIRECTORY_TLS_CA",
            "PEM file of the authorities that are trusted over TLS; by default the public ones that gRPC knows.",
        ),
    )
)


def _common_options(command: _F, timeout_seconds: int = _ANSWER_SECONDS) -> _F:
    """Add the flags that all commands share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON document."),
        *_TLS_OPTIONS,
        click.option(
            "--timeout",
            "timeout_seconds",
            metavar="SECONDS",
            type=Seconds(),
            default=timeout_seconds,
            show_default=True,
            help="How long the command may take.",
        ),
        click.option(
            "--directory_authentication_token",
            "token",
            type=_TOKEN,
            envvar="COGMENT_DIRECTORY_AUTHENTICATION_TOKEN",
            show_envvar=True,
            default="",
            help="Token of the services.",
        ),
        click.option(
            "--directory_endpoint",
            "endpoint",
            type=_ENDPOINT,
            envvar="COGMENT_DIRECTORY_ENDPOINT",
            show_envvar=True,
            default="grpc://localhost:9005",
            show_default=True,
            help="Address of the Directory; grpcs:// for TLS.",
        ),
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def directory() -> None:
    """Use a Directory: find, add and remove services."""


@directory.command()
@_common_options
@click.option("--service_id", metavar="N", type=WholeNumber(1, 2**64 - 1), help="Id of the one service to find.")
@click.option("--type", "service_type", type=_TYPE, help="Type of the services to find.")
@click.option("--properties", type=_PROPERTIES, help="Properties that the services must have.")
def inquire(
    *,
    endpoint: str,
    token: str,
    timeout_seconds: float,
    as_json: bool,
    service_id: int | None,
    service_type: ServiceType | None,
    properties: dict[str, str] | None,
) -> None:
    """Find services, by id or by type and properties."""
    inquiry = _inquiry(service_id, service_type, properties)
    services = _ask(endpoint, token, lambda client: client.inquire(inquiry, timeout_seconds=timeout_seconds))
    if as_json:
        _show_json(services)
        return
    click.echo(f"[{len(services)}] Services found")
    for service in services:
        _show(service)


@directory.command("wait_for_ready", short_help="Wait for the Directory, or for a service in it.")
@functools.partial(_common_options, timeout_seconds=_READY_SECONDS)
@click.option("--service_id", metavar="N", type=WholeNumber(1, 2**64 - 1), help="Id of the service to wait for.")
@click.option("--type", "service_type", type=_TYPE, help="Type of the service to wait for.")
@click.option("--properties", type=_PROPERTIES, help="Properties that the service must have.")
def wait_for_ready(
    *,
    endpoint: str,
    token: str,
    timeout_seconds: float,
    as_json: bool,
    service_id: int | None,
    service_type: ServiceType | None,
    properties: dict[str, str] | None,
) -> None:
    """Wait until the Directory answers, or until it has a service that matches."""
    if service_id is None and service_type is None and properties is None:
        inquiry: Details | int = Details(ServiceType.OTHER)
        wanted = False
    else:
        inquiry = _inquiry(service_id, service_type, properties)
        wanted = True

    last: UnavailableError | TimedOutError | None = TimedOutError("the Directory did not answer in time")

    async def poll(client: "DirectoryClient") -> list[Service]:
        nonlocal last
        while True:
            try:
                services = await client.inquire(inquiry, timeout_seconds=_POLL_CALL_SECONDS)
                if services or not wanted:
                    return services
                last = None
            except (UnavailableError, TimedOutError) as error:
                last = error
            await asyncio.sleep(_POLL_SECONDS)

    async def wait(client: "DirectoryClient") -> list[Service]:
        try:
            return await wait_at_most(timeout_seconds, poll(client))
        except TimeoutError:
            raise last or NotFoundError(
                f"no such service was ready within {counted(timeout_seconds, 'second')}"
            ) from None

    services = _ask(endpoint, token, wait)
    if as_json:
        _show_json(services)
        return
    click.echo("ready")


@directory.command(short_help="Add a service, and print its id and secret.")
@_common_options
@click.option("--protocol", type=click.Choice(["grpc", "cogment"]), default="grpc", show_default=True)
@click.option("--host", required=True, help="Host of the service.")
@click.option("--port", metavar="N", type=WholeNumber(0, 65535), default=0, help="TCP port of the service.")
@click.option("--ssl_required", type=bool, default=False, show_default=True, help="Whether it requires encryption.")
@click.option("--type", "service_type", type=_TYPE, required=True, help="Type of the service.")
@click.option("--permanent", type=bool, default=False, show_default=True, help="Whether to keep it without checks.")
@click.option("--properties", type=_PROPERTIES, default="", help='Properties such as "name=value,name".')
def register(
    *,
    endpoint: str,
    token: str,
    timeout_seconds: float,
    as_json: bool,
    protocol: str,
    host: str,
    port: int,
    ssl_required: bool,
    service_type: ServiceType,
    permanent: bool,
    properties: dict[str, str],
) -> None:
    """Add a service, and print its id and secret, which are needed to remove it."""
    over_grpc = Protocol.GRPC_SSL if ssl_required else Protocol.GRPC
    where = Endpoint(Protocol.COGMENT if protocol == "cogment" else over_grpc, host, port)
    details = Details(service_type, properties)
    service_id, secret = _ask(
        endpoint,
        token,
        lambda client: client.register(where, details, permanent=permanent, timeout_seconds=timeout_seconds),
    )
    if as_json:
        click.echo(json.dumps({"service_id": service_id, "secret": secret}))
    else:
        click.echo(f"Service ID [{service_id}]  Secret [{secret}]")


@directory.command()
@_common_options
@click.option("--service_id", metavar="N", type=WholeNumber(1, 2**64 - 1), required=True, help="Id of the service.")
@click.option("--secret", required=True, help="Secret that `register` printed.")
def deregister(
    *, endpoint: str, token: str, timeout_seconds: float, as_json: bool, service_id: int, secret: str
) -> None:
    """Remove a service."""
    _ask(endpoint, token, lambda client: client.deregister(service_id, secret, timeout_seconds=timeout_seconds))
    if as_json:
        click.echo(json.dumps({"service_id": service_id}))


def _inquiry(
    service_id: int | None, service_type: ServiceType | None, properties: dict[str, str] | None
) -> Details | int:
    """Return the inquiry that the flags describe; some of them exclude each other."""
    if service_id is not None:
        if service_type is not None or properties is not None:
            raise click.UsageError("--service_id cannot be combined with --type or --properties")
        return service_id
    if service_type is None:
        raise click.UsageError("give --service_id, or --type with or without --properties")
    return Details(service_type, properties or {})


def _ask(endpoint: str, token: str, question: Callable[["DirectoryClient"], Awaitable[_T]]) -> _T:
    """Ask a Directory, and return the answer."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from cogment_model_registry.discovery.client import connected  # noqa: PLC0415 # after the line above

    files = _tls_files()

    async def ask() -> _T:
        async with connected(endpoint, token, files) as client:
            return await question(client)

    return asyncio.run(ask())


def _show(service: Service) -> None:
    """Print a service for people, as the original does."""
    ssl = str(service.endpoint.protocol is Protocol.GRPC_SSL).lower()
    click.echo(f"Service ID [{service.service_id}]")
    click.echo(f"        Endpoint [{service.endpoint}] SSL required [{ssl}]")
    click.echo(f"        Type [{service.details.type.value}]")
    if service.permanent:
        click.echo("        Permanent")
    for name, value in sorted(service.details.properties.items()):
        click.echo(f"        [{name}] = [{value}]")


def _show_json(services: list[Service]) -> None:
    """Print services for programs."""
    click.echo(json_text([_as_json(service) for service in services], indent=2))


def _as_json(service: Service) -> dict[str, object]:
    return {
        "service_id": service.service_id,
        "endpoint": str(service.endpoint),
        "protocol": service.endpoint.protocol.value,
        "type": service.details.type.value,
        "permanent": service.permanent,
        "properties": dict(service.details.properties),
    }
