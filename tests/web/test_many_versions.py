"""The pages of a model with 100,000 versions, in a real browser; how long they take is measured by the benchmarks."""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from benchmarks import archives
from cogment_model_registry import ModelRegistry
from cogment_model_registry.storage.filesystem import layout, reading
from tests.waiting import wait_until
from tests.web.browser import chromium, visiting
from tests.web.http import http_server

VERSIONS = 100_000
WITH_FILES = 100
"""How many of the newest versions have files too: those that pages look up one by one."""


def _make(archive: Path) -> str:
    """Write an archive that has the records of many versions, each with two metrics; return the id of the model.

    A start reads no folder that is as the records say, so most versions need no files here.
    """
    archives.generate(archive, 1, VERSIONS - WITH_FILES + 1, VERSIONS)
    model_id = archives.model_name(0)
    with http_server(archive) as server, ModelRegistry(server.endpoint) as registry:
        registry.find_versions(model_id, limit=1)  # which waits until the records are complete
        assert server.process.stop() == 0
    folder = (archive / model_id).stat()
    with closing(sqlite3.connect(archive / layout.CATALOG_NAME)) as database, database:
        [(model,)] = database.execute("SELECT model FROM models WHERE model_id = ?", (model_id,))
        database.execute(
            "WITH RECURSIVE others (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM others WHERE n < ?) "
            "INSERT INTO versions SELECT model, n, created - number + n, data_hash, data_size, revision, signature "
            "FROM versions, others WHERE model = ? AND number = ?",
            (VERSIONS - WITH_FILES, model, VERSIONS),
        )
        metrics = (
            (model, number, name, value)
            for number in range(1, VERSIONS + 1)
            for name, value in (("loss", 1 / number), ("return", float(number * 7919 % VERSIONS)))
        )
        database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", metrics)
        database.execute(
            "UPDATE models SET folder_inode = ?, folder_changed = ?, folder_complete = 1",
            (str(folder.st_ino), folder.st_ctime_ns),
        )
    wait_until(lambda: time.time_ns() - folder.st_ctime_ns > reading.FOLDER_SETTLING_NS)  # before, a start reads it
    return model_id


async def test_a_model_with_very_many_versions_is_shown_filtered_and_paged(tmp_path: Path) -> None:
    async with chromium() as browser:
        model_id = _make(tmp_path / "archive")
        path = f"/models/{model_id}"
        with http_server(tmp_path / "archive") as server:
            registry = ModelRegistry(server.endpoint, timeout=600)
            registry.find_versions(model_id, limit=1)
            async with visiting(browser, server.http.port) as visit:
                versions = visit.page.locator(".versions tbody th")
                await visit.open(path)
                assert await versions.all_inner_texts() == [str(VERSIONS - at) for at in range(50)]
                assert "100,000" in await visit.text("[data-part=facts]")
                await visit.wait_for("document.querySelectorAll('.curve canvas').length == 2")
                await visit.follow(visit.page.get_by_role("link", name="Next page"))
                assert (await versions.all_inner_texts())[0] == str(VERSIONS - 50)
                await visit.follow(visit.page.get_by_role("link", name="Order by return, highest first"))
                best = next(each for each in range(1, VERSIONS) if each * 7919 % VERSIONS == VERSIONS - 1)
                assert (await versions.all_inner_texts())[0] == str(best)
                await visit.page.get_by_label("Filter").fill("metrics.return < 2 AND version_number > 10")
                await visit.page.get_by_label("Order by", exact=True).fill("version_number")
                await visit.follow(visit.page.get_by_role("button", name="Apply"))
                expected = [each for each in range(11, VERSIONS + 1) if each * 7919 % VERSIONS < 2]
                assert await versions.all_inner_texts() == [str(each) for each in expected]
                await visit.open("/")
                await visit.wait_for("document.documentElement.dataset.news > 0")
                assert f"{model_id} 100000 100,000" in await visit.text("[data-table=models] tr")
                await visit.open(f"{path}/versions/{VERSIONS}")
                assert await visit.text("h1") == f"Version {VERSIONS} archived latest"
            registry.close()
