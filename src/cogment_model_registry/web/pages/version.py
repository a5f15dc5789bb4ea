"""The page of a version: its record, consumers, lineage and tensors, and the commands that retrieve it."""

import asyncio
import base64
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import URL
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cogment_model_registry.client.credentials import TOKEN_VARIABLE
from cogment_model_registry.client.encryption import CA_VARIABLE, CERTIFICATE_VARIABLE, KEY_VARIABLE
from cogment_model_registry.errors import ModelRegistryError, NotFoundError
from cogment_model_registry.records.addresses import endpoint_text
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.settings.web import WebOptions
from cogment_model_registry.web.errors import RefusedError
from cogment_model_registry.web.keys import key_of
from cogment_model_registry.web.pages import folders, tensors
from cogment_model_registry.web.pages.formats import path_of
from cogment_model_registry.web.pages.rights import read_rights
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import caller_of, registry_of, state_of

_CONSUMERS_MAX = 200
_CHILDREN_MAX = 20
_ANCESTORS_MAX = 8
_RUN_MAX = 20


def number_of(text: str) -> int:
    """Return the number in a path.

    Raises:
        RefusedError: It is not a number.
    """
    if not text.isascii() or not text.isdecimal() or not 0 < len(text) <= 19:
        raise RefusedError(HTTPStatus.NOT_FOUND, f"there is no version {text[:40]!r}; versions have numbers from 1")
    return int(text)


async def show(request: Request) -> Response:
    """Answer with the page; for an alias, ``latest`` or -n, redirect to the page of the version by its number."""
    model_id, name = request.path_params["model_id"], request.path_params["version"]
    registry = registry_of(request)
    if not name.isdecimal():
        version = await registry.describe_version(model_id, key_of(name))
        return RedirectResponse(path_of("models", model_id, "versions", version.number), HTTPStatus.SEE_OTHER)
    rights, version = await asyncio.gather(read_rights(request), registry.describe_version(model_id, number_of(name)))
    latest, running, lineage, listing, folder = await asyncio.gather(
        registry.get_version(model_id),
        registry.consumers(model_id, f"version_number = {version.number}", limit=_CONSUMERS_MAX),
        _lineage(registry, version),
        tensors.read_listing(registry, version),
        folders.read_folder(registry, version),
    )
    return state_of(request).templates.page(
        request,
        "version.html",
        rights=rights,
        version=version,
        latest_number=latest.number,
        running=[each for each in running if each.is_live],
        lineage=lineage,
        listing=listing,
        folder=folder,
        hash_hex=base64.b64decode(version.data_hash).hex() if version.data_hash else "",
        retrieval=retrieval_of(
            request.url, state_of(request).options, version, has_token=bool(caller_of(request).token)
        ),
        now_ns=time.time_ns(),
    )


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a version comes from, by its tags or entries ``parent`` and ``run``.

    Attributes:
        ancestors: Its parent, the parent of that, and so on, as far as they exist.
        missing: The parent of the last of them, if it does not exist any more; empty otherwise.
        children: Versions of which it is the parent.
        run: The run that created it; empty if it has none.
        siblings: Other versions of that run, newest first.
    """

    ancestors: Sequence[Version]
    missing: str
    children: Sequence[Version]
    run: str
    siblings: Sequence[Version]

    @property
    def is_any(self) -> bool:
        """Whether there is something to show."""
        return bool(self.ancestors or self.missing or self.children or self.run)


def noted(version: Version, name: str) -> str:
    """Return the value of a name in the tags of a version, or else in its `user_data`."""
    return version.tags.get(name) or version.user_data.get(name, "")


async def _lineage(registry: Registry, version: Version) -> Lineage:
    run = noted(version, "run")
    number = version.number
    try:
        (ancestors, missing), children, siblings = await asyncio.gather(
            _ancestors(registry, version),
            registry.find_versions(
                version.model_id, f'tags.parent = "{number}" OR user_data.parent = "{number}"', limit=_CHILDREN_MAX
            ),
            _of_run(registry, version, run),
        )
    except ModelRegistryError:
        return Lineage((), "", (), run, ())
    return Lineage(ancestors, missing, children, run, siblings)


async def _ancestors(registry: Registry, version: Version) -> tuple[list[Version], str]:
    found: list[Version] = []
    seen = {version.number}
    parent = noted(version, "parent")
    while parent.isascii() and parent.isdecimal() and len(found) < _ANCESTORS_MAX and int(parent[:19]) not in seen:
        try:
            each = await registry.describe_version(version.model_id, int(parent[:19]))
        except NotFoundError:
            return found, parent
        found.append(each)
        seen.add(each.number)
        parent = noted(each, "parent")
    return found, parent if parent and not parent.isdecimal() else ""


async def _of_run(registry: Registry, version: Version, run: str) -> list[Version]:
    if not run:
        return []
    found = await registry.find_versions(
        version.model_id, run_filter(run), order_by="version_number desc", limit=_RUN_MAX
    )
    return [each for each in found if each.number != version.number]


def run_filter(run: str) -> str:
    """Return the filter of the versions of a run."""
    text = quoted_text(run)
    return f"tags.run = {text} OR user_data.run = {text}"


def quoted_text(text: str) -> str:
    """Return a text as a quoted value of a filter."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@dataclass(frozen=True, slots=True)
