"""`cogment client model_registry`: calls to any model registry, by hand and in scripts.

The original's command line has no such commands; they have the names of the library's calls.
"""

import contextlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cogment_model_registry.cli import (
    consumers,
    history,
    lifecycle,
    presentation,
    retention,
    signatures,
    watching,
)
from cogment_model_registry.cli.connection import Flags, common_flags
from cogment_model_registry.cli.groups import Group
from cogment_model_registry.cli.lifecycle import lacks_lifecycle
from cogment_model_registry.cli.parameters import (
    HELP_WIDTH,
    Entry,
    ModelId,
    NumberedCommand,
    archived_flag,
    joined_user_data,
    metrics_of,
    metrics_option,
    model_argument,
    sign_option,
    tags_option,
    verify_option,
    version_argument,
)
from cogment_model_registry.cli.progress import transfer_bar
from cogment_model_registry.cli.running import (
    PathType,
    check_free,
    is_folder,
    is_terminal,
    open_standard_input,
    open_standard_output,
    translating_errors,
)
from cogment_model_registry.cli.signatures import keys_in, signer_in
from cogment_model_registry.errors import ModelRegistryError, NotFoundError, counted, shown
from cogment_model_registry.records.documents import model_info_as_json, version_as_json
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

if TYPE_CHECKING:
    from cogment_model_registry import ModelRegistry, ModelSummary
    from cogment_model_registry.records.signatures import PublicKey

_T = TypeVar("_T")
_U = TypeVar("_U")

_SHOWN_CHARACTERS = 200
"""How much of the `user_data` that it replaces a command shows."""

_CALLS_AT_ONCE = 16
"""How many calls a command makes at once that needs one for each model."""


@click.group("model_registry", cls=Group, short_help="Publish, store, retrieve and watch versions.")
def model_registry() -> None:
    """Use a model registry: create and list models; publish, store, retrieve and watch versions.

    Exits with 0 for success, 1 if a call or a file failed, 2 for a wrong flag, 3 if the model or version does not
    exist, and 4 if the registry is unavailable or took too long. One line on standard error says why.
    """


for _part in (lifecycle, retention, signatures, consumers, watching, history):
    for _command in _part.COMMANDS:
        model_registry.add_command(_command)

_user_data = click.option(
    "--user_data",
    metavar="KEY=VALUE",
    type=Entry(),
    callback=joined_user_data,
    multiple=True,
    help="Entry of its user_data; may be given several times.",
)


@model_registry.command(
    "list_models",
    short_help="List all models with latest version, count, age and aliases.",
    context_settings=HELP_WIDTH,
)
@common_flags
def list_models(flags: Flags) -> None:
    """List all models, with the latest version of each, the count of its versions, archived bytes, and aliases.

    With --quiet, print only the ids, one per line, which takes one call; otherwise there is one more for each model.
    """
    with flags.connected() as registry:
        if flags.is_quiet and not flags.as_json:
            presentation.print_lines(presentation.safe(model.model_id) for model in registry.list_models())
            return
        models = _listed(registry)
        if flags.as_json:
            presentation.print_json([presentation.listed_as_json(model) for model in models])
        else:
            presentation.print_models(models)


def _listed(registry: "ModelRegistry", model_id: str | None = None) -> list[presentation.ListedModel]:
    """Return all models or one, with what they have."""
    try:
        summaries = registry.find_models() if model_id is None else [registry.describe_model(model_id)]
    except ModelRegistryError as error:
        if not lacks_lifecycle(error):
            raise
        models = registry.list_models() if model_id is None else [registry.get_model(model_id)]
        return for_each(
            models, lambda model: presentation.ListedModel.of(model, registry.list_versions(model.model_id))
        )

    def with_latest(summary: "ModelSummary") -> presentation.ListedModel:
        latest = registry.get_version(summary.info.model_id) if summary.versions else None
        return presentation.ListedModel(summary, latest)

    return for_each(summaries, with_latest)


