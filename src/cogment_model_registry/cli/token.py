"""`cogment token`: who may do what with a registry, in the database of its catalog."""

import asyncio
import json
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import click

from cogment_model_registry.cli.bucket_archive import CatalogUrlType, check_postgresql_extra
from cogment_model_registry.cli.groups import Command, Group
from cogment_model_registry.cli.presentation import Column, print_table
from cogment_model_registry.cli.running import PathType, silence_log
from cogment_model_registry.cli.server_extra import check_server_extra
from cogment_model_registry.errors import quoted
from cogment_model_registry.records.documents import time_text
from cogment_model_registry.settings import Settings, all_settings

if TYPE_CHECKING:
    from cogment_model_registry.records.access import Grant, GrantKind
    from cogment_model_registry.storage.postgres.grants import Grants

_T = TypeVar("_T")

_PREFIX = "cmr_"
"""What tokens begin with, so that programs that look for secrets in files can find them."""

_SECRET_BYTES = 32
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_EXPIRES_MAX_DAYS = 36_500
_NS = 10**9


class _ExpiryType(click.ParamType):  # type: ignore[type-arg,unused-ignore] # before click 8.4 it takes no type
    """A number of seconds, from a number with a unit."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the seconds that a word says."""
        match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", str(value))
        seconds = int(match[1]) * _UNITS[match[2]] if match else 0
        if not 0 < seconds <= _EXPIRES_MAX_DAYS * _UNITS["d"]:
            self.fail(f"{value!r} is not allowed; it must be a number with s, m, h or d, such as 30d", param, ctx)
        return seconds


_SETTING = next(setting for setting in all_settings(Settings) if setting.name == "archive_dir")

_archive_dir = click.option(
    f"--{_SETTING.name}",
    type=PathType(file_okay=False),
    envvar=_SETTING.environment,
    default=_SETTING.default_text,
    show_default=True,
    help=f"Archive directory of the registry.  [env var: {_SETTING.environment}]",
)

_CATALOG = next(setting for setting in all_settings(Settings) if setting.name == "catalog_url")

_catalog_url = click.option(
    f"--{_CATALOG.name}",
    type=CatalogUrlType(),
    envvar=_CATALOG.environment,
    default=None,
    help=f"Catalog in PostgreSQL, of several servers, in place of archive_dir.  [env var: {_CATALOG.environment}]",
)


@click.group(cls=Group, short_help="Say who may do what with a registry.")
def token() -> None:
    """Say who may do what with a registry: in the database of its archive directory or of its catalog_url.

    The server may run. It takes a new token at once, and refuses a revoked one within a second.
    """
    check_server_extra("cogment token")


