"""The blocking client."""

import os
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from typing import Any, Literal, SupportsIndex, TypeVar, overload

from cogment_model_registry.client.arguments import LATEST, SupportsItem, UserData
from cogment_model_registry.client.blocking_backend import BlockingBackend
from cogment_model_registry.client.blocking_consumers import ConsumerMethods
from cogment_model_registry.client.blocking_lifecycle import LifecycleMethods
from cogment_model_registry.client.blocking_models import ModelMethods
from cogment_model_registry.client.consumers import checked_report
from cogment_model_registry.client.lifecycle import Key
from cogment_model_registry.client.progress import Wish
from cogment_model_registry.client.reporting import AppliedReporter, ThreadReporter
from cogment_model_registry.client.signatures import SigningKey, TrustedKeys
from cogment_model_registry.client.sources import Data
from cogment_model_registry.client.tracking import Latest
from cogment_model_registry.client.uploads import UploadOptions
from cogment_model_registry.client.watching import PATIENCE_SECONDS
from cogment_model_registry.records.consumers import TTL_DEFAULT_SECONDS
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.records.news import Gap, News, Saved
from cogment_model_registry.records.versions import ModelInfo, VersionInfo

_T = TypeVar("_T")


class ModelRegistry(LifecycleMethods, ModelMethods, ConsumerMethods):
    """A client of a model registry: any server of the Cogment Model Registry's API.

    Several threads may use it at the same time. Close it, preferably with ``with``. A forked process needs a client of
    its own: there, calls of this one raise `ClosedError`.

    All calls raise the errors of `cogment_model_registry.errors`: `UnavailableError` when the registry does not answer,
    `TimedOutError` when it takes too long, `ClosedError` when the client is closed, and those that each call names.
    Their messages say what the call was about, followed by the server's own words. Calls that only read, and
    `create_model`, are repeated while the registry is unavailable.

    Args:
        endpoint: Its address: ``grpc://host:port``, ``grpcs://host:port`` for TLS, or ``cogment://discover`` (also with
            ``?name=value&...`` or ``/service?__id=N``) to ask a Directory. Several of the first two, in a list or
            separated by commas, serve the same models, as do all that a Directory returns: calls go to one of them,
            and to another one when it does not answer. Without an endpoint it is that of
            `COGMENT_MODEL_REGISTRY_ENDPOINT`, else what a Directory returns, if `directory_endpoint` or
            `COGMENT_DIRECTORY_ENDPOINT` names one, else ``grpc://localhost:9002``.
        directory_endpoint: The address of the Directory, of the same forms; else `COGMENT_DIRECTORY_ENDPOINT`.
        directory_authentication_token: The token of the registry in the Directory; else that of
            `COGMENT_DIRECTORY_AUTHENTICATION_TOKEN`.
        token: The token that says who calls, made by ``cogment token create`` or by an issuer that the server trusts;
            else that of `token_file`, of `COGMENT_MODEL_REGISTRY_TOKEN`, or of the file that
            `COGMENT_MODEL_REGISTRY_TOKEN_FILE` names. An empty one stands for none.
        token_file: The path of a file with the token, which may be replaced at any time.
        tls_ca: The PEM file of the authorities whose certificates are trusted, of the registry and of the Directory;
            else that of `COGMENT_MODEL_REGISTRY_TLS_CA`; else the public authorities that gRPC knows.
        tls_certificate: The PEM file of the certificate to show, for servers that require one; else that of
            `COGMENT_MODEL_REGISTRY_CLIENT_CERTIFICATE`; else none.
        tls_key: The PEM file of its key; else that of `COGMENT_MODEL_REGISTRY_CLIENT_KEY`.
        timeout: How many seconds a call may take, with all retries; by default 30, for transfers a minute plus a
            second for each MiB.
        retry_seconds: How long a call is repeated while the registry is unavailable: longer than a restart takes.
        cache_dir: A directory for the bytes of retrieved versions, which processes may share; else that of
            `COGMENT_MODEL_REGISTRY_CACHE_DIR`; else nothing is kept.
        cache_max_bytes: How many bytes that directory may have.
        progress: How to report transfers: a function, called with a `Progress`; True for a bar; False for none. By
            default a terminal shows a bar, for transfers of more than a second.

    Raises:
        SettingError: An endpoint or a token is malformed, the file of the token cannot be read, or arguments for TLS
            are given without ``grpcs://``.
        InvalidError: A time is not a number of seconds, another argument is of the wrong type, or a file of a
            certificate or a key cannot be used.
    """

    _shown_as = "ModelRegistry"

    def create_model(
        self,
        model_id: str,
        *,
        user_data: UserData | None = None,
        replace: bool = True,
        timeout: float | None = None,
    ) -> ModelInfo:
        """Create a model, or replace the `user_data` of an existing one; durable on return.

        Args:
            model_id: Its name.
            user_data: Its annotations. Numbers and booleans become text, as JSON writes them.
            replace: Whether to replace all of the `user_data` of an existing model; if not, it stays as it is. A model
                that another client creates at the same moment may be replaced nevertheless.
            timeout: How many seconds it may take.

        Returns:
            The model as it is now.

        Raises:
            InvalidError: The id or the `user_data` breaks a rule of the server.
        """
        return self._run(lambda core: core.create_model(model_id, user_data, timeout, replace=replace))

    def delete_model(self, model_id: str, *, timeout: float | None = None) -> None:
        """Delete a model and all its versions, archived ones too.

        Raises:
            NotFoundError: The model does not exist.
            ModelRegistryError: With `may_be_done` when it is not known whether it was done; then it is not repeated.
        """
        self._run(lambda core: core.delete_model(model_id, timeout))

    def get_model(self, model_id: str, *, timeout: float | None = None) -> ModelInfo:
        """Return a model.

        Raises:
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.get_model(model_id, timeout))

    def list_models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Return all models, ordered by id; the list may miss one if models are created or deleted during the call."""
        return self._run(lambda core: core.list_models(timeout))

    def get_version(
        self,
        model_id: str,
        number: SupportsIndex | str = LATEST,
        *,
        archived: bool = False,
        timeout: float | None = None,
    ) -> VersionInfo:
        """Return a version by its number; -1 is the latest, -2 the one before, and so on.

        Args:
            model_id: The model.
            number: The number; or an alias.
            archived: Whether only archived versions count: -1 is then the latest of these, and so on.
            timeout: How many seconds it may take.

        Raises:
            NotFoundError: The model or the version does not exist, or the version was evicted, or is not archived.
        """
        return self._run(lambda core: core.get_version(model_id, number, timeout, archived=archived))

    def list_versions(
        self, model_id: str, *, archived: bool = False, timeout: float | None = None
    ) -> list[VersionInfo]:
        """Return all versions of a model that can be retrieved, or the archived ones alone, oldest first.

        Raises:
            NotFoundError: The model does not exist.
        """
        return self._run(lambda core: core.list_versions(model_id, timeout, archived=archived))

    def publish(
        self,
        model_id: str,
        data: Data,
        *,
        user_data: UserData | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float | SupportsItem] | None = None,
        alias: str | None = None,
        create: bool = True,
        sign: "SigningKey | None" = None,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Create a transient version: everyone who watches the model is notified, and it may be evicted later.

        The SHA-256 of the bytes goes with them, so the server stores exactly these bytes or none. If the connection or
        the reply is lost, the upload is repeated, which never creates a second version; large uploads go on where they
        stopped, and bytes that the model has already are not sent. Servers of the original get the bytes again only if
        they cannot have received them.

        Args:
            model_id: Its model.
            data: Its bytes: an object with a contiguous buffer (bytes, a NumPy array), the path of a file, an open
                binary file, of which the rest is sent, or `SealedMemory`. They must not change during the call. Or
                the path of a folder, or a `Folder`, whose files become one version: a tar archive, which `user_data`
                names ``folder.tar`` under ``format``.
            user_data: Its annotations. Numbers and booleans become text, as JSON writes them: 1000, 0.5, true.
            tags: Texts by name, which can be changed later.
            metrics: Finite numbers by name, which can be changed later.
            alias: An alias to point to it, in the same step; with one, the version is archived.
            create: Whether the model is created if it does not exist.
            sign: The private key to sign it with: the path of a PEM file, the PEM as bytes, or an `Ed25519PrivateKey`
                of cryptography. The signature is of the model, the bytes and the `user_data`.
            timeout: How many seconds it may take, with the reading of a file.
            progress: How to report it, in place of the client's own way.

        Returns:
            The version, with the number that the server gave it.

        Raises:
            NotFoundError: The model does not exist, and `create` is false.
            TooLargeError: It does not fit into the server's memory.
            ModelRegistryError: With `may_be_done` when it is not known whether the server has it.
            PreconditionError: The model takes only versions that are signed by other keys.
            InvalidError: The id or the `user_data` breaks a rule, the bytes changed during the call, `sign` is no key,
                or the folder has something that no version has, such as links out of it.
            OSError: The file, or that of the key, cannot be read.
        """
        options = UploadOptions(
            tags=tags, metrics=metrics, alias=alias, create=create, sign=sign, timeout=timeout, progress=progress
        )
        return self._run(lambda core: core.uploads.upload(model_id, data, user_data, archived=False, options=options))

    def store(
        self,
        model_id: str,
        data: Data,
        *,
        user_data: UserData | None = None,
        tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float | SupportsItem] | None = None,
        alias: str | None = None,
        create: bool = True,
        sign: "SigningKey | None" = None,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Create an archived version: durable on return, and kept until its model is deleted.

        Arguments, result and errors are those of `publish`; `TooLargeError` says that the disk is full.
        """
        options = UploadOptions(
            tags=tags, metrics=metrics, alias=alias, create=create, sign=sign, timeout=timeout, progress=progress
        )
        return self._run(lambda core: core.uploads.upload(model_id, data, user_data, archived=True, options=options))

    @overload
    def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: Literal[True] = True,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> bytes: ...

    @overload
    def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: Literal[False],
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> memoryview: ...

    def retrieve(
        self,
        model: str | VersionInfo | Version,
        version: Key = LATEST,
        *,
        archived: bool = False,
        copy: bool = True,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> bytes | memoryview:
        """Return the bytes of a version, checked against its hash; they are in memory once, whatever their size.

        Where the server runs on this host as the same user, versions of a MiB and more come from the memory or the file
        of the server, which has checked them.

        Args:
            model: The id of its model; or the version itself.
            version: Its number, -1 for the latest, -2 for the one before; an alias; or the version itself, which saves
                a call.
            archived: Whether only archived versions count: -1 is then the latest of these, and so on.
            copy: Whether the bytes are a copy. If not, they are a read-only view: of the memory or the file that all
                processes of this host share, or of received bytes where there is none. It stays valid as long as
                anything refers to it, also when the version is evicted or deleted.
            verify: Whether this process checks the hash of what the server on this host has checked already; received
                bytes are always checked. Or the public keys of which one must have signed the version, which implies
                that: the path of a PEM file with one or more, the PEM as bytes, an `Ed25519PublicKey` of cryptography,
                or several of these. Then a file of the server is copied, also without `copy`.
            timeout: How many seconds it may take.
            progress: How to report it, in place of the client's own way.

        Raises:
            NotFoundError: The model or the version does not exist, or the version was evicted.
            DataLossError: The bytes received are not those that were published.
            SignatureError: None of the keys has signed the version.
        """
        if copy:
            return self._run(
                lambda core: core.retrievals.retrieve(
                    model, version, timeout, progress, archived=archived, verify=verify
                )
            )
        return self._run(
            lambda core: core.retrievals.view(model, version, timeout, progress, archived=archived, verify=verify)
        )

    def download(
        self,
        model: str | VersionInfo | Version,
        path: str | os.PathLike[str],
        *,
        version: Key = LATEST,
        archived: bool = False,
        resume: bool = False,
        unpack: bool | None = None,
        verify: "bool | TrustedKeys" = False,
        timeout: float | None = None,
        progress: Wish = None,
    ) -> VersionInfo:
        """Write the bytes of a version to a file, or unpack them: whole, checked and durable, or not at all.

        They go to a temporary file in the same directory, which then replaces an existing file, and keeps its
        permissions; a symbolic link stays one.

        With `resume`, what was received stays when the download is interrupted, and the next one with `resume` goes on
        with it, in this process or in another one: at most 16 MiB are received again. It is next to the file, in
        ``FILE.cogment-partial`` and ``FILE.cogment-partial.journal``, until it succeeds. If the name, such as -1 or an
        alias, stands for another version by then, that is downloaded from its beginning, and a warning is logged.

        A version that was a folder becomes one again if the path ends with a slash, or is an existing folder. It is
        unpacked to a temporary folder in the same directory, which is then renamed. The folder must not exist, or be
        empty. With `resume`, ``FOLDER.tar.cogment-partial`` has what was received.

        Args:
            model: As for `retrieve`.
            path: The file, or the folder.
            version: As for `retrieve`.
            archived: As for `retrieve`.
            resume: Whether to continue an interrupted download, and to keep what was received if this one is.
                Servers of the original cannot send parts, so nothing of theirs is kept.
            unpack: Whether the path is that of a folder; by default the path says so.
            verify: As for `retrieve`.
            timeout: How many seconds it may take.
            progress: How to report it, in place of the client's own way.

        Returns:
            The version.

        Raises:
            NotFoundError: The model or the version does not exist, or the version was evicted.
            DataLossError: The bytes received are not those that were published.
            SignatureError: None of the keys has signed the version; the file stays as it was.
            InvalidError: The version is not a folder, or its archive has something that no folder may have.
            OSError: The file cannot be written, or the path is not a regular file. `BlockingIOError` if another
                download with `resume` is writing to it. `FileExistsError` if the folder is not empty.
        """
        return self._run(
            lambda core: core.retrievals.download(
                model, path, version, timeout, progress, archived=archived, resume=resume, verify=verify, unpack=unpack
            )
        )

    @overload
    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: Literal[False] = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Generator[VersionInfo, None, None]: ...

    @overload
    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: Literal[True],
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Generator[Version | Gap, None, None]: ...

    def watch(
        self,
        model_id: str,
        *,
        after: int = 0,
        archived: bool = False,
        all: bool = False,  # noqa: A002 # what people say
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Generator[VersionInfo, None, None] | Generator[Version | Gap, None, None]:
        """Yield the latest version of a model, then newer ones as they appear, without end.

        Numbers only grow. A slow reader misses versions in between, never the latest. A lost connection is restored.

        Args:
            model_id: The model.
            after: The number of the version that the caller has; only newer ones are yielded, also of a model that
                was created again since then.
            archived: Whether only archived versions count.
            all: Whether to yield every version, or a `Gap` for those that are gone. It needs ModelLifecycle.
            patience_seconds: How long the registry may be unavailable once it was reached.

        Raises:
            NotFoundError: The model does not exist, was deleted, or is known to have been created again.
            UnavailableError: The registry cannot be reached. `TimedOutError` if it does not answer.
        """
        # It has its own backend, since an interruption ends everything that a backend has under way.
        backend = BlockingBackend(within=self._backend)
        core = self._core.on(backend)
        if all:
            return self._watched(core.watch_every(model_id, after, patience_seconds, archived=archived), backend)
        return self._watched(core.watch(model_id, after, patience_seconds, archived=archived), backend)

    def follow(
        self,
        *model_ids: str,
        resume_token: str = "",
        filter: str = "",  # noqa: A002 # what the server calls it
        consumers: bool = False,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Generator[News, None, None]:
        """Yield what exists, then all news of some models or of all, each with the token that resumes after it.

        Events are versions, models that exist or have changed, `Gap`, `Gone`, `CaughtUp` once all that existed has
        come, and `Consumer`; docs/watching.md describes them. Nothing is left out over lost connections. It needs
        ModelLifecycle.

        Args:
            model_ids: The models, which need not exist yet; none for all models.
            resume_token: That of the last news that was handled, with the same models, filter and `consumers`; empty
                for the beginning.
            filter: Which versions are wanted, as for `find_versions`.
            consumers: Whether what consumers report is news. It comes again after a connection was lost.
            patience_seconds: How long the registry may be unavailable once it was reached.

        Raises:
            InvalidError: The token or the filter is malformed.
            UnavailableError: The registry cannot be reached. `TimedOutError` if it does not answer.
        """
        backend = BlockingBackend(within=self._backend)
        core = self._core.on(backend)
        news = core.follow(model_ids, resume_token, filter, patience_seconds, consumers=consumers)
        return self._watched(news, backend)

    def mirror(
        self,
        directory: str | os.PathLike[str],
        *model_ids: str,
        after: int = 0,
        archived: bool = False,
        verify: "TrustedKeys | None" = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> Generator[Saved | Gap, None, None]:
        """Write each version of some models to a file of its own, and yield it once the file is there, without end.

        The files are ``DIRECTORY/MODEL/NUMBER.bin``: the number has six digits or more, and the id of the model is as
        it is if it has only letters and digits of ASCII, ``-``, ``_`` and dots inside; docs/watching.md has the rest.
        A file is whole and durable under its name, or absent. Versions whose files are there are not fetched again,
        and no file is removed. It needs ModelLifecycle.

        Args:
            directory: The directory; created if it does not exist.
            model_ids: The models, which need not exist yet; none for all models. One that is deleted and created again
                is another one, whose versions replace the files with their numbers.
            after: The number of the version that the caller has; only newer ones are written.
            archived: Whether only archived versions count.
            verify: The public keys of which one must have signed each version, as for `retrieve`; None for no check.
            patience_seconds: How long the registry may be unavailable once it was reached.

        Raises:
            SignatureError: None of the keys has signed a version, of which no file is written.
            UnavailableError: The registry cannot be reached. `TimedOutError` if it does not answer.
            OSError: A file cannot be written.
        """
        backend = BlockingBackend(within=self._backend)
        core = self._core.on(backend)
        saved = core.mirror(directory, model_ids, after, patience_seconds, archived=archived, verify=verify)
        return self._watched(saved, backend)

    def _watched(self, versions: AsyncGenerator[_T, None], backend: BlockingBackend) -> Generator[_T, None, None]:
        try:
            while True:
                self._core.calls.check_open()
                version = self._run_here(lambda: anext(versions, None), backend.stop)
                if version is None:
                    return
                yield version
        finally:
            if self._core.calls.connection.is_usable():
                self._run_here(versions.aclose, backend.stop)

    @overload
    def track(
        self,
        model_id: str,
        *,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> Latest[bytes]: ...

    @overload
    def track(
        self,
        model_id: str,
        *,
        decode: Callable[[bytes], _T],
        copy: Literal[True] = True,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> Latest[_T]: ...

    @overload
    def track(
        self,
        model_id: str,
        *,
        decode: Callable[[memoryview], _T],
        copy: Literal[False],
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> Latest[_T]: ...

    def track(
        self,
        model_id: str,
        *,
        decode: Callable[..., Any] = bytes,
        copy: bool = True,
        archived: bool = False,
        alias: str | None = None,
        verify: "TrustedKeys | None" = None,
        consumer: str | None = None,
        labels: Mapping[str, str] | None = None,
        ttl_seconds: int = TTL_DEFAULT_SECONDS,
    ) -> Latest[Any]:
        """Return a context manager with the latest version of a model, which a thread keeps up to date.

        The model need not exist yet, and may be deleted and created again. Errors are in `Latest.error`. Enter it using
        ``with``. A server with ModelLifecycle sends the bytes of small versions along.

        Args:
            model_id: The model.
            decode: Turns the bytes of a version into its value, on that thread.
            copy: Whether `decode` gets bytes. If not, it gets a view, as `retrieve` returns it, but of the bytes of
                large versions one that can be written to: what it writes to becomes a copy of this process, page by
                page.
            archived: Whether only archived versions count.
            alias: Follow the version that this alias points to, instead of the latest one.
            verify: The public keys of which one must have signed each version, as for `retrieve`; None for no check.
                The value stays when a version comes that none of them has signed, and `Latest.error` says so.
            consumer: The name of this process, under which another thread reports which version it runs: the one that
                `decode` has returned a value for. None for no reports. Servers of the original get none.
            labels: What the reports say about this process, such as its host.
            ttl_seconds: How long a report counts. It is repeated three times as often.
        """
        reporter = None
        if consumer is not None:
            report = checked_report(model_id, consumer, state="loading", labels=labels, ttl_seconds=ttl_seconds)
            reporter = ThreadReporter(report, self._core.calls, self._backend)
        return self._latest(model_id, decode, reporter, copy=copy, archived=archived, alias=alias, verify=verify)

    def _latest(
        self,
        model_id: str,
        decode: Callable[..., _T],
        reporter: ThreadReporter | None,
        *,
        copy: bool,
        archived: bool,
        alias: str | None,
        verify: "TrustedKeys | None",
    ) -> Latest[_T]:
        backend = BlockingBackend(within=self._backend)
        return Latest(
            self._core,
            backend,
            model_id,
            decode,
            copy=copy,
            archived=archived,
            alias=alias,
            verify=verify,
            reporter=reporter,
        )

    def status(self, *, timeout: float | None = None) -> dict[str, str]:
        """Return the state of the server, by name; `overall_load` is from 0 to 255."""
        return self._run(lambda core: core.status(timeout))

    def server_versions(self, *, timeout: float | None = None) -> dict[str, str]:
        """Return the versions of the server and of its platform, by name."""
        return self._run(lambda core: core.server_versions(timeout))


def track_applied(
    registry: ModelRegistry,
    model_id: str,
    decode: Callable[[memoryview], _T],
    *,
    archived: bool = False,
    alias: str | None = None,
    verify: "TrustedKeys | None" = None,
    consumer: str | None = None,
    labels: Mapping[str, str] | None = None,
    ttl_seconds: int = TTL_DEFAULT_SECONDS,
) -> tuple[Latest[_T], AppliedReporter | None]:
    """Return what `ModelRegistry.track` returns without a copy, and a reporter of what the caller applies.

    Args:
        registry: The client.
        model_id: The model.
        decode: Turns the bytes of a version into what the caller applies.
        archived: As for `ModelRegistry.track`.
        alias: As for `ModelRegistry.track`.
        verify: As for `ModelRegistry.track`.
        consumer: As for `ModelRegistry.track`.
        labels: As for `ModelRegistry.track`.
        ttl_seconds: As for `ModelRegistry.track`.
    """
    reporter = None
    if consumer is not None:
        report = checked_report(model_id, consumer, state="loading", labels=labels, ttl_seconds=ttl_seconds)
        reporter = AppliedReporter(report, registry._core.calls, registry._backend)  # noqa: SLF001 # it is one of us
    latest = registry._latest(  # noqa: SLF001 # as above
        model_id, decode, reporter, copy=False, archived=archived, alias=alias, verify=verify
    )
    return latest, reporter


def retrieve_writable(
    registry: ModelRegistry,
    version: VersionInfo,
    *,
    verify: "bool | TrustedKeys" = False,
    timeout: float | None,
    progress: Wish,
) -> memoryview:
    """Return the bytes of a version as `ModelRegistry.retrieve` does without a copy, in memory that may be written to.

    What is written changes them for this process alone.
    """
    return registry._run(  # noqa: SLF001 # it is one of us
        lambda core: core.retrievals.view(version, version, timeout, progress, verify=verify, is_writable=True)
    )
