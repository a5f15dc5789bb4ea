"""Changes by the pages: each has a page that says what it will do, and does it when its form is sent.

Forms have the revision from which the page was made, so that nobody overwrites a change that somebody else made in the
meantime. The answer says what the change did, with a link that undoes it where that is possible.
"""

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import (
    ConflictError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
)
from cogment_model_registry.web import errors
from cogment_model_registry.web.forms import read_form
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.state import state_of


@dataclass(frozen=True, slots=True)
class Plan:
    """What a change will do, for its page.

    Attributes:
        title: What it does, as a heading.
        effects: What it will do, a sentence each.
        button: What the button says.
        back: The page to go back to without a change.
        fields: Hidden fields of the form, such as the revision.
        inputs: The name of the template with the fields to fill in; empty for none.
        values: What that template shows.
        warnings: What would be lost, a sentence each.
        is_dangerous: Whether something is lost for good.
        refusal: Why it cannot be done; empty if it can.
    """

    title: str
    effects: Sequence[str]
    button: str
    back: str
    fields: Mapping[str, str] = field(default_factory=dict)
    inputs: str = ""
    values: Mapping[str, object] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    is_dangerous: bool = False
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change did.

    Attributes:
        title: What it did, as a heading.
        details: More about it, a sentence each.
        links: Addresses of the next pages, by the text of the link; the most likely one first.
    """

    title: str
    details: Sequence[str] = ()
    links: Mapping[str, str] = field(default_factory=dict)


Planner = Callable[[Request, Rights, Mapping[str, str]], Awaitable[Plan]]
Doer = Callable[[Request, Mapping[str, str]], Awaitable[Outcome]]


def page_of(
    request: Request, rights: Rights, plan: Plan, problem: str = "", status: HTTPStatus = HTTPStatus.OK
) -> Response:
    """Return the page that says what a change will do.

    Args:
        request: What asks for it.
        rights: Of whoever asks.
        plan: What it will do.
        problem: Why the last try failed; empty if there was none.
        status: The status.
    """
    return state_of(request).templates.page(
        request,
        "change.html",
        status,
        rights=rights,
        plan=plan,
        problem=problem,
        model_id=request.path_params["model_id"],
    )


def showing(plan: Planner) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with the page of a change."""

    async def show(request: Request) -> Response:
        rights = await read_rights(request)
        return page_of(request, rights, await plan(request, rights, request.query_params))

    return show


def doing(plan: Planner, do: Doer) -> Callable[[Request], Awaitable[Response]]:
    """Return what makes a change; if that fails, it answers with the page of the change, as things are now."""

    async def change(request: Request) -> Response:
        fields = await read_form(request)
        try:
            outcome = await do(request, fields)
        except (InvalidError, ConflictError, PreconditionError, NotFoundError) as error:
            rights = await read_rights(request)
            try:
                planned = await plan(request, rights, fields)
            except NotFoundError:
                raise error from None
            return page_of(request, rights, planned, in_words(error), errors.status_of(error))
        rights = await read_rights(request)
        return state_of(request).templates.page(
            request, "done.html", rights=rights, outcome=outcome, model_id=request.path_params["model_id"]
        )

    return change


def in_words(error: ModelRegistryError) -> str:
    """Return the text of an error for a page."""
    if isinstance(error, ConflictError):
        reason = f"somebody else changed it first. {sentence(error.message)}"
        return f"Nothing was changed, because {reason} This page shows the current state."
    return f"Nothing was changed. {sentence(error.message)}"


def sentence(text: str) -> str:
    """Return a message as a sentence."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def whole_number(text: str, what: str, *, least: int = 1) -> int:
    """Return the number in a field of a form.

    Raises:
        InvalidError: It has none, or a smaller one than `least`.
    """
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > 19 or int(text) < least:
        raise InvalidError(f"{what} must be a whole number, {least} or more")
    return int(text)


def finite_number(text: str, what: str) -> float:
    """Return the finite number in a field of a form.

    Raises:
        InvalidError: It has none.
    """
    try:
        number = float(text.strip())
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InvalidError(f"{what} must be a finite number")
    return number
