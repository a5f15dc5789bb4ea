"""Changes by the pages: each has a page that says what it will do, and does it when its form is sent.

What a person confirms is what is done. A form has a digest of what its page said. When it is sent, the change is
planned again: if it would do something else by now, nothing is done, and the page shows what it would do now. Between
this look and the change, the server compares what can change in between: the revision of an alias, a version or a
model, or what stands against a deletion. The answer says what the change did, with a link that undoes it where that is
possible.
"""

import hashlib
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import (
    ConflictError,
    InvalidError,
    ModelRegistryError,
    NotFoundError,
    PreconditionError,
    quoted,
)
from cogment_model_registry.records.lifecycle import Version
from cogment_model_registry.web import errors
from cogment_model_registry.web.forms import read_form
from cogment_model_registry.web.pages.formats import sentence
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.registries import Registry
from cogment_model_registry.web.state import state_of

_NUMBER_MAX_CHARACTERS = 19

DIGEST_FIELD = "confirmed"
"""The field of a form that has the digest of its plan."""


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
        outlook: What it is likely to do later, or to others, a sentence each. It may change at any time, so it is shown
            and not confirmed.
        is_question: Whether its form only asks what to do, and leads to the page that says what that does.
        problems: What is wrong with the answers, by the name of the field.
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
    outlook: Sequence[str] = ()
    is_question: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)
    is_dangerous: bool = False
    refusal: str = ""

    @property
    def digest(self) -> str:
        """A text that differs for plans that do something else."""
        said = [self.title, [*self.effects], [*self.warnings], dict(self.fields)]
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "replace")).hexdigest()[:32]


class FieldError(InvalidError):
    """A field of a form has a wrong value.

    Args:
        name: The name of the field.
        message: What is wrong with it.
    """

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


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
    """Return what makes a change that was confirmed; otherwise, it answers with the page of the change as of now."""

    async def change(request: Request) -> Response:
        fields = await read_form(request)
        rights = await read_rights(request)
        planned = await plan(request, rights, fields)
        if planned.refusal or planned.is_question:
            return page_of(request, rights, planned, status=HTTPStatus.CONFLICT)
        if fields.get(DIGEST_FIELD) != planned.digest:
            return page_of(request, rights, planned, _CHANGED, HTTPStatus.PRECONDITION_FAILED)
        try:
            outcome = await do(request, fields)
        except (InvalidError, ConflictError, PreconditionError, NotFoundError) as error:
            try:
                planned = await plan(request, rights, fields)
            except NotFoundError:
                raise error from None
            if isinstance(error, FieldError):
                planned = replace(planned, problems={error.name: sentence(error.message)})
            return page_of(request, rights, planned, in_words(error), errors.status_of(error))
        return state_of(request).templates.page(
            request, "done.html", rights=rights, outcome=outcome, model_id=request.path_params["model_id"]
        )

    return change


_CHANGED = (
    "Nothing was changed, because this would do something else now than the page said: somebody else made a change. "
    "The page shows what it would do now."
)


def in_words(error: ModelRegistryError) -> str:
    """Return the text of an error for a page."""
    if isinstance(error, ConflictError):
        return f"{_CHANGED} {sentence(error.message)}"
    return f"Nothing was changed. {sentence(error.message)}"


async def named_version(registry: Registry, model_id: str, text: str, what: str) -> Version:
    """Return the version that a field of a form names by its number or by an alias.

    Args:
        registry: The registry.
        model_id: The model, which exists.
        text: The field.
        what: What the field is for, at the beginning of a message.

    Raises:
        InvalidError: It names none; the message says why.
    """
    text = text.strip()
    key: int | str = int(text) if text.isascii() and text.isdecimal() and len(text) <= _NUMBER_MAX_CHARACTERS else text
    if not text or key == 0 or "/" in text:
        raise InvalidError(f"{what} must be the number of a version, 1 or more, or an alias")
    try:
        return await registry.describe_version(model_id, key)
    except NotFoundError:
        name = f"version {key}" if isinstance(key, int) else f"alias {quoted(text[:80])}"
        raise InvalidError(f"the model has no {name}; {what} must be the number of a version, or an alias") from None


def whole_number(text: str, what: str, *, least: int = 1) -> int:
    """Return the number in a field of a form.

    Raises:
        InvalidError: It has none, or a smaller one than `least`.
    """
    text = text.strip()
    if not text.isascii() or not text.isdecimal() or len(text) > _NUMBER_MAX_CHARACTERS or int(text) < least:
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
