"""Uploads of the second service: their headers, and what makes them repeatable."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256

from cogment_model_registry.errors import InvalidError, quoted
from cogment_model_registry.records.versions import VersionHeader

REQUEST_ID_MAX_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class UploadHeader:
    """The declaration of a version with what belongs to it, which comes before its bytes.

    Attributes:
        version: The version.
        tags: Its tags.
        metrics: Its metrics.
        aliases: Aliases to point to it; with any, the version is archived.
        request_id: The same id with the same header is the same upload; empty for an upload that is never repeated.
        create_model: Whether to create the model if it does not exist.
    """

    version: VersionHeader
    tags: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    request_id: str = ""
    create_model: bool = False

    @property
    def model_id(self) -> str:
        """The model that gets the version."""
        return self.version.model_id

    @property
    def archived(self) -> bool:
        """Whether the version will be archived."""
        return self.version.archived

    @property
    def data_size_bytes(self) -> int:
        """How many bytes the version will have."""
        return self.version.data_size_bytes

    def digest(self) -> str:
        """Return a text that differs between two different headers, except for their ids."""
        version = self.version
        content = [
            [version.model_id, version.archived, version.data_size_bytes, version.data_hash, version.created_ns],
            sorted(version.user_data.items()),
            sorted(self.tags.items()),
            sorted(self.metrics.items()),
            sorted(self.aliases),
            self.create_model,
        ]
        if version.signature is not None:  # so that the digests of other headers stay what they were
            content.append(str(version.signature))
        return sha256(json.dumps(content).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class UploadRequest:
    """An upload as a catalog knows it.

    Attributes:
        request_id: Its id.
        digest: The digest of its header.
        aliases: Aliases to point to its version in the same step.
    """

    request_id: str
    digest: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FinishedUpload:
    """The outcome of an upload.

    Attributes:
        digest: The digest of its header.
        model_id: The model.
        number: The number that its version got, though the version may be gone; 0 if the model is.
    """

    digest: str
    model_id: str
    number: int


def check_request_id(request_id: str, model_id: str) -> None:
    """Refuse an id with more than 64 characters, or with others than the printable ones of ASCII.

    Raises:
        InvalidError: It breaks the rule.
    """
    if len(request_id) > REQUEST_ID_MAX_CHARACTERS:
        problem = f"has {len(request_id)} characters; at most {REQUEST_ID_MAX_CHARACTERS} are allowed"
    elif not (request_id.isascii() and request_id.isprintable() and " " not in request_id):
        problem = "must have printable characters of ASCII only, and no spaces"
    else:
        return
    raise InvalidError(f"request_id {quoted(request_id)} {problem}", model_id=model_id)