@token.command(cls=Command, short_help="Create a token, and print it.")
@click.option("--name", required=True, metavar="NAME", help="Name of the token, for the log and for revoke.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="SCOPE",
    help="What it allows: read, publish, store, alias, delete or admin, for all models or for those of a pattern, such "
    "as publish:policy-*; alias:policy-*/staging for some aliases alone. May be given more than once.",
)
@click.option(
    "--expires",
    type=_ExpiryType(),
    metavar="DURATION",
    help="How long it is valid, such as 12h or 30d.  [default: it does not expire]",
)
@click.option(
    "--certificate",
    metavar="NAME",
    help="Make no token: the scopes are those of clients whose certificate has this name.",
)
@click.option(
    "--subject",
    metavar="SUBJECT",
    help="Make no token: the scopes are those of this subject of the issuer of JSON Web Tokens.",
)
@_archive_dir
@_catalog_url
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(
    *,
    name: str,
    scopes: tuple[str, ...],
    expires: int | None,
    certificate: str | None,
    subject: str | None,
    archive_dir: str,
    catalog_url: str | None,
    as_json: bool,
) -> None:
    """Create a token with one or more scopes, and print it. It is shown once: the registry keeps its hash alone."""
    from cogment_model_registry.records.access import Grant, check_name, identity_of, parse_scopes  # noqa: PLC0415
    from cogment_model_registry.storage.tools.tokens import add_grant  # noqa: PLC0415

    if certificate is not None and subject is not None:
        raise click.UsageError("--certificate and --subject exclude each other")
    check_name("--name", name)
    kind: GrantKind = "token"
    secret = ""
    if certificate is not None:
        kind, identity = "certificate", check_name("--certificate", certificate)
    elif subject is not None:
        kind, identity = "subject", check_name("--subject", subject)
    else:
        secret = _PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        identity = identity_of(secret)
    now_ns = time.time_ns()
    expires_ns = None if expires is None else now_ns + expires * _NS
    grant = Grant(name, kind, identity, parse_scopes(scopes), now_ns, expires_ns)
    if catalog_url:
        _shared(catalog_url, lambda grants: grants.add(grant))
    else:
        add_grant(archive_dir, grant)
    if as_json:
        click.echo(json.dumps({**_as_json(grant), **({"token": secret} if secret else {})}, indent=2))
    elif secret:
        click.echo(secret)
    else:
        click.echo(f"{kind} {quoted(identity)} has the scopes {', '.join(map(str, grant.scopes))}")


@token.command("list", cls=Command, short_help="List the tokens, without their secrets.")
@_archive_dir
@_catalog_url
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_tokens(*, archive_dir: str, catalog_url: str | None, as_json: bool) -> None:
    """List the tokens, what they allow and when they end. The tokens themselves are not kept."""
    from cogment_model_registry.storage.tools.tokens import list_grants  # noqa: PLC0415

    grants = _shared(catalog_url, lambda each: each.read()) if catalog_url else list_grants(archive_dir)
    if as_json:
        click.echo(json.dumps([_as_json(grant) for grant in grants], indent=2))
        return
    now_ns = time.time_ns()
    print_table(
        [Column(name) for name in ("NAME", "FOR", "SCOPES", "CREATED", "EXPIRES")],
        [
            (
                grant.name,
                "token" if grant.kind == "token" else f"{grant.kind} {grant.identity}",
                ", ".join(map(str, grant.scopes)),
                time_text(grant.created_ns),
                _expiry(grant, now_ns),
            )
            for grant in grants
        ],
    )


def _expiry(grant: "Grant", now_ns: int) -> str:
    if grant.expires_ns is None:
        return "never"
    return time_text(grant.expires_ns) + (" (expired)" if grant.expires_ns <= now_ns else "")


@token.command(cls=Command, short_help="Revoke a token.")
@click.argument("name")
@_archive_dir
@_catalog_url
def revoke(name: str, *, archive_dir: str, catalog_url: str | None) -> None:
    """Revoke the token NAME. A server that runs refuses it within a second."""
    from cogment_model_registry.storage.tools.tokens import remove_grant  # noqa: PLC0415

    if catalog_url:
        _shared(catalog_url, lambda grants: grants.remove(name))
    else:
        remove_grant(archive_dir, name)
    click.echo(f"token {quoted(name)} is revoked")


def _shared(url: str, act: "Callable[[Grants], Awaitable[_T]]") -> _T:
    """Return what an action on the grants of a catalog in PostgreSQL returns."""
    check_postgresql_extra()
    from cogment_model_registry.storage.postgres.grants import opened_grants  # noqa: PLC0415

    silence_log()

    async def run() -> _T:
        async with opened_grants(url) as grants:
            return await act(grants)

    return asyncio.run(run())


def _as_json(grant: "Grant") -> dict[str, object]:
    return {
        "name": grant.name,
        "kind": grant.kind,
        **({} if grant.kind == "token" else {"identity": grant.identity}),
        "scopes": [str(scope) for scope in grant.scopes],
        "created_ns": grant.created_ns,
        "expires_ns": grant.expires_ns,
    }
