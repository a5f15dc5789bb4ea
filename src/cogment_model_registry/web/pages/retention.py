"""The rules of a model: what they would keep and delete, and applying them."""

import asyncio
import json
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import InvalidError, counted
from cogment_model_registry.records.documents import rule_as_json, rules_from_json
from cogment_model_registry.records.lifecycle import RetentionReport
from cogment_model_registry.records.retention import RetentionRule
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.web.pages.changes import Outcome, Plan, sentence
from cogment_model_registry.web.pages.formats import path_of
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.state import registry_of, state_of

SHOWN_MAX = 200
"""How many decisions a page shows."""

_RULES_MAX_CHARACTERS = 16_384


async def show(request: Request) -> Response:
    """Answer with the rules and what they would do now; or with what other rules would do."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    text = request.query_params.get("rules", "").strip()
    rights, model = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    trial: Sequence[RetentionRule] | None = None
    report, problem = None, ""
    try:
        if text:
            trial = parsed_rules(text)
        if trial is not None or model.retention:
            report = await registry.apply_retention(model_id, dry_run=True, rules=trial)
    except InvalidError as error:
        problem = sentence(error.message)
    return state_of(request).templates.page(
        request,
        "retention.html",
        rights=rights,
        model=model,
        trial=trial,
        report=report,
        shown_max=SHOWN_MAX,
        problem=problem,
        text=text or _rules_text(model.retention),
    )


def parsed_rules(text: str) -> list[RetentionRule]:
    """Return the rules in a text.

    Raises:
        InvalidError: It is not a list of rules in JSON.
    """
    if len(text) > _RULES_MAX_CHARACTERS:
        raise InvalidError(f"the rules have more than {_RULES_MAX_CHARACTERS} characters")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise InvalidError("the rules are not JSON") from None
    return rules_from_json(document, "the text")


def _rules_text(rules: Sequence[RetentionRule]) -> str:
    example = rules or [RetentionRule("archived", keep_last=10, keep_best=3, metric="return")]
    return json.dumps([rule_as_json(rule) for rule in example], indent=1, ensure_ascii=False)


def _summary(report: RetentionReport) -> str:
    versions = counted(report.deleted_versions, "version")
    return f"{versions} would be deleted, {size_text(report.freed_bytes)} in all; {report.kept_versions} are kept."


async def plan_application(request: Request, rights: Rights, _fields: Mapping[str, str]) -> Plan:
    """Return what applying the rules would do now."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    model = await registry.describe_model(model_id)
    report = await registry.apply_retention(model_id, dry_run=True)
    refusal = "" if rights.may("delete", model_id) else "You need the scope delete."
    if not model.retention:
        refusal = "The model has no rules."
    elif not report.deleted_versions:
        refusal = "There is nothing to delete now."
    numbers = [str(each.version.number) for each in report.decisions if each.deleted]
    shown = ", ".join(numbers[:40]) + (" and others" if len(numbers) > 40 else "")
    return Plan(
        "Apply the rules of retention",
        [
            _summary(report),
            "The server decides again before each deletion: a version that has got an alias by then is kept.",
        ],
        f"Delete {counted(report.deleted_versions, 'version')}",
        path_of("models", model_id, "retention"),
        {"revision": str(model.revision)},
        warnings=[f"These versions are deleted permanently: {shown}."] if numbers else [],
        is_dangerous=True,
        refusal=refusal,
    )


async def apply(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Apply the rules, if they are still those that the page showed."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    model = await registry.describe_model(model_id)
    if str(model.revision) != fields.get("revision"):
        raise InvalidError("the rules were changed since the page was shown; look at them again")
    report = await registry.apply_retention(model_id)
    return Outcome(
        f"{counted(report.deleted_versions, 'version')} deleted",
        [f"{size_text(report.freed_bytes)} in all; {report.kept_versions} are kept."],
        {
            "Rules of retention": path_of("models", model_id, "retention"),
            "Back to the model": path_of("models", model_id),
        },
    )
