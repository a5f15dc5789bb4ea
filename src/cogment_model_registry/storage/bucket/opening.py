"""Object stores by their addresses. Credentials and endpoints come from the usual environment variables of each store.

    s3://bucket/prefix         AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL, ...
    gs://bucket/prefix         GOOGLE_SERVICE_ACCOUNT, GOOGLE_APPLICATION_CREDENTIALS, ...
    az://container/prefix      AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY, ...
    file:///path               a local path

The library reads the variables itself (https://docs.rs/object_store).
"""

import os
from datetime import timedelta
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from cogment_model_registry.errors import StartError
from cogment_model_registry.storage.bucket.objects import Objects, Observe
from cogment_model_registry.storage.bucket.translation import reason_of

_REQUEST_SECONDS = 30.0
"""A part of a version must go through in this time: at more than 0.3 MB/s."""

_SMALL_SECONDS = 10.0
"""The same for small objects. Otherwise, after a network was cut for some seconds, TCP would send what was under way
again only after as long again."""

_RETRY_TIMEOUT = timedelta(seconds=30)
_RETRIES = 5


def open_objects(
    url: str, observe: Observe = lambda _operation, _seconds: None, *, small_seconds: float = _SMALL_SECONDS
) -> Objects:
    """Return the objects of the archive at an address; nothing is sent yet.

    Args:
        url: The address, with the prefix of the archive: see the top of the module.
        observe: Called after each finished operation, with its name and the seconds that it took.
        small_seconds: How long a request may take that moves little.

    Raises:
        StartError: The address or the environment is not complete.
    """
    return Objects(_open_store(url, _REQUEST_SECONDS), url, observe, _open_store(url, small_seconds))


def _open_store(url: str, request_seconds: float) -> ObjectStore:
    """Return the object store at an address.

    Args:
        url: The address.
        request_seconds: How long a request may take.

    Raises:
        StartError: The address or the environment is not complete.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "file":
            return LocalStore(unquote(parts.path), mkdir=True)
        allow_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
        timeout = timedelta(seconds=request_seconds)
        return from_url(  # type: ignore[call-overload,no-any-return,unused-ignore] # the options fit all of these stores
            url,
            client_options={"timeout": timeout, **({"allow_http": True} if allow_http else {})},
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        )
    except (BaseError, OSError, ValueError) as error:
        raise StartError(f"archive {url} cannot be used: {reason_of(error)}") from error
