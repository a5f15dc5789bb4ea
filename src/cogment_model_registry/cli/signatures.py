"""`cogment client model_registry`: keys of signatures in files, who must sign the versions of a model, and who did."""

from typing import TYPE_CHECKING

import click

from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.connection import Flags, common_flags
from cogment_model_registry.cli.groups import Command
from cogment_model_registry.cli.parameters import (
    HELP_WIDTH,
    NumberedCommand,
    WholeNumber,
    model_argument,
    version_argument,
)
from cogment_model_registry.cli.presentation import safe
from cogment_model_registry.cli.retention import show_changed_model
from cogment_model_registry.cli.running import PathType, check_free, translating_errors
from cogment_model_registry.errors import SignatureError, counted, shown

if TYPE_CHECKING:
    from cogment_model_registry import Version
    from cogment_model_registry.client.signatures import Signer
    from cogment_model_registry.records.signatures import PublicKey


def signer_in(path: str) -> "Signer":
    """Return the private key in a file.

    Raises:
        InvalidError: It has none.
        ModelRegistryError: It cannot be read.
    """
    from cogment_model_registry.client.signatures import signer_of  # noqa: PLC0415 # a help page needs no client

    with translating_errors(f"reading {shown(path)}"):
        return signer_of(path)


def keys_in(paths: tuple[str, ...]) -> "list[PublicKey]":
    """Return the public keys in some files.

    Raises:
        InvalidError: One has none.
        ModelRegistryError: One cannot be read.
    """
    from cogment_model_registry.client.signatures import public_keys_of  # noqa: PLC0415 # as above

    keys = []
    for path in paths:
        with translating_errors(f"reading {shown(path)}"):
            keys += public_keys_of(path)
    return keys


@click.command("set_signers", cls=Command, short_help="Set who must sign new versions.", context_settings=HELP_WIDTH)
@model_argument
@click.option(
    "--key",
    "paths",
    metavar="KEYFILE",
    type=PathType(),
    multiple=True,
    help="PEM file with Ed25519 public keys; may be given several times.",
)
@click.option("--none", "is_none", is_flag=True, help="Remove all keys: versions need not be signed.")
@click.option(
    "--expected", metavar="REVISION", type=WholeNumber(1), help="Change it only if the model has this revision now."
)
@common_flags
def set_signers(flags: Flags, model_id: str, *, paths: tuple[str, ...], is_none: bool, expected: int | None) -> None:
    """Replace the keys of which one must have signed each new version of a MODEL.

    From then on the server refuses to create other versions, and to promote other transient ones. Archived versions
    that exist stay.
    """
    if bool(paths) == is_none:
        raise click.UsageError("give either --key or --none")
    keys = keys_in(paths)
    with flags.connected() as registry:
        model = registry.set_signers(model_id, keys, expected=expected)
        count = counted(len(model.signers), "key")
        demand = f"must be signed by one of {count}" if model.signers else "need no signature"
        show_changed_model(flags, model, f"versions of model {safe(model_id)} {demand}")


@click.command("show_signers", cls=Command, short_help="Show who must sign new versions.", context_settings=HELP_WIDTH)
@model_argument
@common_flags
def show_signers(flags: Flags, model_id: str) -> None:
    """Show the keys of which one must have signed each new version of a MODEL, in PEM, as set_signers takes them.

    With --quiet, print only the ids of the keys, one a line.
    """
    with flags.connected() as registry:
        signers = registry.describe_model(model_id).signers
        if flags.as_json:
            presentation.print_json([{"key_id": key.key_id, "public_key": key.pem} for key in signers])
        elif flags.is_quiet:
            presentation.print_lines(key.key_id for key in signers)
        else:
            presentation.print_lines(line for key in signers for line in (key.key_id, *key.pem.splitlines()))


@click.command(
    "show_signature", cls=NumberedCommand, short_help="Show who signed a version.", context_settings=HELP_WIDTH
)
@model_argument
@version_argument
@click.option("--message", metavar="FILE", type=PathType(), help="Write the bytes that are signed to a file.")
@click.option("--output", metavar="FILE", type=PathType(), help="Write the 64 bytes of the signature to a file.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@common_flags
def show_signature(
    flags: Flags, model_id: str, number: int | str, *, message: str | None, output: str | None, force: bool
) -> None:
    """Show the signature of a VERSION of a MODEL: a number, or -1 (the default) for the latest; or an alias.

    It is not checked: retrieve --verify does that. The files are what other tools need to check it; docs/security.md
    has an example. With --quiet, print only the id of the key.
    """
    from cogment_model_registry.records.signatures import message_of  # noqa: PLC0415 # help needs no records

    with flags.connected() as registry:
        version = registry.describe_version(model_id, number)
        signature = version.signature
        if signature is None:
            what = f"version {version.number} of model {safe(model_id)}"
            raise SignatureError(f"{what} has no signature", model_id=model_id, version_number=version.number)
        for path, data in ((message, message_of(version)), (output, signature.value_bytes)):
            if path is not None:
                _write(path, data, force=force)
        if flags.as_json:
            presentation.print_json(_as_json(version))
        elif flags.is_quiet:
            presentation.print_lines([signature.key_id])
        else:
            presentation.print_details({"key_id": signature.key_id, "value": signature.value})


def _as_json(version: "Version") -> dict[str, object]:
    signature = version.signature
    key_id, value = (signature.key_id, signature.value) if signature else (None, None)
    return {"model_id": version.model_id, "number": version.number, "key_id": key_id, "value": value}


def _write(path: str, data: bytes, *, force: bool) -> None:
    from cogment_model_registry.system.replacement import Replacement  # noqa: PLC0415 # as above

    with translating_errors(f"writing {shown(path)}"):
        check_free(path, force=force)
        replacement = Replacement(path)
        try:
            replacement.open().write(data)
            replacement.commit()
        finally:
            replacement.close()


COMMANDS = (set_signers, show_signers, show_signature)
