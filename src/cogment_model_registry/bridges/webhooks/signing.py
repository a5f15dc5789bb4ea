"""Signatures of posts, by https://www.standardwebhooks.com: an HMAC of id, time and body."""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence

from cogment_model_registry.errors import InvalidError, SignatureError

ID_HEADER = "webhook-id"
TIME_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"

TOLERANCE_SECONDS = 300
"""How old a post may be, which limits how long a recorded post can be replayed."""

SECRETS_MAX = 4
"""How many secrets a hook may have at the same time."""

SECRET_PREFIX = "whsec_"  # noqa: S105 # what the standard puts before secrets
_SECRET_MIN_BYTES = 24
_TIME_MAX_DIGITS = 18
_VERSION = "v1"


def key_of(secret: str) -> bytes:
    """Return the key of a secret: the base64 after ``whsec_``, else the bytes of the text.

    Raises:
        InvalidError: It has less than 24 bytes, or is not base64. The message does not contain it.
    """
    text = secret.strip()
    if text.startswith(SECRET_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except (binascii.Error, ValueError):  # the second one for characters outside of ASCII
            raise InvalidError(f"the secret begins with {SECRET_PREFIX}, but is not base64 after that") from None
    else:
        key = text.encode()
    if len(key) < _SECRET_MIN_BYTES:
        raise InvalidError(f"the secret has {len(key)} bytes; it must have {_SECRET_MIN_BYTES} or more")
    return key


def keys_of(secrets: str) -> tuple[bytes, ...]:
    """Return the keys of the secrets of a hook, one on each line.

    Raises:
        InvalidError: There is none, or there are too many, or one breaks a rule of `key_of`.
    """
    lines = [line for line in secrets.splitlines() if line.strip()]
    if len(lines) > SECRETS_MAX:
        raise InvalidError(f"there are {len(lines)} secrets, one on each line; at most {SECRETS_MAX} are allowed")
    return tuple(key_of(line) for line in lines or [""])


def headers_of(keys: Sequence[bytes], message_id: str, seconds: int, body: bytes) -> dict[str, str]:
    """Return the headers that sign a post, with a signature for each key.

    Args:
        keys: The keys.
        message_id: The id of the event, the same in each try.
        seconds: The time of this try, in seconds since the Unix epoch.
        body: The body.
    """
    signatures = [f"{_VERSION},{_signature(key, message_id, str(seconds), body)}" for key in keys]
    return {ID_HEADER: message_id, TIME_HEADER: str(seconds), SIGNATURE_HEADER: " ".join(signatures)}


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now_seconds: float | None = None,
) -> str:
    """Check that a post was signed with a secret, and not long ago; return the id of its event.

    An event may come more than once, with the same id.

    Args:
        secret: The secret of the hook.
        headers: The headers of the post; their names in any case.
        body: Its body, as it was received.
        tolerance_seconds: The largest accepted difference between its time and now.
        now_seconds: The time now; that of the system when None.

    Raises:
        SignatureError: A header is missing or malformed, the time is too far from now, or no signature is valid.
        InvalidError: The secret is too short.
    """
    key = key_of(secret)
    found = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, seconds, signatures = (found[name] for name in (ID_HEADER, TIME_HEADER, SIGNATURE_HEADER))
        age_seconds = (time.time() if now_seconds is None else now_seconds) - float(_whole(seconds))
        wanted = _signature(key, message_id, seconds, body)
        texts = [each.partition(",")[2] for each in signatures.split() if each.startswith(f"{_VERSION},")]
        given = [each.encode() for each in texts]
    except (KeyError, ValueError):  # also for what is not UTF-8, which some servers pass on as surrogates
        raise SignatureError("a header of the post is missing or malformed") from None
    if abs(age_seconds) > tolerance_seconds:
        raise SignatureError(f"the post is {age_seconds:.0f} seconds old")
    # Compare all of them in constant time.
    if not any([hmac.compare_digest(each, wanted.encode()) for each in given]):  # noqa: C419
        raise SignatureError("no signature of the post is valid")
    return message_id


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _TIME_MAX_DIGITS):
        raise ValueError
    return int(text)


def _signature(key: bytes, message_id: str, seconds: str, body: bytes) -> str:
    signed = b".".join([message_id.encode(), seconds.encode(), body])
    return base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
