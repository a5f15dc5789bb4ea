"""Ranges and conditions of downloads: RFC 9110, sections 13 and 14."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus

from cogment_model_registry.records.versions import VersionInfo
from cogment_model_registry.web.errors import RefusedError

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?:([0-9]{1,20})-([0-9]{1,20})?|-([0-9]{1,20}))[ \t]*", re.IGNORECASE)
_NS_PER_SECOND = 10**9


def tag_of(info: VersionInfo) -> str:
    """Return the entity tag of a version: its hash."""
    return f'"{info.data_hash}"'


def modified_of(info: VersionInfo) -> str:
    """Return when a version was created, in the date format of HTTP."""
    return formatdate(info.created_ns // _NS_PER_SECOND, usegmt=True)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer to a request for the bytes of a version.

    Attributes:
        status: OK for all bytes, PARTIAL_CONTENT for some, NOT_MODIFIED for none.
        part: The positions of the bytes.
    """

    status: HTTPStatus
    part: range


def wanted_of(headers: Mapping[str, str], info: VersionInfo) -> Wanted:
    """Return the answer to a request. Several ranges, and malformed ones, are ignored.

    Args:
        headers: The headers of the request, by names in small letters.
        info: The version.

    Raises:
        RefusedError: The range begins past the end, or the version has another hash than the client expects.
    """
    size_bytes = info.data_size_bytes
    everything = range(size_bytes)
    if "if-match" in headers and not _is_listed(info, headers["if-match"]):
        raise RefusedError(HTTPStatus.PRECONDITION_FAILED, "the version has another hash than the one in If-Match")
    if "if-none-match" in headers:
        if _is_listed(info, headers["if-none-match"]):
            return Wanted(HTTPStatus.NOT_MODIFIED, everything)
    elif "if-modified-since" in headers and _is_since(info, headers["if-modified-since"]):
        return Wanted(HTTPStatus.NOT_MODIFIED, everything)
    match = _RANGE.fullmatch(headers.get("range", ""))
    if match is None or ("if-range" in headers and headers["if-range"] not in (tag_of(info), modified_of(info))):
        return Wanted(HTTPStatus.OK, everything)
    first, last, suffix = match.groups()
    if suffix is not None:
        part = everything[max(size_bytes - int(suffix), 0) :] if int(suffix) else everything[:0]
    elif last is not None and int(last) < int(first):
        return Wanted(HTTPStatus.OK, everything)  # which is malformed
    else:
        part = everything[int(first) : None if last is None else int(last) + 1]
    if not part:
        message = f"the range is not within the {size_bytes} bytes of the version"
        headers_of_error = {"Content-Range": f"bytes */{size_bytes}", "ETag": tag_of(info)}
        raise RefusedError(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, message, headers_of_error)
    return Wanted(HTTPStatus.PARTIAL_CONTENT, part)


def _is_listed(info: VersionInfo, tags: str) -> bool:
    return tags.strip() == "*" or tag_of(info) in {each.strip().removeprefix("W/") for each in tags.split(",")}


def _is_since(info: VersionInfo, moment: str) -> bool:
    try:
        return info.created_ns // _NS_PER_SECOND <= parsedate_to_datetime(moment).timestamp()
    except (ValueError, OverflowError):
        return False
