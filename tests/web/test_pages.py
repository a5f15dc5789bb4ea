"""The pages in a real browser: what they show, what they change, and that everyone can use them."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytest_asyncio
from safetensors.numpy import save

from cogment_model_registry import ModelRegistry, RetentionRule
from cogment_model_registry.web.pages.formats import metric_text
from tests.processes import run_cogment
from tests.waiting import eventually
from tests.web.browser import NARROW, WIDE, Visit, chromium, visiting
from tests.web.http import HttpServer, http_server

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Any]:
    async with chromium() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Any, shared_http: HttpServer, registry: ModelRegistry) -> AsyncIterator[Visit]:
    """A visit of a server without models, as the test begins."""
    async with visiting(browser, shared_http.http.port) as begun:
        yield begun


def _weights(value: float) -> bytes:
    return save({"actor.weight": numpy.full((4, 3), value, numpy.float32), "actor.bias": numpy.ones(4, numpy.float32)})


def _fill(registry: ModelRegistry) -> None:
    """Make a model with 7 versions, archived up to 4, of which 5 is the best, and three actors."""
    for number in range(1, 8):
        put = registry.store if number <= 4 else registry.publish
        put(
            "walker",
            _weights(number),
            tags={"run": "seven", **({"parent": str(number - 1)} if number > 1 else {})},
            metrics={"return": 100.0 * (number if number <= 5 else 3), "loss": 1 / number},
        )
    registry.store("arm", b"weights")
    registry.set_alias("walker", "production", 3)
    registry.set_alias("walker", "production", 4)
    registry.report_consumer("walker", "actor-1", version=7)
    registry.report_consumer("walker", "actor-2", version=2, labels={"host": "node-3"})
    registry.report_consumer("walker", "actor-3", version=6, state="failed", error="it does not fit")


PATHS = (
    "/",
    "/?q=nothing",
    "/models/walker",
    "/models/walker/versions/4",
    "/models/walker/aliases/production",
    "/models/walker/aliases/production/move?version=2",
    "/models/walker/versions/4/delete",
    "/models/walker/versions/4/notes",
    "/models/walker/retention",
    "/models/walker/retention/rules",
    "/models/walker/retention/rules?tier-0=archived&keep_last-0=x&tier-1=any&keep_best-1=2",
    "/models/walker/retention/rules?tier-0=archived&keep_last-0=2",
    "/models/walker/history",
    "/models/walker/compare?first=2&second=3",
    "/models/arm",
    "/models/arm/versions/1/notes",
    "/models/arm/compare",
    "/login",
)


@pytest.mark.parametrize(("scheme", "size"), [("light", WIDE), ("dark", NARROW)])
async def test_everyone_can_use_every_page(
    browser: Any, shared_http: HttpServer, registry: ModelRegistry, scheme: str, size: tuple[int, int]
) -> None:
    axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
    _fill(registry)
    async with visiting(browser, shared_http.http.port, size, color_scheme=scheme) as visit:
        for path in PATHS:
            await visit.open(path)
            found = (await axe.run(visit.page)).response["violations"]
            assert not found, (path, [(each["id"], [node["target"] for node in each["nodes"]]) for each in found])
            fits = await visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert fits, f"{path} is wider than the window"


async def test_the_first_page_begins_with_who_is_furthest_behind(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/")
    rows = await visit.page.locator("[data-table=lagging] tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["actor-2", "actor-3"]
    assert "5" in rows[0]
    assert "it does not fit" in rows[1]
    assert await visit.text("[data-part=lag-summary]") == (
        "2 of 3 consumers are behind, the furthest by 5 versions. 1 failed to load a version."
    )
    models = await visit.page.locator("section[aria-labelledby=models] tbody tr").all_inner_texts()
    assert [row.split()[:2] for row in models] == [["arm", "1"], ["walker", "7"]]
    assert "production 4" in models[1]


async def test_models_are_found_by_a_part_of_their_id_or_by_a_filter(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/")
    for text, found in (("WALK", ["walker"]), ("versions < 3", ["arm"]), ("none", [])):
        await visit.page.get_by_label("Search models").fill(text)
        await visit.enter()
        rows = await visit.page.locator("section[aria-labelledby=models] tbody th").all_inner_texts()
        assert rows == found
    await visit.open("/?q=versions+%3C")
    assert "character" in await visit.text("[role=alert]")


async def test_versions_are_filtered_and_ordered_as_on_the_command_line(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker")
    await visit.page.get_by_label("Filter").fill("metrics.return >= 300 AND archived = false")
    await visit.page.get_by_label("Order by", exact=True).fill("metrics.return desc")
    await visit.follow(visit.page.get_by_role("button", name="Apply"))
    assert await visit.page.locator(".versions tbody th").all_inner_texts() == ["5", "7", "6"]
    await visit.follow(visit.page.get_by_role("link", name="Order by loss, lowest first"))
    assert await visit.page.locator(".versions tbody th").all_inner_texts() == ["7", "6", "5"]


async def test_a_malformed_filter_is_shown_with_its_position(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker?filter=metrics.return+%3E")
    assert "at character" in await visit.text("[role=alert]")
    assert await visit.page.get_by_label("Filter").input_value() == "metrics.return >"
    assert visit.complaints == [
        "error: Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]
    visit.complaints.clear()


async def test_pages_do_not_shift_when_versions_come(visit: Visit, registry: ModelRegistry) -> None:
    for number in range(1, 121):
        registry.store("walker", b"%d" % number)
    await visit.open("/models/walker")
    seen = await visit.page.locator(".versions tbody th").all_inner_texts()
    registry.store("walker", b"a newer one")
    while await visit.page.get_by_role("link", name="Next page").count():
        await visit.follow(visit.page.get_by_role("link", name="Next page"))
        seen += await visit.page.locator(".versions tbody th").all_inner_texts()
    assert [int(number) for number in seen if number != "121"] == [*range(120, 0, -1)]


async def test_an_open_page_shows_what_consumers_report_and_versions_that_come(
    visit: Visit, registry: ModelRegistry
) -> None:
    _fill(registry)
    await visit.open("/models/walker")
    await visit.wait_for("document.documentElement.dataset.news > 0")
    registry.report_consumer("walker", "actor-2", version=7)
    registry.report_consumer("walker", "actor-9", version=1)
    await visit.wait_for("document.querySelector('[data-table=consumers] tr')?.dataset.key == 'walker/actor-9'")
    registry.publish("walker", _weights(8), metrics={"return": 7.5})
    registry.set_alias("walker", "canary", 8)
    await visit.wait_for("document.querySelector('[data-table=versions] tr')?.dataset.key == '8'")
    await visit.wait_for("document.querySelector('[data-part=aliases]')?.innerText.includes('canary')")
    await visit.wait_for("document.querySelector('[data-key=\"walker/actor-2\"] .lag')?.innerText == '1'")
    assert await visit.text("[data-part=facts] dd") == "8"
    registry.delete_version("walker", 6)
    await visit.wait_for("!document.querySelector('[data-table=versions] [data-key=\"6\"]')")
    assert await visit.page.locator("[data-table=versions] tr").count() == 7


async def test_the_first_page_stays_current_and_can_be_paused(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/")
    await visit.wait_for("document.documentElement.dataset.news > 0")
    registry.report_consumer("walker", "actor-2", version=7)
    registry.report_consumer("walker", "actor-3", version=7)
    await visit.wait_for("document.querySelector('[data-with=lagging]').hidden")
    await visit.wait_for(
        "document.querySelector('[data-part=lag-summary]').innerText == 'All 3 consumers run the newest version.'"
    )
    await visit.page.get_by_role("button", name="Pause").click()
    assert "Paused" in await visit.text("[data-live-state]")


async def test_the_models_of_the_first_page_change_without_a_reload(visit: Visit, registry: ModelRegistry) -> None:
    await visit.open("/")
    assert "There are no models yet" in await visit.text("[data-without=models]")
    _fill(registry)

    async def until(model_id: str, *cells: str) -> None:
        row = f"document.querySelector('[data-table=models] [data-key=\"{model_id}\"]')"
        texts = f"[...({row}?.cells || [])].map((cell) => cell.innerText.trim()).join('|')"
        await visit.wait_for(f"{texts}.startsWith('{'|'.join([model_id, *cells])}')")

    await until("walker", "7", "7", "3", "5", "production 4")
    assert await visit.page.locator("[data-without=models]").is_hidden()
    registry.publish("walker", b"weights")
    registry.set_alias("walker", "canary", 8)
    registry.report_consumer("walker", "actor-9", version=1)
    registry.delete_version("walker", 5)
    await until("walker", "8", "7", "4", "6", "canary 8 production 4")
    registry.publish("a-new-one", b"weights")
    await until("a-new-one", "1", "1", "–", "–", "")
    registry.delete_model("arm")
    names = "[...document.querySelectorAll('[data-table=models] th')].map((each) => each.innerText).join()"
    await visit.wait_for(f"{names} == 'a-new-one,walker'")
    await visit.open("/?q=new")
    await visit.wait_for("document.documentElement.dataset.news > 0")
    registry.publish("renewed", b"weights")
    await until("renewed", "1")
    assert await visit.page.locator("[data-table=models] tr").count() == 2


async def test_tables_that_were_empty_appear_with_their_first_row(visit: Visit, registry: ModelRegistry) -> None:
    registry.create_model("walker")
    await visit.open("/models/walker")
    assert await visit.page.locator("[data-with]:visible").count() == 0
    registry.publish("walker", b"weights")
    registry.report_consumer("walker", "actor-1", version=1)
    await visit.wait_for("document.querySelectorAll('[data-with]:not([hidden]) tbody tr').length == 3")
    assert await visit.page.locator("[data-without]:visible").count() == 0


async def test_an_alias_is_rolled_back_in_three_clicks_and_back_again(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker")
    await visit.follow(visit.page.get_by_role("link", name="production").first)
    await visit.follow(visit.page.get_by_role("link", name="Point to 3"))
    assert "production points to version 4 now; it will point to version 3." in await visit.text(".effects")
    assert registry.aliases("walker")["production"].version_number == 4  # nothing has happened yet
    await visit.follow(visit.page.get_by_role("button", name="Move production to 3"))
    assert await visit.text("h1") == "production points to version 3"
    assert registry.aliases("walker")["production"].version_number == 3
    await visit.follow(visit.page.get_by_role("link", name="Undo: move it back to 4"))
    await visit.follow(visit.page.get_by_role("button", name="Move production to 4"))
    assert registry.aliases("walker")["production"].version_number == 4


async def test_a_move_that_somebody_else_was_faster_with_changes_nothing(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker/aliases/production/move?version=1")
    registry.set_alias("walker", "production", 2)
    await visit.follow(visit.page.get_by_role("button", name="Move production to 1"))
    assert "somebody else made a change" in await visit.text("[role=alert]")
    assert "points to version 2 now" in await visit.text(".effects")
    assert registry.aliases("walker")["production"].version_number == 2
    visit.complaints.clear()  # of the status 412
    await visit.follow(visit.page.get_by_role("button", name="Move production to 1"))
    assert registry.aliases("walker")["production"].version_number == 1


async def test_aliases_are_created_and_removed(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/7")
    await visit.page.get_by_label("Point an alias here").fill("canary")
    await visit.follow(visit.page.get_by_role("button", name="Continue"))
    assert "it is promoted first" in await visit.text(".effects")
    await visit.follow(visit.page.get_by_role("button", name="Create canary"))
    await visit.follow(visit.page.get_by_role("link", name="canary"))
    assert registry.describe_version("walker", "canary").archived
    await visit.follow(visit.page.get_by_role("link", name="Remove"))
    await visit.follow(visit.page.get_by_role("button", name="Remove canary"))
    assert await visit.text("h1") == "The alias canary is removed"
    assert "canary" not in registry.aliases("walker")


async def test_a_name_that_is_no_alias_is_refused_in_words(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker/aliases/latest/move?version=3")
    await visit.follow(visit.page.get_by_role("button", name="Create latest"))
    assert "'latest' and numbers name versions by themselves" in await visit.text("[role=alert]")
    visit.complaints.clear()  # of the status 400


async def test_a_version_is_archived_and_deleted_with_what_that_takes_said_first(
    visit: Visit, registry: ModelRegistry
) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/6")
    await visit.follow(visit.page.get_by_role("link", name="Promote"))
    await visit.follow(visit.page.get_by_role("button", name="Promote version 6"))
    assert await visit.text("h1") == "Version 6 is archived"
    assert registry.get_version("walker", 6).archived
    await visit.follow(visit.page.get_by_role("link", name="Version 6"))
    await visit.follow(visit.page.get_by_role("link", name="Delete"))
    await visit.follow(visit.page.get_by_role("button", name="Delete version 6"))
    assert await visit.text("h1") == "Version 6 is deleted"
    assert [each.number for each in registry.find_versions("walker", "version_number = 6")] == []


async def test_a_version_with_an_alias_or_a_holder_is_deleted_by_force_alone(
    visit: Visit, registry: ModelRegistry
) -> None:
    _fill(registry)
    registry.report_consumer("walker", "evaluator", version=4, held_versions=[4])
    await visit.open("/models/walker/versions/4/delete")
    assert "The alias production points to it, and would be removed." in await visit.text(".effects")
    assert 'held by consumer "evaluator"' in await visit.text(".effects")
    await visit.page.evaluate("document.querySelector('[name=force]').required = false")
    await visit.follow(visit.page.get_by_role("button", name="Delete version 4"))
    assert "Nothing was changed" in await visit.text("[role=alert]")
    visit.complaints.clear()  # of the status 409
    assert registry.get_version("walker", 4).archived
    await visit.page.get_by_label("Delete it anyway").check()
    registry.set_alias("walker", "canary", 4)  # which the page did not name
    await visit.follow(visit.page.get_by_role("button", name="Delete version 4"))
    assert "somebody else made a change" in await visit.text("[role=alert]")
    assert "The aliases canary, production point to it" in await visit.text(".effects")
    visit.complaints.clear()  # of the status 412
    registry.report_consumer("walker", "viewer", version=4, held_versions=[4])
    await visit.follow(visit.page.get_by_role("button", name="Delete version 4"))
    assert 'held by consumers "evaluator", "viewer"' in await visit.text(".effects")
    assert registry.get_version("walker", 4).archived
    visit.complaints.clear()
    await visit.follow(visit.page.get_by_role("button", name="Delete version 4"))
    assert await visit.text("h1") == "Version 4 is deleted"
    assert registry.aliases("walker") == {}


async def test_tags_and_metrics_are_edited(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/2/notes")
    await visit.page.get_by_label("run").fill("")
    await visit.page.get_by_label("return").fill("12.5")
    await visit.page.get_by_label("Name of a new tag, 1").fill('two "words"')
    await visit.page.get_by_label("Its value, tag 1").fill("<b>")
    await visit.page.get_by_label("Name of a new metric, 1").fill("length")
    await visit.page.get_by_label("Its value, metric 1").fill("nan")
    await visit.follow(visit.page.get_by_role("button", name="Save"))
    assert "The metric 'length' must be a finite number" in await visit.text("[role=alert]")
    visit.complaints.clear()  # of the status 400
    await visit.page.get_by_label("Its value, metric 1").fill("3")
    await visit.follow(visit.page.get_by_role("button", name="Save"))
    await visit.follow(visit.page.get_by_role("link", name="Version 2"))
    version = registry.describe_version("walker", 2)
    assert version.tags == {"parent": "1", 'two "words"': "<b>"}
    assert version.metrics == {"return": 12.5, "loss": 0.5, "length": 3}
    assert await visit.page.get_by_text("<b>", exact=True).count() == 1


async def test_rules_of_retention_are_tried_and_saved(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    page = visit.page
    await visit.open("/models/walker/retention")
    await visit.follow(page.get_by_role("link", name="Add rules"))
    rule = page.get_by_role("group", name="Rule 1", exact=True)
    await rule.get_by_label("Keep the last").fill("two")
    await visit.follow(page.get_by_role("button", name="Show what they would do"))
    assert await visit.text("#problem-keep_last-0") == "It must be a whole number, 0 or more."
    await rule.get_by_label("Keep the last").fill("2")
    await rule.get_by_label("the best").fill("1")
    await visit.follow(page.get_by_role("button", name="Show what they would do"))
    assert await visit.text("#problem-metric-0") == "Say by which metric these are the best."
    await rule.get_by_label("by the metric").fill("loss")
    await rule.get_by_label("lowest is best").check()
    await rule.get_by_label("that match the filter").fill("tags.run =")
    await visit.enter()  # which does not press the button for another rule
    assert "at character" in await visit.text("#problem-filter-0")
    await rule.get_by_label("that match the filter").fill("tags.run = seven")
    await visit.follow(page.get_by_role("button", name="Add another rule"))
    await page.get_by_role("group", name="Rule 2").get_by_label("Keep the last").fill("9")
    await page.get_by_role("group", name="Rule 2").get_by_label("Applies to").select_option("transient")
    await visit.follow(page.get_by_role("button", name="Show what they would do"))
    effects = await visit.text(".effects")
    assert "Of archived versions with tags.run = seven, keep the last 2 and the 1 with the lowest" in effects
    assert "Of transient versions, keep the last 9." in effects
    assert "2 versions would be deleted" in await visit.text(".outlook")
    assert "1-2" in " ".join(await page.locator(".outlook").all_inner_texts())
    assert registry.describe_model("walker").retention == ()
    registry.update_model("walker", tags={"team": "robots"})  # which changes the revision
    await visit.follow(page.get_by_role("button", name="Save these rules"))
    assert "somebody else made a change" in await visit.text("[role=alert]")
    assert registry.describe_model("walker").retention == ()
    visit.complaints.clear()  # of the status 412
    await visit.follow(page.get_by_role("button", name="Save these rules"))
    assert await visit.text("h1") == "The rules of retention are saved"
    assert registry.describe_model("walker").retention == (
        RetentionRule("archived", "tags.run = seven", keep_last=2, keep_best=1, metric="loss", lower_is_better=True),
        RetentionRule("transient", keep_last=9),
    )
    assert len(registry.find_versions("walker")) == 7
    await visit.open("/models/walker/retention/rules")
    await page.get_by_role("group", name="Rule 1", exact=True).get_by_label("remove this rule").check()
    await visit.follow(page.get_by_role("button", name="Show what they would do"))
    await visit.follow(page.get_by_role("button", name="Save these rules"))
    assert registry.describe_model("walker").retention == (RetentionRule("transient", keep_last=9),)


async def test_rules_of_retention_delete_what_was_confirmed(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    registry.set_retention("walker", [RetentionRule("archived", keep_last=2)])
    await visit.open("/models/walker/retention")
    assert "2 versions would be deleted" in await visit.text("section p")
    await visit.follow(visit.page.get_by_role("link", name="Apply now"))
    assert "Deleted permanently: versions 1-2." in await visit.text(".effects")
    registry.store("walker", b"weights")  # now version 3 would be deleted too, which nobody has confirmed
    registry.set_alias("walker", "canary", 2)
    await visit.follow(visit.page.get_by_role("button", name="Delete 2 versions"))
    assert "somebody else made a change" in await visit.text("[role=alert]")
    assert "Deleted permanently: versions 1, 3." in await visit.text(".effects")
    visit.complaints.clear()  # of the status 412
    registry.store("walker", b"weights")
    await visit.follow(visit.page.get_by_role("button", name="Delete 2 versions"))
    assert await visit.text("h1") == "2 versions deleted"
    assert [each.number for each in registry.find_versions("walker", "archived = true")] == [2, 4, 8, 9]


async def test_a_version_shows_its_tensors_its_lineage_and_how_to_fetch_it(
    visit: Visit, registry: ModelRegistry, shared_http: HttpServer
) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/4")
    assert "2 tensors, 16 elements." in await visit.text("section[aria-labelledby=tensors]")
    assert "actor.weight 4 × 3 float32 48 B" in await visit.text("section[aria-labelledby=tensors] tbody")
    assert await visit.text("section[aria-labelledby=lineage] dd") == "3 ← 2 ← 1"
    commands = await visit.page.locator("pre").all_inner_texts()
    assert commands[0] == (
        f"cogment client model_registry retrieve walker 4 --output=walker-4.bin --endpoint={shared_http.endpoint}"
    )
    assert commands[2].startswith("curl --fail --output walker-4.bin http://127.0.0.1:")
    path = commands[2].rpartition(str(shared_http.http.port))[2]
    assert shared_http.http.get(path).body == registry.retrieve("walker", 4)
    await visit.open("/models/walker/versions/production")
    assert visit.page.url.endswith("/versions/4")


async def test_two_versions_are_compared_down_to_their_tensors(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/4")
    await visit.follow(visit.page.get_by_role("button", name="Compare"))
    assert await visit.page.get_by_label("Version", exact=True).input_value() == "3"
    metrics = await visit.text("section[aria-labelledby=metrics] tbody")
    assert "return 300 400 +100 (+33.3%)" in metrics
    rows = await visit.page.locator("section[aria-labelledby=tensors] tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["actor.weight", "actor.bias"]
    assert rows[0].split("\t")[3:] == ["12", "1", "33.3 %"]
    assert "none" in rows[1]


async def test_curves_are_drawn_of_metrics_over_versions(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/models/walker")
    await visit.wait_for("document.querySelectorAll('.curve canvas').length == 2")
    assert "highest 500 at 5, last 300" in await visit.text(".curves")


async def test_metrics_without_curves_and_links_are_named(visit: Visit, registry: ModelRegistry) -> None:
    names = [f"loss-{number:02d}" for number in range(26)]
    for value in range(2):
        registry.publish("walker", b"%d" % value, metrics={**dict.fromkeys(names, float(value)), "return": 1.0})
    registry.publish("walker", b"2", metrics={"return": 2.0})  # the most frequent one
    await visit.open("/models/walker")
    await visit.wait_for("document.querySelectorAll('.curve canvas').length == 24")
    titles = await visit.page.locator(".curve b").all_inner_texts()
    assert titles == ["return", *names[:23]]
    assert await visit.page.locator(".orders .name").all_inner_texts() == titles
    section = await visit.text("section[aria-labelledby=metrics]")
    assert "Without curves, since there are too many metrics: loss-23, loss-24, loss-25." in section
    assert "Without links, since there are too many metrics: loss-23, loss-24, loss-25." in section


async def test_curves_of_the_greatest_and_the_least_numbers_have_axes(visit: Visit, registry: ModelRegistry) -> None:
    for number in range(4):
        sign = 1 if number % 2 else -1
        metrics = {"huge": sign * 1e308, "tiny": sign * 5e-324, "large": 3e40 + number * 1e39, "some": 1234567.9}
        registry.publish("walker", b"%d" % number, metrics=metrics)
    await visit.open("/models/walker")
    await visit.wait_for("document.querySelectorAll('.curve canvas').length == 4")
    # Of what is drawn, only pixels remain: of the line, and of the texts to the left of it.
    pixels = """[...document.querySelectorAll('.curve canvas')].map((canvas) => {
        const copy = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
        const context = copy.getContext('2d', {willReadFrequently: true});
        context.drawImage(canvas, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let line = 0, label = 0;
        for (let at = 0; at < data.length; at += 4) {
            const x = (at / 4) % canvas.width, y = Math.floor(at / 4 / canvas.width);
            if (data[at + 1] - data[at] > 40) line++; // the line is green
            else if (data[at + 3] && x < 60 * devicePixelRatio && y < canvas.height - 30 * devicePixelRatio) label++;
        }
        return [line, label];
    })"""
    await visit.wait_for(f"{pixels}.every(([line, label]) => line > 100 && label > 50)")
    assert "highest 1e+308 at 2, last 1e+308" in await visit.text(".curves")


async def test_scripts_round_metrics_as_the_server_does(visit: Visit, registry: ModelRegistry) -> None:
    values = [0.0, -0.0, 3.0, -3.0, 487.5, 1 / 3, 1e-9, -2.5e9, 1234567.9, 9999999.4, 0.00012345678, 99999.96, 1e308]
    values += [123456.7, 0.1 + 0.2, -1e-5, 9.99999e-5, 1e-4, 12345678.0, 2.0000000001, 5e-324]
    await visit.open("/")
    assert await visit.page.evaluate(f"{json.dumps(values)}.map(metricText)") == [*map(metric_text, values)]


async def test_very_many_small_tensors_are_compared_with_few_requests(
    visit: Visit, registry: ModelRegistry, shared_http: HttpServer
) -> None:
    tensors = {f"block.{number:05d}.scale": numpy.full(4, number, numpy.float32) for number in range(15_000)}
    registry.publish("many", save(tensors))
    tensors["block.07000.scale"] = numpy.full(4, 7007, numpy.float32)
    registry.publish("many", save(tensors))
    before = _reads(shared_http)
    await visit.open("/models/many/compare?first=1&second=2")
    assert _reads(shared_http) - before < 20
    rows = await visit.page.locator("section[aria-labelledby=tensors] tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["block.07000.scale", "float32 4", "float32 4", "4", "7", "0.1 %"]
    assert "none" in rows[1]
    assert len(rows) == 300
    assert "15,000 tensors" in await visit.text("section[aria-labelledby=tensors]")


def _reads(server: HttpServer) -> int:
    """Return how many calls have read versions."""
    lines = server.http.get("/metrics").text.splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if 'ReadVersion"' in line and "_count" in line)


async def test_everything_can_be_read_and_changed_without_scripts(
    browser: Any, shared_http: HttpServer, registry: ModelRegistry
) -> None:
    _fill(registry)
    async with visiting(browser, shared_http.http.port, java_script_enabled=False) as visit:
        await visit.open("/")
        assert "actor-2" in await visit.text("[data-table=lagging]")
        await visit.follow(visit.page.get_by_role("link", name="walker", exact=True).first)
        assert re.search("ago|just now", await visit.text(".versions tbody tr"))
        assert "return 300" in await visit.text(".versions tbody tr")
        await visit.follow(visit.page.get_by_role("link", name="production").first)
        await visit.follow(visit.page.get_by_role("link", name="Point to 3"))
        await visit.follow(visit.page.get_by_role("button", name="Move production to 3"))
        assert await visit.text("h1") == "production points to version 3"


async def test_the_keyboard_is_enough(visit: Visit, registry: ModelRegistry) -> None:
    _fill(registry)
    await visit.open("/")
    await visit.page.keyboard.press("Tab")
    assert await visit.page.evaluate("document.activeElement.innerText") == "Skip to the content"
    await visit.page.keyboard.press("Enter")
    for _ in range(50):
        await visit.page.keyboard.press("Tab")
        focused = await visit.page.evaluate(
            "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert focused[1] == "solid", focused
        if focused[0] == "walker":
            break
    await visit.enter()


async def test_a_page_that_does_not_exist_says_so_in_the_form_of_all_pages(visit: Visit) -> None:
    await visit.open("/models/nobody")
    assert await visit.text("h1") == "Not Found"
    assert await visit.text(".lead") == 'Looking up model "nobody": model "nobody" does not exist.'
    visit.complaints.clear()  # of the status 404


async def test_with_tokens_people_log_in_and_see_what_they_may_do(browser: Any, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    flags = ("--anonymous=nothing", f"--audit_log={tmp_path / 'audit'}")
    with http_server(archive, *flags) as server:

        def token(name: str, *scopes: str) -> str:
            given = [f"--scope={scope}" for scope in scopes]
            made = run_cogment("token", "create", f"--name={name}", *given, f"--archive_dir={archive}")
            assert made.returncode == 0, made.stderr
            return made.stdout.strip()

        admin = token("operator", "admin")
        reader = token("visitor", "read")
        with ModelRegistry(server.endpoint, token=admin) as registry:
            _fill(registry)
        async with visiting(browser, server.http.port) as visit:
            await visit.open("/models/walker?filter=archived+%3D+true")
            assert visit.page.url.endswith("/login?next=/models/walker%3Ffilter%3Darchived%2B%253D%2Btrue")
            await visit.page.get_by_label("Token").fill("wrong")
            await visit.enter()
            assert "does not know this token" in await visit.text("[role=alert]")
            visit.complaints.clear()  # of the status 403
            await visit.page.get_by_label("Token").fill(reader)
            await visit.enter()
            assert await visit.page.locator(".versions tbody th").all_inner_texts() == ["4", "3", "2", "1"]
            assert "You may not promote versions, move aliases or delete versions here" in await visit.text("main")
            await visit.open("/models/walker/versions/4")
            assert await visit.page.locator(".actions a").all_inner_texts() == ["Download"]
            await visit.open("/models/walker/aliases/production/move?version=3")
            assert await visit.page.get_by_role("button", name="Move").count() == 0
            assert "need the scope alias" in await visit.text("main")
            await visit.open("/models/walker/versions/4/delete")
            assert "You need the scope delete." in await visit.text("main")
            await visit.page.get_by_text("visitor").click()
            await visit.page.set_viewport_size({"width": 375, "height": 800})
            box = await visit.page.locator(".menu .card").bounding_box()
            assert 0 <= box["x"] < box["x"] + box["width"] <= 375
            assert await visit.page.locator(".scopes code").all_inner_texts() == ["read"]
            await visit.follow(visit.page.get_by_role("button", name="Log out"))
            await visit.page.get_by_label("Token").fill(admin)
            await visit.enter()
            await visit.open("/models/walker/aliases/production")
            assert "alias set from 3 to 4 by operator" in await visit.text(".timeline")
            await visit.follow(visit.page.get_by_role("link", name="Roll back to 3"))
            await visit.follow(visit.page.get_by_role("button", name="Move production to 3"))
            await visit.open("/models/walker/history")
            assert "alias set production 3 operator" in await visit.text("tbody")
            await _expect_other_tabs_to_end(visit)


async def _expect_other_tabs_to_end(visit: Visit) -> None:
    live, still = [await visit.page.context.new_page() for _ in range(2)]
    await live.goto(f"{visit.origin}/models/walker")
    await still.goto(f"{visit.origin}/models/walker/versions/4")
    await eventually(lambda: live.evaluate("document.documentElement.dataset.news > 0"), lambda: "news")
    await visit.follow(visit.page.get_by_role("button", name="Log out"))
    assert await visit.text("[role=status]") == "You have logged out."
    for other in (live, still):
        banner = other.get_by_role("alert")
        await banner.wait_for()
        assert "You are logged out" in await banner.inner_text()
    assert "Logged out" in await live.locator("[data-live-state]").inner_text()
    async with live.expect_navigation():
        await live.get_by_role("link", name="Log in again").click()
    assert live.url.endswith("/login?next=%2Fmodels%2Fwalker")


async def test_long_numbers_wrap(browser: Any, shared_http: HttpServer, registry: ModelRegistry) -> None:
    tensor = {"dtype": "X1", "shape": [2**62] * 64, "data_offsets": [0, 4]}
    header = json.dumps({"a": tensor, "b" * 500: tensor}).encode()
    for _ in range(2):
        registry.store("walker", len(header).to_bytes(8, "little") + header + b"1234")
    for size in (WIDE, NARROW):
        async with visiting(browser, shared_http.http.port, size) as visit:
            for path in ("/models/walker/versions/1", "/models/walker/compare?first=1&second=2"):
                await visit.open(path)
                boxes = ".scroll, main"
                widths = f"[...document.querySelectorAll('{boxes}')].map((each) => each.scrollWidth / each.clientWidth)"
                wide = await visit.page.evaluate(widths)
                assert max(wide) <= (1 if size == WIDE else 2), (path, size, wide)
                assert await visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


async def test_the_history_wraps_between_words(browser: Any, tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", f"--audit_log={tmp_path / 'audit'}") as server:
        with ModelRegistry(server.endpoint) as registry:
            _fill(registry)
            registry.set_alias("walker", "an-alias-with-a-name-that-takes-much-of-the-width-of-a-table", 4)
            registry.set_retention("walker", [RetentionRule("archived", "version_number >= 3", keep_last=2)])
            registry.set_retention("walker", [RetentionRule("any", "version_number >= 4", keep_last=3)])
        words = """[...document.querySelectorAll('tbody td, tbody th')].flatMap((cell) => {
            const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), broken = [];
            while (texts.nextNode()) for (const word of texts.currentNode.data.matchAll(/\\w+/g)) {
                const range = document.createRange();
                range.setStart(texts.currentNode, word.index);
                range.setEnd(texts.currentNode, word.index + word[0].length);
                if (range.getClientRects().length > 1) broken.push(word[0]);
            }
            return broken;
        })"""
        for size in (WIDE, NARROW):
            async with visiting(browser, server.http.port, size) as visit:
                await visit.open("/models/walker/history")
                assert "version_number" in await visit.text("tbody")
                assert await visit.page.evaluate(words) == []


async def test_an_alias_is_rolled_back_however_many_versions_came_since(browser: Any, tmp_path: Path) -> None:
    with http_server(tmp_path / "archive", f"--audit_log={tmp_path / 'audit'}") as server:
        with ModelRegistry(server.endpoint) as registry:
            for _ in range(20):
                registry.store("walker", b"weights")
            for number in (3, 2, 18):
                registry.set_alias("walker", "production", number)
            registry.set_alias("walker", "canary", 19)
            for _ in range(210):
                registry.publish("walker", b"weights")
        async with visiting(browser, server.http.port) as visit:
            await visit.open("/models/walker/aliases/production")
            offered = await visit.page.get_by_role("link", name=re.compile("^(Roll back|Point) to")).all_inner_texts()
            assert offered[:4] == ["Roll back to 2", "Roll back to 3", "Point to 17", "Point to 16"]
            assert "alias set from 2 to 18 by anonymous" in await visit.text(".timeline")
            await visit.open("/models/walker/history")
            assert await visit.page.get_by_text("alias set").count() == 0  # 200 newer changes are before it
            await visit.follow(visit.page.get_by_role("link", name="Older changes"))
            assert await visit.page.get_by_text("alias set").count() == 4
            await visit.follow(visit.page.get_by_role("link", name="Newest changes"))
            await visit.follow(visit.page.get_by_role("link", name="Changes of production"))
            assert await visit.text("h1") == "History of production"
            assert await visit.page.locator("tbody tr").count() == 3


async def test_the_page_of_a_model_offers_what_may_be_done_with_an_alias(browser: Any, tmp_path: Path) -> None:
    place = str(tmp_path / "archive")
    scopes = ("--scope=read", "--scope=alias:walker/canary")
    made = run_cogment("token", "create", f"--archive_dir={place}", "--name=ops", *scopes)
    with http_server(tmp_path / "archive") as server:
        with ModelRegistry(server.endpoint) as registry:
            registry.store("walker", b"weights", alias="production")
            registry.set_alias("walker", "canary", 1)
        async with visiting(browser, server.http.port) as visit:
            await visit.open("/login")
            await visit.page.get_by_label("Token").fill(made.stdout.strip())
            await visit.enter()
            await visit.open("/models/walker")
            for _ in range(2):
                links = visit.page.get_by_role("link", name=re.compile("roll it back"))
                assert await links.evaluate_all("(all) => all.map((each) => each.pathname)") == [
                    "/models/walker/aliases/canary"
                ]
                with ModelRegistry(server.endpoint) as registry:
                    registry.set_alias("walker", "newer", 1)  # so the part is rendered again
                await visit.page.get_by_role("link", name="newer").first.wait_for()


@pytest.mark.parametrize("size", [(375, 800), (768, 900), (1400, 900)])
async def test_tables_fit_and_links_can_be_tapped(browser: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    with http_server(tmp_path / "archive", f"--audit_log={tmp_path / 'audit'}") as server:
        with ModelRegistry(server.endpoint) as registry:
            _fill(registry)
            for number in (2, 3):
                notes = {"git_commit": f"{number}" * 40, "env": "Walker2d-v5"}
                metrics = {"kl": 0.0012345 * number, "episode_length": 987.0, "learning_rate": 3e-4 / number}
                registry.update_version("walker", number, tags=notes, metrics=metrics)
            registry.set_alias("walker", "baseline-for-the-paper-2026", 2)
            registry.store("vision.encoder-large-224-distilled", b"weights")
        async with visiting(browser, server.http.port, size) as visit:
            for path in PATHS:
                await visit.open(path)
                widths = """[...document.querySelectorAll('main, .scroll, section')]
                    .map((each) => each.scrollWidth - each.clientWidth)"""
                assert not any(await visit.page.evaluate(widths)), path
                broken = """[...document.querySelectorAll('td .chip.alias, th .chip.alias')]
                    .some((each) => each.textContent.length < 13 && each.offsetHeight > 36)"""
                assert not await visit.page.evaluate(broken), path
                low = """[...document.querySelectorAll('a, button, input, select, summary')]
                    .filter((each) => each.checkVisibility() && !each.matches('.skip'))
                    .map((each) => [each.getBoundingClientRect().height, each.textContent])
                    .filter(([height]) => height && height < 22)"""
                assert size[0] > 400 or not await visit.page.evaluate(low), path
            visit.complaints.clear()  # of statuses


async def test_the_ticks_of_a_curve_differ(visit: Visit, registry: ModelRegistry) -> None:
    for step in range(5):
        registry.store("walker", b"%d" % step, metrics={"learning_rate": 3e-4 - 5e-5 * step})
    await visit.page.add_init_script(
        """window.drawn = [];
        const draw = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
            window.drawn.push(text);
            return draw.call(this, text, ...place);
        };"""
    )
    await visit.open("/models/walker")
    await visit.wait_for("window.drawn.includes('0.0002')")
    assert "0" not in await visit.page.evaluate("window.drawn")


async def test_a_metric_that_few_versions_have_is_drawn_as_points(visit: Visit, registry: ModelRegistry) -> None:
    for step in range(70):
        registry.publish(
            "walker", b"%d" % step, metrics={"loss": 1 / (step + 1), **({"score": 1.0} if step == 9 else {})}
        )
    await visit.page.add_init_script(
        """window.arcs = 0;
        const arc = Path2D.prototype.arc;
        Path2D.prototype.arc = function (...place) { window.arcs += 1; return arc.call(this, ...place); };"""
    )
    await visit.open("/models/walker")
    await visit.wait_for("window.arcs > 0")
    assert await visit.page.evaluate("window.arcs") < 20  # the score alone, not the line of the loss


async def test_very_many_tags_do_not_make_long_pages(visit: Visit, registry: ModelRegistry) -> None:
    many = {f"tag-{number:05}": "x" * 200 for number in range(1000)}
    numbers = {f"metric-{number:05}": float(number) for number in range(1000)}
    registry.create_model("walker", user_data=many)
    registry.update_model("walker", tags=many)
    registry.store("walker", b"1", tags=many, metrics=numbers)
    registry.store("walker", b"2", metrics=dict.fromkeys(numbers, 1.0))
    for path, said in (
        ("/models/walker", "And 1,900 more, which are in the JSON."),
        ("/models/walker/versions/1", "And 900 more, which are in the JSON."),
        ("/models/walker/versions/1/notes", "These are 100 of 1,000; the others stay as they are."),
        ("/models/walker/compare?first=1&second=2", "Only 100 of 1,000 entries are shown, those that differ first."),
    ):
        await visit.open(path)
        assert said in await visit.text("main"), path
        assert len(await visit.page.content()) < 150_000, path
    await visit.open("/models/walker/versions/1/notes")
    await visit.page.get_by_label("tag-00003").fill("y")
    await visit.follow(visit.page.get_by_role("button", name="Save"))
    assert registry.describe_version("walker", 1).tags == {**many, "tag-00003": "y"}
    await visit.open("/models/walker/versions/1")
    link = visit.page.get_by_role("link", name="in the JSON").first
    assert await link.get_attribute("href") == "/api/v1/models/walker/versions/1"


async def test_versions_are_named_by_aliases_too_and_what_is_wrong_is_said(
    visit: Visit, registry: ModelRegistry
) -> None:
    _fill(registry)
    await visit.open("/models/walker/versions/1")
    other = visit.page.get_by_label("Compare with version")
    assert await other.input_value() == ""
    await other.fill("production")
    await visit.follow(visit.page.get_by_role("button", name="Compare"))
    assert "Version 4" in await visit.text("section[aria-labelledby=records] thead")
    await visit.page.get_by_label("with", exact=True).fill("canary")
    await visit.follow(visit.page.get_by_role("button", name="Compare"))
    assert await visit.text("[role=alert]") == (
        'The model has no alias "canary"; the second version must be the number of a version, or an alias.'
    )
    await visit.open("/models/walker/aliases/canary/move")
    assert await visit.page.get_by_role("alert").count() == 0
    for text, problem in (
        ("99", "The model has no version 99; the version must be the number of a version, or an alias."),
        ("none", 'The model has no alias "none"; the version must be the number of a version, or an alias.'),
        ("0", "The version must be the number of a version, 1 or more, or an alias."),
    ):
        await visit.page.get_by_label("Version").fill(text)
        await visit.enter()
        assert await visit.text("#version-problem") == problem
    await visit.page.get_by_label("Version").fill("production")
    await visit.enter()
    assert "it will point to version 4" in await visit.text(".effects")
    await visit.follow(visit.page.get_by_role("button", name="Create canary"))
    assert registry.aliases("walker")["canary"].version_number == 4