class Retrieval:
    """How to retrieve a version.

    Attributes:
        commands: The commands, by the name of the tool.
        notes: What they need besides, a sentence each.
    """

    commands: Mapping[str, str]
    notes: Sequence[str] = ()


def retrieval_of(url: URL, options: WebOptions, version: Version, *, has_token: bool) -> Retrieval:
    """Return the commands that retrieve a version from this server.

    Args:
        url: The address of the page, whose host name also reaches gRPC.
        options: The options of the process.
        version: The version.
        has_token: Whether the reader of the page needs a token.
    """
    model, number = version.model_id, version.number
    is_encrypted = bool(options.tls_certificate)
    host = url.hostname or "localhost"
    grpc_host = f"[{host}]" if ":" in host else host
    endpoint = endpoint_text(f"{grpc_host}:{options.grpc_port}", is_secure=is_encrypted)
    address = f"{url.scheme}://{url.netloc}{path_of('models', model, 'versions', number, 'data')}"
    stem = "".join(character if character.isalnum() or character in "-_." else "_" for character in model)
    file = f"{stem}-{number}.bin"
    flags, notes = list[str](), list[str]()
    if has_token:
        flags.append(f'-H "Authorization: Bearer ${TOKEN_VARIABLE}"')
        notes.append(f"They take your token from the environment variable {TOKEN_VARIABLE}.")
    if is_encrypted:
        flags.append(f'--cacert "${CA_VARIABLE}"')
        notes.append(
            f"{CA_VARIABLE} names the PEM file of the authorities that you trust; with a certificate of a public "
            "authority, leave it unset, and leave out --cacert."
        )
    if options.tls_client_ca:
        flags.append(f'--cert "${CERTIFICATE_VARIABLE}" --key "${KEY_VARIABLE}"')
        notes.append(f"{CERTIFICATE_VARIABLE} and {KEY_VARIABLE} name the PEM files of your certificate and its key.")
    return Retrieval(
        {
            "Command line": (
                f"cogment client model_registry retrieve {shlex.quote(model)} {number} --output={file} "
                f"--endpoint={shlex.quote(endpoint)}"
            ),
            "Python": (
                "from cogment_model_registry import ModelRegistry\n\n"
                f'with ModelRegistry("{endpoint}") as registry:\n    data = registry.retrieve({model!r}, {number})'
            ),
            "curl": " ".join(["curl --fail", *flags, f"--output {file} {shlex.quote(address)}"]),
        },
        notes,
    )
