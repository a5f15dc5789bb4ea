"""Pages rendered on the server by Jinja2, which escapes all values."""

from http import HTTPStatus
from typing import Any

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from cogment_model_registry._version import __version__
from cogment_model_registry.web.static_files import StaticFiles


class Templates:
    """The templates in the folder `templates`, and the static files that they name.

    Attributes:
        environment: Jinja2's, for filters and globals of the pages.
        static: The static files.
    """

    def __init__(self) -> None:
        self.static = StaticFiles()
        self.environment = jinja2.Environment(
            loader=jinja2.PackageLoader("cogment_model_registry.web"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self.environment.globals.update(static=self.static.address, release=__version__)

    def page(self, request: Request, name: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> Response:
        """Return a page.

        Args:
            request: The request; the template has it as `request`, and its caller as `caller`.
            name: The template.
            status: The status.
            values: The values that the template shows.
        """
        text = self.environment.get_template(name).render(request=request, caller=request.scope["caller"], **values)
        return HTMLResponse(text, status.value)


def wants_page(request: Request) -> bool:
    """Return whether a browser requests a page, and not a program data."""
    return not request.url.path.startswith("/api/") and "text/html" in request.headers.get("accept", "")
