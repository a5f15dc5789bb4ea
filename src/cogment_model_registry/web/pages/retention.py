"""The rules of a model: what they would keep and delete, other rules in their place, and applying them."""

import asyncio
import json
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import Response

from cogment_model_registry.errors import InvalidError, counted
from cogment_model_registry.records.documents import rule_as_json, rules_from_json
from cogment_model_registry.records.lifecycle import RetentionReport
from cogment_model_registry.records.retention import RULES_MAX, RetentionRule
from cogment_model_registry.records.sizes import size_text
from cogment_model_registry.web.pages import queries, rule_forms
from cogment_model_registry.web.pages.changes import Outcome, Plan, whole_number
from cogment_model_registry.web.pages.formats import numbers_in, path_of, ranges_text, sentence, with_query
from cogment_model_registry.web.pages.rights import Rights, read_rights
from cogment_model_registry.web.state import registry_of, state_of

SHOWN_MAX = 200
"""How many decisions a page shows."""

_RULES_MAX_CHARACTERS = 65_536
_RANGES_MAX = 12


async def show(request: Request) -> Response:
    """Answer with the rules, and what they would do now."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    rights, model = await asyncio.gather(read_rights(request), registry.describe_model(model_id))
    report = await registry.apply_retention(model_id, dry_run=True) if model.retention else None
    return state_of(request).templates.page(request, "retention.html", rights=rights, model=model, report=report)


def _summary(report: RetentionReport) -> str:
    versions = counted(report.deleted_versions, "version")
    return (
        f"Of the versions that exist now, {versions} would be deleted, {size_text(report.freed_bytes)} in total; "
        f"{report.kept_versions} would be kept."
    )


def _doomed(report: RetentionReport) -> list[int]:
    return sorted(each.version.number for each in report.decisions if each.deleted)


# Other rules.


async def plan_rules(request: Request, rights: Rights, fields: Mapping[str, str]) -> Plan:
    """Return the form with the rules, or what those of the form would do."""
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    model = await registry.describe_model(model_id)
    if "rules" in fields:
        given = rule_forms.rows_of(parsed_rules(fields["rules"]))
    elif rule_forms.is_filled(fields):
        given = rule_forms.rows_in(fields)
    else:
        return _question(model_id, rule_forms.rows_of(model.retention), {})
    rules, problems = rule_forms.rules_of(given)
    if problems or "edit" in fields:
        return _question(model_id, given, problems, blank=2 if fields.get("edit") == "more" else 1)
    if not rules and not model.retention:
        return _question(model_id, given, {"": "Fill in at least one rule."})
    report = None
    try:
        report = await registry.apply_retention(model_id, dry_run=True, rules=rules) if rules else None
    except InvalidError as error:
        return _question(model_id, given, rule_forms.problems_in(error.message))
    before = [_in_words(rule) for rule in model.retention]
    outlook = [_summary(report)] if report else []
    if report and report.deleted_versions:
        outlook.append(
            f"Deleted permanently, as soon as the server applies the rules automatically: {_named(_doomed(report))}."
        )
    if rules:
        outlook.append("The rules also hold for all versions that come later.")
    return Plan(
        f"Save {counted(len(rules), 'rule')} of retention" if rules else "Remove the rules of retention",
        [_in_words(rule) for rule in rules] or ["The model has no rules then, so every version is kept."],
        "Save these rules" if rules else "Remove the rules",
        path_of("models", model_id, "retention"),
        {"rules": _rules_text(rules), "revision": str(model.revision)},
        values={
            "report": report,
            "before": before,
            "again": with_query(_rules_path(model_id), edit="yes", **rule_forms.fields_of(given)),
        },
        outlook=outlook,
        is_dangerous=bool(report and report.deleted_versions),
        refusal=""
        if rights.may("admin", model_id)
        else "You can try rules here; to save them, you need the scope admin.",
    )


def _rules_path(model_id: str) -> str:
    return path_of("models", model_id, "retention", "rules")


def _question(model_id: str, rows: Sequence[rule_forms.Fields], problems: Mapping[str, str], *, blank: int = 1) -> Plan:
    shown = [*rows, *[rule_forms.BLANK] * blank][:RULES_MAX]
    return Plan(
        "Rules of retention",
        (),
        "Show what they would do",
        path_of("models", model_id, "retention"),
        inputs="rules",
        values={"rows": shown, "can_grow": len(shown) < RULES_MAX},
        is_question=True,
        problems=problems,
    )


def _in_words(rule: RetentionRule) -> str:
    return sentence(str(rule))


def _named(numbers: Sequence[int]) -> str:
    text = ranges_text(numbers, _RANGES_MAX)
    return f"version {text}" if len(numbers) == 1 else f"versions {text}"


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
    return json.dumps([rule_as_json(rule) for rule in rules], ensure_ascii=False)


async def save_rules(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Save the rules, if nobody has changed the model since the page was shown."""
    model_id = request.path_params["model_id"]
    rules = parsed_rules(fields.get("rules", ""))
    revision = whole_number(fields.get("revision", ""), "the revision")
    model = await registry_of(request).set_retention(model_id, rules, expected=revision)
    return Outcome(
        "The rules of retention are saved" if rules else "The rules of retention are removed",
        [_in_words(rule) for rule in model.retention],
        {
            "Rules of retention": path_of("models", model_id, "retention"),
            "Back to the model": path_of("models", model_id),
        },
    )


