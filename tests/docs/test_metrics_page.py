"""Every metric of a real server is explained in docs/metrics.md, and the metrics that the pages use exist."""

import asyncio
import json
import re
import ssl
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from cogment_model_registry.records.consumers import Consumer
from cogment_model_registry.server.registration import State
from cogment_model_registry.settings import MIB, Settings
from cogment_model_registry.testing.server import serving
from cogment_model_registry.wire import consumers, lifecycle
from tests.certificates import Authority, connected_over_tls
from tests.client import Client, connected
from tests.several import settings_of, several_servers
from tests.waiting import PATIENCE_SECONDS, wait_until

DOCUMENTS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCUMENTS / "metrics.md").read_text()
DASHBOARD: dict[str, Any] = json.loads((DOCUMENTS / "grafana-dashboard.json").read_text())

NAME = r"(?:cogment_model_registry|process)_[a-z_]+"
ROWS = (
    "Calls and latencies",
    "Transfers",
    "Versions, memory budget and evictions",
    "Watchers",
    "Consumers",
    "Archive and fsync",
    "Registration and health",
    "Process",
    "Other servers",
    "HTTP",
)


async def shared_metrics(database: str, folder: Path) -> list[Metric]:
    """Return what a server exposes that shares its catalog."""
    settings = replace(settings_of(database, folder), metrics_port=0)
    async with several_servers(settings, 1) as (server,), connected(server.port) as client:
        await client.create_model("m")
        await client.publish("m", b"data")

        def scrape() -> str:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{server.metrics_port}/metrics", timeout=PATIENCE_SECONDS
            ) as reply:
                return str(reply.read().decode())

        return list(text_string_to_metric_families(await asyncio.to_thread(scrape)))


@pytest.fixture
async def metrics(tmp_path: Path, database: str) -> list[Metric]:
    """What servers expose after each kind of call: one alone, and one that shares its catalog."""
    found = {metric.name: metric for metric in await shared_metrics(database, tmp_path / "shared")}
    for metric in await own_metrics(tmp_path):
        if metric.samples or metric.name not in found:
            found[metric.name] = metric
    return [*found.values()]


async def own_metrics(tmp_path: Path) -> list[Metric]:
    """Return what a server exposes after each kind of call."""
    authority = Authority(tmp_path)
    tls = authority.issue().options
    settings = Settings(
        metrics_port=0,
        http_port=0,
        cache_max_bytes=MIB,
        cache_max_items=1,
        grace_seconds=0,
        audit_log=str(tmp_path / "audit"),
        **tls,  # type: ignore[arg-type]
    )
    async with serving(tmp_path / "archive", settings) as server, connected_over_tls(server.port, authority) as client:
        await client.create_model("m")
        await client.store("m", b"archived")
        for data in (b"transient", b"another"):
            await client.publish("m", data)
        await client.data("m", -1)
        await client.data("m", 1)
        report = Consumer("m", "actor", 1, "active")
        request = consumers.ReportConsumerRequest(consumer=consumers.consumer_message(report))
        lifecycle_client = Client(client.channel, lifecycle.SERVICE_NAME)
        await lifecycle_client.unary("ReportConsumer", request, consumers.ReportConsumerReply)

        def get(port: int | None, path: str) -> str:
            trusting = ssl.create_default_context(cafile=authority.certificate)
            address = f"https://127.0.0.1:{port}{path}"
            with urllib.request.urlopen(address, timeout=PATIENCE_SECONDS, context=trusting) as reply:
                return str(reply.read().decode())

        await asyncio.to_thread(get, server.http_port, "/api/v1/models")

        def scrape() -> str:
            text = get(server.metrics_port, "/metrics")
            return text if "http_requests_total{" in text else ""  # the process reports once a second

        text = await asyncio.to_thread(wait_until, scrape)
        return list(text_string_to_metric_families(text))


def documented_name(metric: Metric) -> str:
    """Return the name of a metric; that of a histogram is the name of its series without their endings."""
    return f"{metric.name}_total" if metric.type == "counter" else str(metric.name)


