"""Tags, rules of retention and shares of models by the client, in both flavours, with a real server."""

from typing import Any

import pytest

from cogment_model_registry import Decision, ModelSummary, RetentionReport, RetentionRule, TransientShare, errors
from tests.registry_client.conftest import opened
from tests.registry_client.scripted import scripted


async def test_tags_of_a_model_are_set_removed_and_searched(registry: Any) -> None:
    for model_id in ("policy", "other"):
        await registry.create_model(model_id, user_data={"framework": "torch"})
    model = await registry.update_model("policy", tags={"team": "robots", "stage": "test"})
    assert isinstance(model, ModelSummary)
    assert (await registry.update_model("policy", tags={"stage": None})).tags == {"team": "robots"}
    with pytest.raises(errors.ConflictError, match="was expected"):
        await registry.update_model("policy", tags={"team": "cars"}, expected=model.revision)
    await registry.publish("policy", b"12345")
    await registry.set_alias("policy", "production", 1)
    described = await registry.describe_model("policy")
    assert (described.latest_number, described.versions, described.archived_bytes) == (1, 1, 5)
    assert [alias.name for alias in described.aliases] == ["production"]
    assert await registry.find_models("tags.team = robots AND aliases:production") == [described]
    assert [model.model_id for model in await registry.find_models(limit=1)] == ["other"]
    with pytest.raises(errors.InvalidError, match="malformed at character 1"):
        await registry.find_models("metrics.return > 1")
    with pytest.raises(errors.NotFoundError):
        await registry.describe_model("none")


async def test_rules_have_a_dry_run_and_a_real_run(registry: Any) -> None:
    for number in range(1, 6):
        await registry.store("policy", b"%d" % number)
    await registry.set_alias("policy", "production", 2)
    trial = [RetentionRule("archived", keep_last=2)]
    planned = await registry.apply_retention("policy", dry_run=True, rules=trial)
    assert isinstance(planned, RetentionReport)
    assert [(each.version.number, each.deleted, each.reason) for each in planned.decisions] == [
        (1, True, "rule 1 keeps the last 2, and this is number 5"),
        (3, True, "rule 1 keeps the last 2, and this is number 3"),
        (2, False, "alias production"),
        (4, False, "rule 1 keeps the last 2"),
        (5, False, "newest version"),
    ]
    assert (planned.deleted_versions, planned.kept_versions, planned.freed_bytes) == (2, 3, 2)
    assert len(await registry.list_versions("policy")) == 5
    model = await registry.set_retention("policy", trial)
    assert list(model.retention) == trial
    assert await registry.apply_retention("policy", dry_run=True) == planned
    done = await registry.apply_retention("policy")
    assert [each for each in done.decisions if each.deleted] == [each for each in planned.decisions if each.deleted]
    assert isinstance(done.decisions[0], Decision)
    assert done.freed_bytes == 2
    assert [info.number for info in await registry.list_versions("policy")] == [2, 4, 5]
    assert (await registry.apply_retention()).deleted_versions == 0
    assert (await registry.set_retention("policy", [], expected=model.revision)).retention == ()


async def test_a_share_takes_effect_at_once(registry: Any) -> None:
    for number in range(1, 5):
        await registry.publish("policy", b"%d" % number)
    model = await registry.set_share("policy", TransientShare(max_items=2))
    assert model.share == TransientShare(max_items=2)
    assert [info.number for info in await registry.list_versions("policy")] == [3, 4]
    assert (await registry.set_share("policy", TransientShare())).share == TransientShare()


async def test_these_calls_are_refused_for_the_original(flavour: str) -> None:
    async with scripted() as service, opened(flavour, service.port, retry_seconds=0) as registry:
        with pytest.raises(errors.ModelRegistryError, match=r"updating model \"policy\": .*the original one"):
            await registry.set_retention("policy", [RetentionRule(keep_last=1)])
        with pytest.raises(errors.ModelRegistryError, match=r"applying retention to all models: .*the original one"):
            await registry.apply_retention()


@pytest.mark.parametrize(
    ("call", "arguments", "options"),
    [
        ("update_model", ("policy",), {"tags": {"a": 1}}),
        ("set_retention", ("policy", RetentionRule(keep_last=1)), {}),
        ("set_retention", ("policy", ["keep_last=1"]), {}),
        ("set_retention", ("policy", [RetentionRule(keep_best=1)]), {}),
        ("set_retention", ("policy", [RetentionRule(filter=1, keep_last=1)]), {}),  # type: ignore[arg-type]
        ("set_retention", ("policy", [RetentionRule(filter="tags.a >", keep_last=1)]), {}),
        ("set_retention", ("policy", []), {"expected": "1"}),
        ("set_share", ("policy", 5), {}),
        ("set_share", ("policy", TransientShare(max_items=-1)), {}),
        ("apply_retention", ("policy",), {"rules": [RetentionRule(keep_last=1)]}),
        ("find_models", (5,), {}),
    ],
)
async def test_wrong_arguments_are_refused(
    registry: Any, call: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    await registry.create_model("policy")
    with pytest.raises(errors.InvalidError):
        await getattr(registry, call)(*arguments, **options)