def for_each(models: Sequence[_T], describe: Callable[[_T], _U]) -> list[_U]:
    """Return what is to be said about models; those that are deleted in the meantime are left out."""
    from cogment_model_registry.client.threads import do_apart  # noqa: PLC0415 # not needed for --help

    def described(model: _T) -> _U | None:
        try:
            return describe(model)
        except NotFoundError:
            return None

    def describe_all() -> list[_U]:
        with ThreadPoolExecutor(_CALLS_AT_ONCE) as pool:
            return [each for each in pool.map(described, models) if each is not None]

    # Not on the main thread, where an interruption may leave a lock of the pool locked.
    return do_apart(describe_all)


@model_registry.command(
    "show_model", short_help="Show a model: versions, bytes, aliases, user_data.", context_settings=HELP_WIDTH
)
@model_argument
@common_flags
def show_model(flags: Flags, model_id: str) -> None:
    """Show a MODEL: its user_data, the number of its versions, archived bytes, and aliases."""
    with flags.connected() as registry:
        models = _listed(registry, model_id)
        if not models:
            raise NotFoundError.model(model_id)
        if flags.as_json:
            presentation.print_json(presentation.listed_as_json(models[0]))
        elif flags.is_quiet:
            presentation.print_lines([presentation.safe(model_id)])
        else:
            presentation.print_details(presentation.model_details(models[0]))


@model_registry.command(
    "create_model", short_help="Create a model, or replace its user_data.", context_settings=HELP_WIDTH
)
@model_argument
@_user_data
@click.option(
    "--replace/--no_replace",
    " /--no-replace",
    default=True,
    show_default=True,
    help="Whether to replace all of the user_data of an existing model. Otherwise it stays as it is.",
)
@common_flags
def create_model(flags: Flags, model_id: str, user_data: dict[str, str], *, replace: bool) -> None:
    """Create a MODEL. The user_data given replaces that of an existing one."""
    with flags.connected() as registry:
        says = not flags.is_quiet and not flags.as_json
        before = _existing(registry, model_id) if says else None
        model = registry.create_model(model_id, user_data=user_data, replace=replace)
        if flags.as_json:
            presentation.print_json(model_info_as_json(model))
        flags.say(_created_text(before, replaced=replace) if before else f"created model {presentation.safe(model_id)}")


def _created_text(before: ModelInfo, *, replaced: bool) -> str:
    """Return what became of a model that existed."""
    name = presentation.safe(before.model_id)
    if not replaced:
        return f"model {name} exists, and stays as it is"
    user_data = presentation.user_data_text(before.user_data) or "empty"
    cut = "" if len(user_data) <= _SHOWN_CHARACTERS else "…"
    return f"replaced the user_data of model {name}, which was {user_data[:_SHOWN_CHARACTERS]}{cut}"


@model_registry.command("delete_model", short_help="Delete a model with all its versions.", context_settings=HELP_WIDTH)
@model_argument
@click.option("--yes", is_flag=True, help="Delete without asking.")
@common_flags
def delete_model(flags: Flags, model_id: str, *, yes: bool) -> None:
    """Delete a MODEL with all its versions, including archived ones, after asking."""
    if not yes and not is_terminal(sys.stdin):
        raise click.UsageError("standard input is not a terminal, so nobody can confirm the deletion: give --yes")
    with flags.connected() as registry:
        if not yes:
            _ask_whether_to_delete(model_id, registry.list_versions(model_id))
        registry.delete_model(model_id)
        if flags.as_json:
            presentation.print_json({"model_id": model_id})
        flags.say(f"deleted model {presentation.safe(model_id)}")


def _ask_whether_to_delete(model_id: str, versions: Sequence[VersionInfo]) -> None:
    archived = sum(version.archived for version in versions)
    size = size_text(sum(version.data_size_bytes for version in versions))
    question = (
        f"Delete model {presentation.safe(model_id)} with {counted(len(versions), 'version')}, {archived} of them "
        f"archived, and {size} of data?"
    )
    presentation.confirm(question, otherwise="nothing was deleted")


