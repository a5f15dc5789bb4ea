"""Styles, scripts and pictures of the pages: read once, with the hash in the address, so that browsers cache them.

No path of a request is ever used to read a file.
"""

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.web.errors import RefusedError

_HASH_CHARACTERS = 16
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "public, no-cache"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}


@dataclass(frozen=True, slots=True)
class _File:
    data: bytes
    packed: bytes
    tag: str
    media_type: str


class StaticFiles:
    """The files in the folder `static`, in memory."""

    def __init__(self) -> None:
        self._files = {each.name: _read(each.name, each.read_bytes()) for each in _folder() if each.is_file()}

    def address(self, name: str) -> str:
        """Return the path of a file, which changes with its contents.

        Raises:
            KeyError: There is no such file.
        """
        return f"/static/{self._files[name].tag}/{name}"

    async def answer(self, request: Request) -> Response:
        """Answer with a file, by its hash and name, or by its name alone."""
        file = self._files.get(request.path_params["name"])
        if file is None or request.path_params.get("tag", file.tag) != file.tag:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is no such file")
        headers = {
            "cache-control": _FOR_EVER if "tag" in request.path_params else _ASK_AGAIN,
            "etag": f'"{file.tag}"',
            "vary": "accept-encoding",
        }
        if f'"{file.tag}"' in request.headers.get("if-none-match", ""):
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
        data = file.data
        if "gzip" in request.headers.get("accept-encoding", "") and len(file.packed) < len(data):
            data, headers["content-encoding"] = file.packed, "gzip"
        return Response(data, headers=headers, media_type=file.media_type)


def _folder() -> list[Traversable]:
    own = files("cogment_model_registry.web").joinpath("static")
    return [*own.iterdir(), *own.joinpath("vendor").iterdir()]  # the latter are files of other projects


def _read(name: str, data: bytes) -> _File:
    suffix = name[name.rfind(".") :]
    media_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    tag = hashlib.sha256(data).hexdigest()[:_HASH_CHARACTERS]
    return _File(data, gzip.compress(data, mtime=0), tag, media_type)