def labels_of(metric: Metric) -> set[str]:
    return {label for sample in metric.samples for label in sample.labels} - {"le"}


def series_of(metrics: Iterable[Metric]) -> dict[str, set[str]]:
    """Return the names of all series, each with its labels."""
    return {sample.name: set(sample.labels) for metric in metrics for sample in metric.samples}


def page_rows() -> Iterator[tuple[str, str, set[str], str]]:
    """Yield the rows of the page's tables of metrics: name, type, labels, meaning."""
    for line in PAGE.splitlines():
        match = re.fullmatch(rf"\| `({NAME})` \| (\w+) \|([^|]*)\| (.+) \|", line)
        if match:
            yield match[1], match[2], set(re.findall(r"`(\w+)`", match[3])), match[4]


def test_the_page_has_exactly_the_metrics_that_exist_with_type_and_labels(metrics: list[Metric]) -> None:
    exposed = sorted((documented_name(metric), metric.type, sorted(labels_of(metric))) for metric in metrics)
    assert sorted((name, kind, sorted(labels)) for name, kind, labels, _ in page_rows()) == exposed


def test_every_metric_that_the_documents_name_exists(metrics: list[Metric]) -> None:
    known = {documented_name(metric) for metric in metrics} | set(series_of(metrics))
    for document in ("metrics.md", "operations.md"):
        text = (DOCUMENTS / document).read_text()
        assert set(re.findall(NAME, text)) <= known, document


def test_the_page_explains_every_state_of_the_registration() -> None:
    section = PAGE.partition("| state |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [state.value for state in State]


def test_the_label_values_on_the_page_match_the_server(metrics: list[Metric]) -> None:
    values = {
        (documented_name(metric).removeprefix("cogment_model_registry_"), label): {
            sample.labels[label] for sample in metric.samples
        }
        for metric in metrics
        for label in labels_of(metric)
    }
    assert values["versions", "tier"] == values["version_bytes", "tier"] == {"transient", "archived"}
    assert values["evictions_total", "reason"] == {"items", "bytes", "share"}
    assert values["sync_seconds", "kind"] == {"file", "directory"}
    assert values["archive_operation_seconds", "operation"] >= {"write", "commit", "read", "write_model"}


def expressions(panels: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the title of each panel with each expression in it."""
    for panel in panels:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def rules() -> list[str]:
    [block] = re.findall(r"^```yaml\n(groups:.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [rule["expr"] for group in yaml.safe_load(block)["groups"] for rule in group["rules"]]


def test_every_panel_of_the_dashboard_is_in_a_row() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == list(ROWS)
    assert panels[0]["type"] == "row"
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels if panel["type"] != "row")
    assert "datasource" in [variable["name"] for variable in DASHBOARD["templating"]["list"]]


def test_no_two_panels_of_the_dashboard_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_the_dashboard_and_the_alerts_use_existing_series_and_labels(metrics: list[Metric]) -> None:
    series = series_of(metrics)
    asked = [*expressions(DASHBOARD["panels"]), *(("an alarm", rule) for rule in rules())]
    for title, expression in asked:
        assert expression.count("(") == expression.count(")"), (title, expression)
        names = re.findall(rf"\b(?:{NAME}|up)\b", expression)
        assert names, (title, expression)
        assert {name for name in names if name != "up"} <= set(series), (title, expression)
        for name, selector in re.findall(rf"({NAME}){{([^}}]*)}}", expression):
            selected = set(re.findall(r"(\w+)\s*[!=]", selector)) - {"instance", "job"}
            assert selected <= series[name], (title, expression)


def test_the_dashboard_shows_every_metric(metrics: list[Metric]) -> None:
    text = " ".join(expression for _, expression in expressions(DASHBOARD["panels"]))
    shown = set(re.findall(NAME, text))
    for metric in metrics:
        assert shown & {documented_name(metric), *(sample.name for sample in metric.samples)}, metric.name