@model_registry.command(
    "show_version",
    cls=NumberedCommand,
    short_help="Show a version: time, size, hash, user_data.",
    context_settings=HELP_WIDTH,
)
@model_argument
@version_argument
@archived_flag
@common_flags
def show_version(flags: Flags, model_id: str, number: int | str, *, archived: bool) -> None:
    """Show a VERSION of a MODEL: a number, or -1 (the default) for the latest, -2 for the one before it; or an alias.

    With --archived, -1 is the latest archived version, and so on. With --quiet, print only its number.
    """
    with flags.connected() as registry:
        _show(flags, registry.get_version(model_id, number, archived=archived))


def _show(flags: Flags, version: VersionInfo) -> None:
    if flags.as_json:
        presentation.print_json(version_as_json(version))
    elif flags.is_quiet:
        presentation.print_lines([str(version.number)])
    else:
        presentation.print_details(presentation.version_details(version))


def _upload_command(name: str, short: str, doc: str, *, archived: bool) -> None:
    """Add the command that creates versions of one tier; the two commands differ only in that."""

    @model_registry.command(name, short_help=short, help=doc, context_settings=HELP_WIDTH)
    @model_argument
    @click.argument("file", type=PathType(allow_dash=True))
    @_user_data
    @tags_option
    @metrics_option
    @click.option(
        "--alias", metavar="ALIAS", type=ModelId(), help="Alias to point to the version, which is archived then."
    )
    @click.option(
        "--create/--no_create",
        " /--no-create",
        default=True,
        show_default=True,
        help="Whether to create the model if it does not exist.",
    )
    @sign_option
    @common_flags
    def upload(
        flags: Flags,
        model_id: str,
        file: str,
        user_data: dict[str, str],
        *,
        tags: tuple[tuple[str, str], ...],
        metrics: tuple[tuple[str, str], ...],
        alias: str | None,
        create: bool,
        sign: str | None,
    ) -> None:
        options: dict[str, Any] = {"tags": dict(tags), "metrics": metrics_of(metrics), "alias": alias, "create": create}
        with contextlib.ExitStack() as stack:
            registry = stack.enter_context(flags.connected())
            if sign is not None:
                options["sign"] = signer_in(sign)
            with translating_errors(f"reading {'standard input' if file == '-' else shown(file)}"):
                source = stack.enter_context(open_standard_input()) if file == "-" else file
                call = registry.store if archived else registry.publish
                with transfer_bar("storing" if archived else "publishing", is_quiet=flags.is_quiet) as progress:
                    version = call(model_id, source, user_data=user_data, progress=progress, **options)
            _show_upload(flags, version)


def _show_upload(flags: Flags, version: VersionInfo) -> None:
    if flags.as_json or flags.is_quiet:
        _show(flags, version)
        return
    size = size_text(version.data_size_bytes)
    done = "stored" if version.archived else "published"
    flags.say(f"{done} version {version.number} of model {presentation.safe(version.model_id)}: {size}")


_upload_command(
    "publish",
    "Publish a file or a folder as a transient version.",
    "Publish a FILE as a transient version of a MODEL; - is standard input, and a folder becomes one version.\n\n"
    "Watchers of the model are notified. The version may be evicted later. With --quiet, print only its number.",
    archived=False,
)
_upload_command(
    "store",
    "Store a file or a folder as an archived version.",
    "Store a FILE as an archived version of a MODEL; - is standard input, and a folder becomes one version.\n\n"
    "The version is durable when the command ends, and kept until its model is deleted. With --quiet, print only its "
    "number.",
    archived=True,
)


