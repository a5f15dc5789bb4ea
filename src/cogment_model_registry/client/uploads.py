"""Uploads of versions: what callers give, checked and read."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TypedDict
from uuid import uuid4

from cogment_model_registry.client import sources
from cogment_model_registry.client.arguments import (
    SupportsItem,
    UserData,
    checked_id,
    checked_metrics,
    checked_tags,
    checked_text,
    checked_user_data,
)
from cogment_model_registry.client.attempts import Upload
from cogment_model_registry.client.blocks import Source
from cogment_model_registry.client.calls import Calls
from cogment_model_registry.client.deadlines import Deadline, Timeouts, transfer_deadline
from cogment_model_registry.client.failures import Subject
from cogment_model_registry.client.local import LocalTransfers
from cogment_model_registry.client.progress import Wish, reporting
from cogment_model_registry.client.signatures import SigningKey, signer_of
from cogment_model_registry.client.threads import submit
from cogment_model_registry.errors import (
    DataLossError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    TimedOutError,
    WrongServerError,
    quoted,
)
from cogment_model_registry.records.uploads import UploadHeader
from cogment_model_registry.records.versions import VersionHeader, VersionInfo


class UploadOptions(TypedDict):
    """Arguments of `ModelRegistry.publish` and `ModelRegistry.store`."""

    tags: Mapping[str, str] | None
    metrics: Mapping[str, float | SupportsItem] | None
    alias: str | None
    create: bool
    timeout: float | None
    progress: Wish
    sign: "SigningKey | None"


class Uploads:
    """Publishes and stores versions.

    Args:
        calls: Makes calls.
        timeouts: How long they may take.
        progress: How to report the progress by default.
        create_missing: Creates a model for its first version.
        preparations: Those under way, so that `close` ends them.
    """

    def __init__(
        self,
        calls: Calls,
        timeouts: Timeouts,
        progress: Wish,
        create_missing: Callable[[str, Deadline], Awaitable[None]],
        preparations: set[sources.Preparation],
    ) -> None:
        self._calls = calls
        self._backend = calls.backend
        self._timeouts = timeouts
        self._progress = progress
        self._create_missing = create_missing
        self._preparations = preparations
        self._local = LocalTransfers(calls)

    async def upload(
        self,
        model_id: str,
        data: sources.Data,
        user_data: UserData | None,
        *,
        archived: bool,
        options: UploadOptions,
    ) -> VersionInfo:
        """See `ModelRegistry.publish` and `ModelRegistry.store`."""
        noted = checked_user_data(user_data)
        tags, metrics, alias = _checked_annotations(options)
        create, timeout, progress = options["create"], options["timeout"], options["progress"]
        what = f"{'storing' if archived else 'publishing'} a version of model {quoted(checked_id(model_id))}"
        subject = Subject(what, model_id)
        deadline = self._timeouts.wanted(timeout)
        sign = options["sign"]
        signer = None if sign is None else await self._backend.wait(submit(lambda: signer_of(sign)))
        memory = sources.memory_of(data)
        wish = self._progress if progress is None else progress
        request_id = uuid4().hex

        def declared(source: Source, data_hash: str) -> UploadHeader:
            version = VersionHeader(
                model_id, archived, source.size_bytes, data_hash, user_data=_marked(noted, source.marks)
            )
            return UploadHeader(
                version=version if signer is None else replace(version, signature=signer.sign(version)),
                tags=tags,
                metrics=metrics,
                aliases=alias,
                request_id=request_id,
                create_model=create,
            )

        # What is to be archived goes to a disk, so it is not copied to memory first.
        is_fit = memory is not None and (memory.sealed is not None or not (archived or alias))
        is_local = memory is not None and is_fit and await self._local.may_publish(memory, deadline)
        if is_local and memory is not None and signer is None:
            info = await self._publish_here(declared(memory, ""), memory, what, wish, deadline)
            if info is not None:
                return info
        source, data_hash = await self._prepared(memory or data, subject, deadline)
        if is_local and signer is not None:  # what is signed has the hash
            info = await self._publish_here(declared(source, data_hash), source, what, wish, deadline)
            if info is not None:
                return _signed(info)
        deadline = deadline or transfer_deadline(source.size_bytes)
        try:
            header = declared(source, data_hash)
            with reporting(what, source.size_bytes, wish) as report:
                upload = Upload(self._calls, header, source, subject=subject, deadline=deadline, report=report)
                info = await self._run(upload, deadline)
            source.finish()
        finally:
            source.close()
        if info.data_hash != data_hash or info.data_size_bytes != source.size_bytes:
            raise DataLossError.version(model_id, info.number, "the server stored other bytes than were sent")
        return info if signer is None else _signed(info)

    async def _publish_here(
        self, header: UploadHeader, memory: Source, what: str, wish: Wish, deadline: Deadline | None
    ) -> VersionInfo | None:
        """Publish bytes by handing them over, and close them; None if they are to be sent. The server hashes them."""
        try:
            with reporting(what, memory.size_bytes, wish) as report:
                limit = deadline or transfer_deadline(memory.size_bytes)
                info = await self._local.publish(header, memory, report, limit)
        except BaseException:
            memory.close()
            raise
        if info is not None:
            memory.finish()
            memory.close()
        return info

    async def _run(self, upload: Upload, deadline: Deadline) -> VersionInfo:
        """Make an upload by the call that the server has."""
        if self._calls.connection.has_lifecycle or not upload.is_plain:
            try:
                return await upload.run()
            except WrongServerError as error:
                if error.may_be_done:
                    raise
                upload.require_plain(error)
        header = upload.header
        try:
            info = await upload.run_plain()
        except NotFoundError:
            if not header.create_model:
                raise
            await self._create_missing(header.model_id, deadline)
            info = await upload.run_plain()
        self._calls.connection.has_lifecycle = False
        return info

    async def _prepared(
        self, data: "sources.Data | Source", subject: Subject, deadline: Deadline | None
    ) -> sources.Prepared:
        """Return the data to upload, once its size and hash are known."""
        preparation = sources.Preparation(data)
        if preparation.prepared.done():
            return preparation.prepared.result()
        self._preparations.add(preparation)
        try:
            self._calls.check_open()  # it may have been closed before that
            return await self._backend.wait(preparation.prepared, deadline.left_seconds() if deadline else None)
        except BaseException as error:
            is_late = isinstance(error, TimeoutError) and not preparation.prepared.done()
            preparation.abandon()
            if is_late:
                message = f"{subject.text}: its bytes could not be read in time"
                raise TimedOutError(message, model_id=subject.model_id) from None
            raise
        finally:
            self._preparations.discard(preparation)


def _marked(noted: Mapping[str, str], marks: Mapping[str, str]) -> Mapping[str, str]:
    """Return `user_data` with what it has to say about the bytes.

    Raises:
        InvalidError: It says something else.
    """
    for key, mark in marks.items():
        if noted.get(key, mark) != mark:
            message = f"user_data[{key!r}] is {noted[key]!r}, but a folder is published as {mark!r}"
            raise InvalidError(message)
    return {**noted, **marks} if marks else noted


def _signed(info: VersionInfo) -> VersionInfo:
    """Return a version that was signed.

    Raises:
        ModelRegistryError: The server, of an older release, has created it without its signature.
    """
    if info.signature is None:
        message = (
            f"version {info.number} of model {quoted(info.model_id)} was created without its signature, since the "
            "server is of an older release, which keeps none"
        )
        error = ModelRegistryError(message, model_id=info.model_id, version_number=info.number)
        error.may_be_done = True
        raise error
    return info


def _checked_annotations(options: UploadOptions) -> tuple[dict[str, str], dict[str, float], tuple[str, ...]]:
    """Return tags, metrics and aliases.

    Raises:
        InvalidError: One has a wrong type.
    """
    tags, removed_tags = checked_tags(options["tags"] or {})
    metrics, removed_metrics = checked_metrics(options["metrics"] or {})
    if nothing := [*removed_tags, *removed_metrics]:
        raise InvalidError(f"{nothing[0]!r} is None; a new version has nothing to be removed")
    alias = options["alias"]
    return tags, metrics, () if alias is None else (checked_text("the alias", alias),)
