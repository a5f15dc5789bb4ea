"""Every change that was acknowledged has a line, also when the server was killed right after."""

import threading
from pathlib import Path
from random import Random

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.processes import server_process
from tests.waiting import wait_until

KILLS = 3
WRITERS = 3

Acknowledged = list[tuple[str, int, str]]
"""What was changed: how, of which version, and of which alias."""


def change_forever(registry: ModelRegistry, writer: int, acknowledged: Acknowledged) -> None:
    """Make changes until one fails, and note each one that was acknowledged."""
    chance = Random(writer)
    while True:
        kind = chance.choice(["publish", "store", "alias", "delete"])
        alias = f"alias-{writer}"
        version = (registry.publish if kind == "publish" else registry.store)("policy", b"x")
        acknowledged.append(("version created", version.number, ""))
        if kind == "alias":
            registry.set_alias("policy", alias, version)
            acknowledged.append(("alias set", version.number, alias))
        if kind == "delete":
            registry.delete_version("policy", version)
            acknowledged.append(("version deleted", version.number, ""))


def change_until_killed(endpoint: str, writer: int, acknowledged: Acknowledged) -> None:
    """Make changes until the server is gone, and note each one that was acknowledged."""
    with ModelRegistry(endpoint, retry_seconds=0, timeout=20) as registry:
        with pytest.raises(errors.ModelRegistryError) as caught:
            change_forever(registry, writer, acknowledged)
        assert isinstance(caught.value, errors.UnavailableError) or caught.value.may_be_done, caught.value


def test_every_acknowledged_change_has_a_line_after_kills(tmp_path: Path) -> None:
    acknowledged: Acknowledged = []
    flags = (f"--audit_log={tmp_path / 'audit'}", "--cache_max_items=5")
    for kill in range(KILLS):
        with server_process(tmp_path / "archive", *flags) as server:
            endpoint, enough = f"grpc://127.0.0.1:{server.port}", len(acknowledged) + 5 + kill
            writers = [
                threading.Thread(target=change_until_killed, args=(endpoint, writer, acknowledged))
                for writer in range(WRITERS)
            ]
            for each in writers:
                each.start()
            try:
                wait_until(lambda: len(acknowledged) >= enough, lambda: acknowledged)  # noqa: B023 # in this turn
            finally:
                server.kill()
                for each in writers:
                    each.join()
        for path in (tmp_path / "audit").glob("*.jsonl"):
            with path.open("ab") as file:
                file.write(b'{"time":"2026')  # as a kill in the middle of a write leaves it
    with (
        server_process(tmp_path / "archive", *flags) as server,
        ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry,
    ):
        version = registry.publish("policy", b"last")
        found = registry.history("policy", limit=None)
    changes = [(entry.change, entry.version_number, entry.alias) for entry in found]
    assert changes[0] == ("version created", version.number, "")
    assert not {*acknowledged} - {*changes}