@model_registry.command(
    "retrieve",
    cls=NumberedCommand,
    short_help="Write the bytes of a version to a file, a folder or a pipe.",
    context_settings=HELP_WIDTH,
)
@model_argument
@version_argument
@click.option(
    "--output",
    default="-",
    metavar="FILE",
    type=PathType(allow_dash=True),
    help="File to write; - (the default) is standard output. With a slash at its end, a folder to unpack to.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option(
    "--resume", is_flag=True, help="Go on with an interrupted retrieval; keep what was received if this one is."
)
@archived_flag
@verify_option
@common_flags
def retrieve(
    flags: Flags,
    model_id: str,
    number: int | str,
    *,
    output: str,
    force: bool,
    resume: bool,
    archived: bool,
    verify: tuple[str, ...],
) -> None:
    """Write the bytes of a VERSION of a MODEL: a number, or -1 (the default) for the latest; or an alias.

    With --archived, -1 is the latest archived version, and so on. The bytes are checked against their hash first. A
    file is written completely and durably, or not at all. For standard output, the bytes are held in memory until they
    have been checked.

    A version that was a folder is unpacked if FILE ends with a slash, or is an empty folder.

    With --resume, what was received stays in FILE.cogment-partial and FILE.cogment-partial.journal when the command is
    interrupted, and the next one with --resume continues it. If -1 or an alias stands for another version by then,
    that is retrieved from its beginning, and a line on standard error says so.

    With --verify, nothing is written unless one of the keys has signed the version.
    """
    keys = keys_in(verify) or False
    if output == "-":
        if resume:
            raise click.UsageError("standard output keeps nothing that could be continued: give --output")
        if is_terminal(sys.stdout):
            raise click.UsageError(
                "a version cannot be written to a terminal: give --output, or redirect standard output"
            )
        if flags.as_json:
            raise click.UsageError("standard output cannot have both the version and JSON: give --output")
        _retrieve_to_standard_output(flags, model_id, number, archived=archived, verify=keys)
        return
    with flags.connected() as registry, translating_errors(f"writing {shown(output)}"):
        if not is_folder(output):
            check_free(output, force=force)
        elif force:
            raise click.UsageError(f"--force replaces a file, and {shown(output)} is a folder: name a new one")
        with transfer_bar("retrieving", is_quiet=flags.is_quiet) as progress:
            version = registry.download(
                model_id, output, version=number, archived=archived, resume=resume, verify=keys, progress=progress
            )
        if flags.as_json:
            _show(flags, version)
        size = size_text(version.data_size_bytes)
        flags.say(f"retrieved version {version.number} of model {presentation.safe(model_id)}: {size}")


def _retrieve_to_standard_output(
    flags: Flags, model_id: str, number: int | str, *, archived: bool, verify: "list[PublicKey] | bool"
) -> None:
    with flags.connected() as registry:
        with transfer_bar("retrieving", is_quiet=flags.is_quiet) as progress:
            try:
                data = registry.retrieve(model_id, number, archived=archived, verify=verify, progress=progress)
            except MemoryError:
                raise ModelRegistryError("the version does not fit into memory: give --output") from None
        with translating_errors("writing standard output"), open_standard_output() as file:
            file.write(data)


@model_registry.command(
    "status", short_help="Show the state of the registry, and its software.", context_settings=HELP_WIDTH
)
@common_flags
def status(flags: Flags) -> None:
    """Show the state of the registry, and the versions of its software. With --quiet, print nothing."""
    with flags.connected() as registry:
        # A map on the wire has no order; what is printed has one.
        versions, statuses = registry.server_versions(), dict(sorted(registry.status().items()))
        if flags.as_json:
            presentation.print_json({"server_versions": versions, "status": statuses})
        elif not flags.is_quiet:
            safe = presentation.safe
            presentation.print_details({safe(name): safe(value) for name, value in {**versions, **statuses}.items()})


def _existing(registry: "ModelRegistry", model_id: str) -> ModelInfo | None:
    try:
        return registry.get_model(model_id)
    except NotFoundError:
        return None