# Applying them.


async def plan_application(request: Request, rights: Rights, fields: Mapping[str, str]) -> Plan:
    """Return what applying the rules would do now.

    With the versions of a form, only those: others that no rule keeps by now were not confirmed.
    """
    model_id = request.path_params["model_id"]
    registry = registry_of(request)
    model, report = await asyncio.gather(
        registry.describe_model(model_id), registry.apply_retention(model_id, dry_run=True)
    )
    sizes = {each.version.number: each.version.data_size_bytes for each in report.decisions if each.deleted}
    confirmed = numbers_in(fields["versions"]) if "versions" in fields else None
    doomed = confirmed if confirmed and all(number in sizes for number in confirmed) else sorted(sizes)
    refusal = "" if rights.may("delete", model_id) else "You need the scope delete."
    if not model.retention:
        refusal = "The model has no rules."
    elif not doomed:
        refusal = "There is nothing to delete now."
    freed = size_text(sum(sizes[number] for number in doomed))
    effects = [f"{counted(len(doomed), 'version')} deleted, {freed} in total."]
    if len(doomed) < report.deleted_versions and confirmed is None:
        effects.append(f"These are the first of {report.deleted_versions}; apply the rules again for the others.")
    return Plan(
        "Apply the rules of retention",
        effects,
        f"Delete {counted(len(doomed), 'version')}",
        path_of("models", model_id, "retention"),
        {"revision": str(model.revision), "versions": ranges_text(doomed)},
        warnings=[f"Deleted permanently: {_named(doomed)}."] if doomed else [],
        outlook=["The server decides again before each deletion: a version that has got an alias by then is kept."],
        is_dangerous=True,
        refusal=refusal,
    )


async def apply(request: Request, fields: Mapping[str, str]) -> Outcome:
    """Delete the versions that the page named, as far as the rules still do not keep them."""
    model_id = request.path_params["model_id"]
    numbers = numbers_in(fields.get("versions", ""))
    if not numbers:
        raise InvalidError("the form names no versions")
    revision = whole_number(fields.get("revision", ""), "the revision")
    report = await queries.apply_retention(registry_of(request), model_id, numbers, revision)
    return Outcome(
        f"{counted(report.deleted_versions, 'version')} deleted",
        [f"{size_text(report.freed_bytes)} in total; {report.kept_versions} are kept."],
        {
            "Rules of retention": path_of("models", model_id, "retention"),
            "Back to the model": path_of("models", model_id),
        },
    )
