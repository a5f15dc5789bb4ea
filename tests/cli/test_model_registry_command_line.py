"""`cogment client model_registry` as a user runs it: arguments, files, pipes, exit codes, signals, a terminal."""

import fcntl
import hashlib
import json
import os
import random
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, Progress
from cogment_model_registry.cli import presentation
from cogment_model_registry.cli.model_registry import for_each, model_registry
from cogment_model_registry.records.documents import time_text, version_as_json
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from tests.in_process import run_in_process
from tests.ports import free_port
from tests.processes import START_SECONDS, ServerProcess, clean_environment, run, server_process
from tests.terminal import on_terminal
from tests.waiting import wait_until

WORDS = ("client", "model_registry")
COMMANDS = sorted(model_registry.commands)
DATA = b"weights 1"
ENDPOINT = "COGMENT_MODEL_REGISTRY_ENDPOINT"


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    """The Python client, to prepare and to check."""
    with ModelRegistry(shared_endpoint) as client:
        yield client


class Cogment:
    """Runs `cogment client model_registry ...` in a directory."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        self.directory = directory
        self.environment = {**clean_environment(), ENDPOINT: endpoint}
        # With it, Python ignores a short write, and reports no error.
        self.environment.pop("PYTHONUNBUFFERED", None)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cogment_model_registry", *WORDS, *arguments]

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command that reads and writes no bytes on the standard streams."""
        return run_in_process(
            *WORDS, *arguments, environment={ENDPOINT: self.environment[ENDPOINT]}, cwd=self.directory
        )

    def output(self, *arguments: str) -> str:
        """Return the output of a command, which must succeed with an empty standard error."""
        result = self.run(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    def piped(self, *arguments: str, data: bytes = b"") -> bytes:
        """Return the bytes that a separate process writes, which must succeed with an empty standard error."""
        result = subprocess.run(
            self.command(*arguments),
            input=data,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
            cwd=self.directory,
            env=self.environment,
        )
        assert (result.returncode, result.stderr) == (0, b"")
        return result.stdout

    def json(self, *arguments: str) -> Any:
        """Return the JSON that a command prints."""
        return json.loads(self.output(*arguments, "--json"))

    @contextmanager
    def started(self, *arguments: str, **streams: Any) -> "Iterator[subprocess.Popen[bytes]]":
        """Return a context manager for a command that does not terminate."""
        with self.started_command(self.command(*arguments), **streams) as process:
            yield process

    @contextmanager
    def started_command(self, command: list[str], **streams: Any) -> "Iterator[subprocess.Popen[bytes]]":
        """Return a context manager for a command that does not terminate, with all of its arguments."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
        with subprocess.Popen(command, cwd=self.directory, env=self.environment, **streams) as process:
            try:
                yield process
            finally:
                process.kill()


@pytest.fixture
def cogment(shared_endpoint: str, tmp_path: Path) -> Cogment:
    (tmp_path / "w").write_bytes(DATA)
    return Cogment(shared_endpoint, tmp_path)


def failed(result: "subprocess.CompletedProcess[str]", code: int, *words: str) -> bool:
    """Return whether a command failed with an exit code and one line on standard error that contains these parts."""
    text = result.stderr
    assert not result.stdout
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1, text
    assert text.rstrip("\n").isprintable()
    assert all(word in text for word in words), text
    assert result.returncode == code, text
    return True


def line_of(process: "subprocess.Popen[bytes]") -> bytes:
    """Return the next line that a command prints, in bounded time and without buffering."""
    assert process.stdout
    line = b""
    while not line.endswith(b"\n"):
        assert select.select([process.stdout], [], [], START_SECONDS)[0], line
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, (line, process.stderr and process.stderr.read())
        line += byte
    return line


# Models.


def test_a_model_is_created_shown_listed_and_deleted(cogment: Cogment, registry: ModelRegistry) -> None:
    assert cogment.output("create_model", "m", "--user_data", "a=1", "--user_data=b=x y=z") == "created model m\n"
    assert registry.get_model("m").user_data == {"a": "1", "b": "x y=z"}
    assert cogment.output("list_models").splitlines() == [
        "MODEL  LATEST  VERSIONS  ARCHIVED  UPDATED  ALIASES  USER_DATA",
        'm           -         0         0  -        -        a=1 b="x y=z"',
    ]
    assert "versions   0" in cogment.output("show_model", "m")
    assert cogment.output("create_model", "m", "--no_replace") == "model m exists, and stays as it is\n"
    assert cogment.json("create_model", "m", "--no_replace")["user_data"] == {"a": "1", "b": "x y=z"}
    said = cogment.output("create_model", "m")
    assert said == 'replaced the user_data of model m, which was a=1 b="x y=z"\n'
    assert registry.get_model("m").user_data == {}
    said = cogment.output("create_model", "m", "--user_data=a=1")
    assert said == "replaced the user_data of model m, which was empty\n"
    assert cogment.output("delete_model", "m", "--yes") == "deleted model m\n"
    assert registry.list_models() == []
    assert cogment.output("list_models", "--quiet") == ""


def test_models_as_json_have_the_documented_fields(cogment: Cogment, registry: ModelRegistry) -> None:
    assert cogment.json("create_model", "m", "--user_data=a=é") == {"model_id": "m", "user_data": {"a": "é"}}
    shown = cogment.json("show_model", "m")
    assert shown["latest_version"] is None
    assert cogment.json("list_models") == [shown]
    stored = registry.store("m", DATA)
    registry.publish("m", DATA)
    registry.set_alias("m", "production", stored)
    shown = cogment.json("show_model", "m")
    assert cogment.json("list_models") == [shown]
    latest = shown.pop("latest_version")
    assert shown == {
        "model_id": "m",
        "user_data": {"a": "é"},
        "versions": 2,
        "archived_bytes": len(DATA),
        "aliases": {"production": stored.number},
    }
    assert latest["number"] == stored.number + 1
    assert cogment.json("delete_model", "m", "--yes") == {"model_id": "m"}


def test_models_are_listed_with_latest_count_size_and_time(cogment: Cogment, registry: ModelRegistry) -> None:
    for number in range(40):  # more than one request asks for
        registry.create_model(f"model-{number:02}")
    registry.publish("walker", b"x" * 100)
    registry.store("walker", b"x" * 1000)
    latest = registry.publish("walker", b"x" * 2000, user_data={"step": "3"})
    registry.create_model("walker", user_data={"a": "1"})
    registry.set_alias("walker", "production", 2)
    head, *rows = cogment.output("list_models").splitlines()
    assert head.split() == ["MODEL", "LATEST", "VERSIONS", "ARCHIVED", "UPDATED", "ALIASES", "USER_DATA"]
    assert [row.split()[0] for row in rows] == [*(f"model-{number:02}" for number in range(40)), "walker"]
    assert rows[0].split() == ["model-00", "-", "0", "0", "-", "-"]
    created = time_text(latest.created_ns)
    assert rows[-1].split() == ["walker", "3", "3", "1000", created, "production=2", "a=1"]
    [*_, walker] = cogment.json("list_models")
    assert walker["latest_version"]["number"] == 3
    assert (walker["versions"], walker["archived_bytes"], walker["aliases"]) == (3, 1000, {"production": 2})
    assert cogment.output("list_models", "--quiet").splitlines()[-1] == "walker"


def test_a_model_that_is_deleted_during_a_listing_is_left_out(registry: ModelRegistry) -> None:
    there = registry.create_model("there")
    assert for_each([ModelInfo("deleted"), there], lambda model: registry.get_model(model.model_id)) == [there]


def test_texts_that_could_break_a_line_or_a_terminal_are_escaped(cogment: Cogment, registry: ModelRegistry) -> None:
    user_data = {"line": "a\nb", "colour": "\x1b[31m", "empty": "", "k=": "v", "bidi": "\u202e"}
    registry.create_model("a b", user_data=user_data)
    registry.publish("a b", DATA, user_data=user_data)
    for words in (["list_models"], ["show_model", "a b"], ["list_versions", "a b"], ["watch", "a b", "--count=1"]):
        output = cogment.output(*words)
        assert output.replace("\n", "").isprintable()
        assert r'bidi="\u202e" colour="\u001b[31m" empty="" "k="=v line="a\nb"' in output
    [model] = cogment.json("list_models")
    assert (model["model_id"], model["user_data"]) == ("a b", user_data)


# Versions.


def test_versions_are_published_stored_listed_and_shown(cogment: Cogment) -> None:
    cogment.output("create_model", "m")
    assert cogment.output("publish", "m", "w", "--user_data=step=1") == "published version 1 of model m: 9 B\n"
    assert cogment.piped("store", "m", "-", data=b"x" * 2048) == b"stored version 2 of model m: 2.0 KiB\n"
    head, first, second = cogment.output("list_versions", "m").splitlines()
    assert head.split() == ["VERSION", "KIND", "CREATED", "SIZE", "USER_DATA"]
    number, kind, created, size, user_data = first.split()
    assert (number, kind, size, user_data) == ("1", "transient", "9", "step=1")
    assert datetime.fromisoformat(created).tzinfo
    assert second.split()[:2] + second.split()[3:] == ["2", "archived", "2048"]
    assert cogment.output("list_versions", "m", "--quiet") == "1\n2\n"
    details = dict(line.split(maxsplit=1) for line in cogment.output("show_version", "m", "1").splitlines())
    assert details["data_hash"] == b64encode(hashlib.sha256(DATA).digest()).decode()
    assert (details["size"], details["created"]) == ("9", created)


@pytest.mark.parametrize("call", ["publish", "store"])
def test_a_version_is_stored_with_its_tags_metrics_and_alias(cogment: Cogment, call: str) -> None:
    flags = ["--tag=stage=new", "--tag=by=me", "--metric=return=480.5", "--alias=best"]
    assert "version 1 of model m" in cogment.output(call, "m", "w", *flags)
    [version] = cogment.json("find_versions", "m")
    assert (version["tags"], version["metrics"], version["aliases"]) == (
        {"stage": "new", "by": "me"},
        {"return": 480.5},
        ["best"],
    )
    assert failed(cogment.run(call, "m", "w", "--metric=return=high"), 2, "'return'", "must be a number")


@pytest.mark.parametrize("call", ["publish", "store"])
def test_a_quiet_upload_prints_only_the_number(cogment: Cogment, call: str) -> None:
    assert [cogment.output(call, "m", "w", "--quiet") for _ in range(2)] == ["1\n", "2\n"]


def test_versions_as_json_have_the_documented_fields(cogment: Cogment, registry: ModelRegistry) -> None:
    published = cogment.json("publish", "m", "w", "--user_data=a=1")
    info = registry.get_version("m")
    assert published == {
        "model_id": "m",
        "number": 1,
        "created_ns": info.created_ns,
        "created": time_text(info.created_ns),
        "archived": False,
        "data_hash": info.data_hash,
        "data_size_bytes": len(DATA),
        "user_data": {"a": "1"},
    }
    stored = cogment.json("store", "m", "w")
    assert stored["archived"] is True
    listed = cogment.json("list_versions", "m")
    known = {"tags": {}, "metrics": {}, "aliases": [], "revision": 1}
    assert listed == [{**published, **known}, {**stored, **known}]
    assert cogment.json("show_version", "m", "1") == published
    assert cogment.json("retrieve", "m", "1", "--output=out") == published
    lines = cogment.output("watch", "m", "--json", "--count=1").splitlines()
    assert [json.loads(line) for line in lines] == [stored]


@pytest.mark.parametrize(
    "flags", [["-2"], ["--version=-2"], ["--version", "-2"], ["--json", "-2"], ["--timeout=9", "--version=2"]]
)
def test_a_version_is_named_by_a_number_that_may_be_negative(
    cogment: Cogment, registry: ModelRegistry, flags: list[str]
) -> None:
    for _ in range(3):
        registry.publish("m", DATA)
    quiet = [] if "--json" in flags else ["--quiet"]
    output = cogment.output("show_version", "m", *flags, *quiet)
    assert (json.loads(output)["number"] if "--json" in flags else int(output)) == 2
    assert cogment.output("show_version", *flags, "m", *quiet) == output


def test_a_model_name_that_looks_like_a_flag_follows_two_dashes(cogment: Cogment) -> None:
    # The server refuses such names; the message shows that it received this one.
    assert failed(cogment.run("show_version", "--", "-2"), 1, 'the latest version of model "-2"')
    assert failed(cogment.run("show_version", "--quiet", "--", "-2", "-3"), 1, 'version -3 of model "-2"')


def test_a_missing_model_is_created_unless_no_create_is_given(cogment: Cogment, registry: ModelRegistry) -> None:
    for flag in ("--no-create", "--no_create"):
        assert failed(cogment.run("publish", "m", "w", flag), 3, '"m"')
    assert registry.list_models() == []
    cogment.output("publish", "m", "w", "--create")
    assert [model.model_id for model in registry.list_models()] == ["m"]


# Files, pipes and standard streams.


def test_standard_input_and_output_carry_bytes_unchanged(cogment: Cogment) -> None:
    data = random.Random(1).randbytes(5_000_000)
    assert cogment.piped("publish", "m", "-", "--quiet", data=data) == b"1\n"
    assert cogment.piped("retrieve", "m") == data
    assert cogment.output("retrieve", "m", "--output=out") == "retrieved version 1 of model m: 4.8 MiB\n"
    assert (cogment.directory / "out").read_bytes() == data


def test_redirected_input_is_read_from_its_position(cogment: Cogment, registry: ModelRegistry) -> None:
    with (cogment.directory / "w").open("rb", buffering=0) as file:
        file.seek(3)
        with cogment.started("publish", "m", "-", stdin=file) as process:
            assert process.wait(START_SECONDS) == 0
    assert registry.retrieve("m") == DATA[3:]


def test_input_of_unknown_size_can_be_published(cogment: Cogment, registry: ModelRegistry) -> None:
    cogment.output("publish", "empty", "/dev/null")
    assert registry.retrieve("empty") == b""
    cogment.output("publish", "version", "/proc/version")
    assert registry.retrieve("version") == Path("/proc/version").read_bytes()


def test_archived_versions_are_listed_shown_retrieved_and_watched(cogment: Cogment, registry: ModelRegistry) -> None:
    for call, data in ((registry.store, b"1"), (registry.store, b"2"), (registry.publish, b"3")):
        call("m", data)
    assert cogment.output("list_versions", "m", "--archived", "--quiet") == "1\n2\n"
    assert cogment.output("show_version", "m", "--archived", "--quiet") == "2\n"
    assert cogment.output("show_version", "m", "-2", "--archived", "--quiet") == "1\n"
    assert failed(cogment.run("show_version", "m", "-3", "--archived"), 3, "only 2 archived versions")
    assert failed(cogment.run("retrieve", "m", "3", "--archived"), 3, "version 3", "is transient, not archived")
    assert cogment.piped("retrieve", "m", "--archived") == b"2"
    said = cogment.output("retrieve", "m", "--archived", "--output=best")
    assert said == "retrieved version 2 of model m: 1 B\n"
    assert cogment.output("watch", "m", "--archived", "--count=1", "--quiet") == "2\n"


def test_a_folder_is_stored_and_unpacked(cogment: Cogment, registry: ModelRegistry) -> None:
    (cogment.directory / "model").mkdir()
    (cogment.directory / "model/weights").write_bytes(b"weights")
    for command, model in (("publish", "model"), ("store", "model/")):
        assert cogment.json(command, "m", model)["user_data"] == {"format": "folder.tar"}
    assert cogment.output("retrieve", "m", "--output=out/") == "retrieved version 2 of model m: 2.0 KiB\n"
    assert (cogment.directory / "out/weights").read_bytes() == b"weights"
    assert failed(cogment.run("retrieve", "m", "--output=out/"), 1, "writing out/ failed: the folder is not empty")
    assert failed(cogment.run("retrieve", "m", "--output=out", "--force"), 2, "out is a folder")
    (cogment.directory / "model/link").symlink_to("/dev/null")
    assert failed(cogment.run("publish", "m", "model"), 1, '"link" is a link to something outside of the folder')
    registry.publish("file", b"weights")
    assert failed(cogment.run("retrieve", "file", "--output=new/"), 1, 'version 1 of model "file" is not a folder')
    assert sorted(os.listdir(cogment.directory)) == ["model", "out", "w"]


def test_retrieve_replaces_a_file_only_with_force(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", b"new")
    (cogment.directory / "out").write_bytes(b"old")
    (cogment.directory / "link").symlink_to("out")
    assert failed(cogment.run("retrieve", "m", "--output=out"), 2, "out", "--force")
    for name in (".", "/dev/null"):
        assert failed(cogment.run("retrieve", "m", f"--output={name}", "--force"), 2, name)
    assert failed(cogment.run("retrieve", "m", "--output=link"), 2, "link", "--force")
    assert (cogment.directory / "out").read_bytes() == b"old"
    for name in ("out", "link"):
        cogment.output("retrieve", "m", f"--output={name}", "--force")
        assert (cogment.directory / "out").read_bytes() == b"new"
        (cogment.directory / "out").write_bytes(b"old")
    assert (cogment.directory / "link").is_symlink()
    assert sorted(os.listdir(cogment.directory)) == ["link", "out", "w"]


def test_an_interrupted_retrieval_resumes_or_says_why_it_starts_over(
    cogment: Cogment, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("socket.SO_PEERCRED")  # a transfer through shared memory would be complete at once
    data = os.urandom(8 * 2**20)
    registry.store("m", data)

    def interrupt() -> None:
        """Interrupt a download, as a command would be interrupted."""

        def end(progress: Progress) -> None:
            if progress.done_bytes > len(data) - 2**20:
                raise InterruptedError

        with pytest.raises(InterruptedError):
            registry.download("m", cogment.directory / "out", resume=True, progress=end)

    left = ["out.cogment-partial", "out.cogment-partial.journal", "w"]
    interrupt()
    assert sorted(os.listdir(cogment.directory)) == left
    assert cogment.output("retrieve", "m", "--output=out", "--resume") == "retrieved version 1 of model m: 8.0 MiB\n"
    assert (cogment.directory / "out").read_bytes() == data
    assert failed(cogment.run("retrieve", "m", "--output=out", "--resume"), 2, "out", "--force")
    (cogment.directory / "out").unlink()

    interrupt()
    registry.publish("m", b"newer")
    with (cogment.directory / left[1]).open("ab") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        busy = cogment.run("retrieve", "m", "--output=out", "--resume")
        assert failed(busy, 1, "writing out failed: another download to this file is under way")
    with cogment.started("retrieve", "m", "--output=out", "--resume") as command:
        output, errors = command.communicate(timeout=START_SECONDS)
    assert (output, errors.count(b"\n")) == (b"retrieved version 2 of model m: 5 B\n", 1)
    assert errors.startswith(b'the partial download is of version 1 of model "m", and version 2 of model "m" is')
    assert sorted(os.listdir(cogment.directory)) == ["out", "w"]


def test_a_failed_retrieval_leaves_no_file(cogment: Cogment) -> None:
    assert failed(cogment.run("retrieve", "m", "--output=out"), 3)
    assert os.listdir(cogment.directory) == ["w"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["publish", "m", "missing"], ["missing", "No such file"]),
        (["retrieve", "there", "--output=missing/out"], ["missing/out", "No such file"]),
    ],
)
def test_an_error_of_the_system_is_reported_in_one_line(
    cogment: Cogment, registry: ModelRegistry, arguments: list[str], words: list[str]
) -> None:
    registry.publish("there", DATA)
    assert failed(cogment.run(*arguments), 1, *words)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["list_models"], ["retrieve", "m"], ["watch", "m"], ["status", "--json"]])
def test_a_full_disk_is_reported_in_one_line(cogment: Cogment, registry: ModelRegistry, arguments: list[str]) -> None:
    registry.publish("m", DATA)
    with open("/dev/full", "wb") as full, cogment.started(*arguments, stdout=full) as process:
        _, errors = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, errors.count(b"\n")) == (1, 1)
    assert b"No space left on device" in errors


@pytest.mark.parametrize(
    ("arguments", "code"), [(["list_models"], 0), (["retrieve", "m"], 1), (["publish", "m", "-"], 1)]
)
def test_closed_standard_streams_do_not_crash_a_command(
    cogment: Cogment, registry: ModelRegistry, arguments: list[str], code: int
) -> None:
    registry.publish("m", DATA)
    command = ["bash", "-c", 'exec "$@" <&- >&-', "bash", *cogment.command(*arguments)]
    result = subprocess.run(
        command, stderr=subprocess.PIPE, timeout=START_SECONDS, check=False, env=cogment.environment, text=True
    )
    assert (result.returncode, result.stderr.count("\n")) == (code, code)
    assert "Traceback" not in result.stderr


# Watching.


def test_watch_prints_one_line_per_version_at_once(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    with cogment.started("watch", "m", "--count=3") as process:
        assert line_of(process).split()[:2] == [b"1", b"transient"]
        registry.store("m", DATA, user_data={"a": "1"})
        line = line_of(process).split()
        assert (line[0], line[1], line[3], line[4]) == (b"2", b"archived", b"9", b"a=1")
        registry.publish("m", DATA)
        assert line_of(process).startswith(b"3  transient")
        assert process.communicate(timeout=START_SECONDS) == (b"", b"")
    assert process.returncode == 0


def test_watch_skips_versions_up_to_after(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    with cogment.started("watch", "m", "--after=1", "--quiet") as process:
        registry.publish("m", DATA)
        assert line_of(process) == b"2\n"


def test_watch_ends_when_its_model_is_deleted(cogment: Cogment, registry: ModelRegistry) -> None:
    assert failed(cogment.run("watch", "m"), 3, '"m"')
    registry.publish("m", DATA)
    with cogment.started("watch", "m", "--quiet") as process:
        line_of(process)
        registry.delete_model("m")
        output, errors = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, output, errors.count(b"\n")) == (3, b"", 1)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_a_watch_without_a_traceback(
    cogment: Cogment, registry: ModelRegistry, number: signal.Signals, code: int
) -> None:
    registry.publish("m", DATA)
    with cogment.started("watch", "m") as process:
        line_of(process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=START_SECONDS)
    assert (process.returncode, output, errors.strip()) == (code, b"", b"")


def test_a_watch_ends_when_its_output_is_closed(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    with cogment.started("watch", "m") as process:
        line_of(process)
        assert process.stdout
        process.stdout.close()  # although no further version is published, which it would have to print
        assert process.wait(START_SECONDS) == 1
        assert process.stderr
        assert process.stderr.read() == b""


def test_a_reader_that_stops_early_is_not_an_error(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", b"x" * 3_000_000)
    for number in range(300):
        registry.create_model(f"model {number}", user_data={"text": "x" * 1000})
    for words in ("list_models", "list_models --json", "retrieve m", "watch m"):
        script = f"set -o pipefail; {' '.join(cogment.command(words))} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
        result = subprocess.run(
            ["bash", "-c", script], capture_output=True, timeout=START_SECONDS, check=False, env=cogment.environment
        )
        assert (result.stdout, result.stderr) == (b"1\n", b""), words


# Transfers that are interrupted.


@contextmanager
def silent_server() -> Iterator[str]:
    """Return a context manager for the endpoint of a server that accepts connections and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_an_upload_from_a_silent_pipe(cogment: Cogment, number: signal.Signals, code: int) -> None:
    with cogment.started("publish", "m", "-", stdin=subprocess.PIPE) as process:
        assert process.stdin
        # More than fits the pipe: after it is written, the command is reading.
        process.stdin.write(b"x" * 1_000_000)
        process.stdin.flush()
        process.send_signal(number)
        assert process.wait(START_SECONDS) == code
        assert process.stderr
        assert process.stderr.read().strip() == b""
        process.stdin.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_download_that_leaves_nothing(
    cogment: Cogment, registry: ModelRegistry, shared_process: ServerProcess, number: signal.Signals, code: int
) -> None:
    registry.publish("m", os.urandom(100_000_000))
    shared_process.signal(signal.SIGSTOP)
    try:
        with cogment.started("retrieve", "m", "--output=out") as command:

            def has_begun() -> bool:
                assert command.poll() is None
                return any(name.startswith(".out.") for name in os.listdir(cogment.directory))

            wait_until(has_begun)
            command.send_signal(number)
            output, errors = command.communicate(timeout=START_SECONDS)
    finally:
        shared_process.signal(signal.SIGCONT)
    assert (command.returncode, output, errors.strip()) == (code, b"", b"")
    assert os.listdir(cogment.directory) == ["w"]


# Errors.


@pytest.mark.parametrize(
    "arguments",
    [
        ["list_models", "--bogus"],
        ["list_models", "m"],
        ["show_model"],
        ["show_model", ""],
        ["show_version", "m", "0"],
        ["show_version", "m", "1", "-1"],
        ["show_version", "m", "--version=1", "--version=2"],
        ["show_version", "m", "-x"],
        ["show_version", "m", "-2x"],
        ["publish", "m"],
        ["publish", "m", "w", "--user_data=a"],
        ["publish", "m", "w", "--user_data==a"],
        ["publish", "m", "w", "--user_data=a=1", "--user_data=a=2"],
        ["watch", "m", "--after=-1"],
        ["watch", "m", "--count=0"],
        ["status", "--timeout=0"],
        ["status", "--timeout=nan"],
        ["status", "--timeout=inf"],
        ["status", "--timeout=soon"],
        ["status", "--retry_seconds=-1"],
        ["status", "--retry_seconds=nan"],
        ["status", "--endpoint=localhost:9002"],
        ["status", "--endpoint=grpc://localhost"],
        ["status", "--endpoint=cogment://discover"],
        ["status", "--directory_endpoint=nonsense"],
        ["retrieve", "m", "--json"],
        ["retrieve", "m", "--resume"],
        ["delete_model", "m"],
        ["create_model", "\udcff"],  # a byte that is not UTF-8
        ["create_model", "m", "--user_data", "a=\udcff"],
    ],
    ids=lambda arguments: ascii(" ".join(arguments)),
)
def test_wrong_arguments_exit_with_2_without_a_call(tmp_path: Path, arguments: list[str]) -> None:
    assert failed(run_in_process(*WORDS, *arguments, cwd=tmp_path), 2)


def test_a_refusal_of_the_registry_exits_with_1(cogment: Cogment) -> None:
    assert failed(cogment.run("create_model", ".."), 1, '".."')
    assert failed(cogment.run("publish", "..", "w"), 1, '".."')


@pytest.mark.parametrize(
    "words", [["show_model"], ["list_versions"], ["show_version"], ["retrieve"], ["delete_model", "--yes"]]
)
def test_a_missing_model_or_version_exits_with_3(cogment: Cogment, registry: ModelRegistry, words: list[str]) -> None:
    assert failed(cogment.run(*words, "m"), 3, '"m"')
    registry.create_model("m")
    if words[0] in ("show_version", "retrieve"):
        for number in ("-1", "7", "4294967295", "9999999999"):
            assert failed(cogment.run(*words, "m", number), 3, '"m"')


@pytest.mark.parametrize("command", ["list_models", "status"])
def test_an_absent_or_silent_registry_exits_with_4(command: str) -> None:
    flags = ("--timeout=0.5", f"--endpoint=grpc://127.0.0.1:{free_port()}")
    assert failed(run_in_process(*WORDS, command, *flags), 4)
    with silent_server() as endpoint:
        assert failed(run_in_process(*WORDS, command, "--timeout=0.5", f"--endpoint={endpoint}"), 4)
    environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": f"grpc://127.0.0.1:{free_port()}"}
    assert failed(run_in_process(*WORDS, "watch", "m", "--timeout=0.5", environment=environment), 4)


def test_a_command_waits_for_a_registry_that_starts(tmp_path: Path) -> None:
    port = free_port()
    words = [
        *WORDS,
        "status",
        f"--retry_seconds={START_SECONDS:g}",
        f"--timeout={START_SECONDS:g}",
        f"--endpoint=grpc://127.0.0.1:{port}",
        "--quiet",
    ]
    command = [sys.executable, "-m", "cogment_model_registry", *words]
    with (
        subprocess.Popen(command, env=clean_environment()) as waiting,
        server_process(tmp_path / "archive", f"--port={port}"),
    ):
        assert waiting.wait(START_SECONDS) == 0


# The server.


def test_status_shows_versions_and_state(cogment: Cogment) -> None:
    document = cogment.json("status")
    assert set(document) == {"server_versions", "status"}
    assert 0 <= int(document["status"]["overall_load"]) <= 255
    shown = dict(line.split(maxsplit=1) for line in cogment.output("status").splitlines())
    assert set(shown) == {*document["server_versions"], *document["status"]}
    assert cogment.output("status", "--quiet") == ""


def test_a_registry_is_found_through_a_directory(tmp_path: Path) -> None:
    with server_process(tmp_path, "--persistence_file=", service="directory") as directory:
        where = f"grpc://127.0.0.1:{directory.port}"
        flags = (f"--directory_endpoint={where}", "--directory_registration_host=127.0.0.1")
        with server_process(tmp_path / "archive", *flags) as server:
            ready = run_in_process("client", "directory", "wait_for_ready", "--type=modelregistry", flags[0])
            assert ready.returncode == 0
            for arguments, environment in (
                ([flags[0]], {}),
                ([flags[0], "--endpoint=cogment://discover"], {}),
                ([], {"COGMENT_DIRECTORY_ENDPOINT": where}),
            ):
                result = run_in_process(*WORDS, "create_model", "m", *arguments, environment=environment)
                assert (result.returncode, result.stderr) == (0, ""), arguments
            assert server.stop() == 0
        assert failed(run_in_process(*WORDS, "list_models", flags[0], "--endpoint=cogment://discover?a=b"), 3)
    assert failed(run_in_process(*WORDS, "list_models", flags[0], "--timeout=0.5"), 4)


# Time.


LONG = "--retry_seconds=900"


def test_timeout_ends_a_watch_that_receives_nothing(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.create_model("m")
    message = "error: the command took longer than the 0.5 seconds of --timeout\n"
    result = cogment.run("watch", "m", "--timeout=0.5", "--count=1", LONG)
    assert (result.returncode, result.stdout, result.stderr) == (4, "", message)
    registry.publish("m", DATA)
    result = cogment.run("watch", "m", "--timeout=0.5", "--after=1", LONG)
    assert (result.returncode, result.stdout, result.stderr) == (4, "", message)
    assert cogment.output("watch", "m", f"--timeout={START_SECONDS:g}", "--count=1", "--quiet") == "1\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_timeout_ends_every_command_on_a_registry_that_is_silent(cogment: Cogment, command: str) -> None:
    more = {
        "publish": ["w"],
        "store": ["w"],
        "retrieve": ["--output=out"],
        "delete_model": ["--yes"],
        "promote_version": ["1"],
        "update_version": ["1", "--tag=a=b"],
        "delete_version": ["1", "--yes"],
        "set_alias": ["production", "1"],
        "remove_alias": ["production"],
        "update_model": ["--tag=a=b"],
        "set_retention": ["--none"],
        "set_signers": ["--none"],
    }
    words = [
        command,
        *([] if command in ("find_models", "list_consumers", "list_models", "status") else ["m"]),
        *more.get(command, []),
    ]
    with silent_server() as endpoint:
        result = cogment.run(*words, "--timeout=0.5", LONG, f"--endpoint={endpoint}")
    assert failed(result, 4, "the command took longer than the 0.5 seconds of --timeout")
    once = ("apply_retention", "delete_model", "publish", "remove_alias", "store")
    assert "may have done it" not in result.stderr or command in once
    assert os.listdir(cogment.directory) == ["w"]


def test_timeout_bounds_retries_and_retry_seconds_does_not_bound_the_command(cogment: Cogment) -> None:
    absent = f"--endpoint=grpc://127.0.0.1:{free_port()}"
    assert failed(cogment.run("status", absent, "--retry_seconds=0"), 4, "Connection refused")
    assert failed(cogment.run("status", absent, "--timeout=0.5", LONG), 4)
    assert failed(cogment.run("watch", "m", absent, "--timeout=0.5", LONG), 4)
    assert cogment.run("create_model", "m", "--retry_seconds=0").returncode == 0


def test_timeout_ends_an_upload_from_a_silent_pipe(cogment: Cogment, registry: ModelRegistry) -> None:
    with cogment.started("publish", "m", "-", "--timeout=0.5", stdin=subprocess.PIPE) as process:
        assert process.wait(START_SECONDS) == 4
        assert process.stderr
        assert b"the command took longer than the 0.5 seconds of --timeout" in process.stderr.read()
        assert process.stdin
        process.stdin.close()
    assert registry.list_models() == []


# Help.


HELP = """
import contextlib, io, sys
from cogment_model_registry.cli import main

for command in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(["client", "model_registry", *command.split(), "--help"])
    assert code == 0, command
    assert output.getvalue().startswith("Usage: cogment client model_registry"), command
    loaded = {"grpc", "google", "rich", "structlog"} & set(sys.modules)
    assert not loaded, (command, loaded)
"""


def test_help_loads_neither_grpc_nor_rich() -> None:
    result = run(sys.executable, "-c", HELP, "", *COMMANDS)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_common_flags(command: str) -> None:
    help_text = run_in_process("client", "registry", command, "-h").stdout
    connection = ("endpoint", "directory_endpoint", "directory_authentication_token", "timeout", "retry_seconds")
    for flag in (*connection, "tls_ca", "tls_certificate", "tls_key", "json", "quiet"):
        assert f"--{flag} " in help_text


# On a terminal.


def test_tables_fit_the_width_of_a_terminal(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", b"x" * 3_000_000, user_data={"note": "x" * 200, "tag": "[red]:smile:"})
    for columns in (60, 100):
        with on_terminal(*WORDS, "list_versions", "m", columns=columns, environment=cogment.environment) as terminal:
            assert terminal.wait() == 0
        head, row = terminal.plain.splitlines()
        assert head.split() == ["VERSION", "KIND", "CREATED", "SIZE", "USER_DATA"]
        assert "2.9 MiB" in row
        assert re.search(r"just now|\d s ago", row)
        assert row.endswith(("…", "..."))
        assert len(row) <= columns
        assert "\x1b[1m" in terminal.text


@pytest.mark.parametrize("columns", [20, 40, 80, 110, 5000])
def test_user_data_is_shortened_first_on_a_narrow_terminal(
    cogment: Cogment, registry: ModelRegistry, columns: int
) -> None:
    model_id = "walker-with-a-long-name"
    registry.create_model(model_id, user_data={"note": "x" * 200})
    registry.store(model_id, b"x" * 3_000_000)
    with on_terminal(*WORDS, "list_models", columns=columns, environment=cogment.environment) as terminal:
        assert terminal.wait() == 0, terminal.text
    head, row = terminal.plain.splitlines()
    titles = ["MODEL", "LATEST", "VERSIONS", "ARCHIVED", "UPDATED", "ALIASES", "USER_DATA"]
    wide = {20: 4, 40: 4, 80: 6}.get(columns, 7)
    assert head.split() == [*titles[: min(wide, 4)], *(["ALIASES"] if wide == 4 else titles[4:wide])]
    cut = (f"{model_id[:11]}… ", f"{model_id[:9]}... ")  # the latter if the terminal lacks the former
    assert row.startswith(f"{model_id} " if columns >= 80 else cut)
    assert re.search(r" 1 +1 +2\.9 MiB", row)
    assert bool(re.search(r"just now|\d+ s ago", row)) == (columns >= 80)
    assert row.endswith("x") == (columns == 5000)
    assert len(row) <= max(columns, 53)  # numbers are never cut


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_styles_gets_none(cogment: Cogment, registry: ModelRegistry, name: str, value: str) -> None:
    registry.publish("m", DATA)
    for words in (["list_models"], ["show_version", "m"]):
        with on_terminal(*WORDS, *words, environment=cogment.environment, kind={name: value}) as terminal:
            assert terminal.wait() == 0, terminal.text
        assert "\x1b" not in terminal.text


def test_text_is_never_interpreted_as_markup(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.create_model("m", user_data={"tag": "[red]:smile:"})
    with on_terminal(*WORDS, "list_models", environment=cogment.environment) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert "tag=[red]:smile:" in terminal.plain


def test_details_have_units_and_ages_on_a_terminal(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", b"x" * 2048)
    with on_terminal(*WORDS, "show_version", "m", environment=cogment.environment) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert "2.0 KiB (2048 bytes)" in terminal.plain
    assert re.search(r"Z \((just now|\d+ s ago)\)", terminal.plain)


@pytest.mark.parametrize(("key", "code"), [("y\n", 0), ("n\n", 1), ("\n", 1), ("\x03", -signal.SIGINT), ("\x04", 130)])
def test_a_deletion_asks_for_confirmation_on_a_terminal(
    cogment: Cogment, registry: ModelRegistry, key: str, code: int
) -> None:
    registry.publish("m", b"x" * 2048)
    registry.store("m", DATA)
    with on_terminal(*WORDS, "delete_model", "m", environment=cogment.environment) as terminal:
        question = r"Delete model m with 2 versions, 1 of them archived, and 2.0 KiB of data\? \[y/N\]: "
        terminal.wait_for(question)
        terminal.press(key)
        assert terminal.wait() == code
    assert len(registry.list_models()) == (0 if code == 0 else 1)
    assert ("error: nothing was deleted" in terminal.plain) == (code == 1)
    assert "Traceback" not in terminal.plain


IMPATIENT = (
    "import sys; from cogment_model_registry import cli; from cogment_model_registry.cli import progress; "
    "progress.DELAY_SECONDS = 0; sys.exit(cli.main(sys.argv[1:]))"
)


def test_transfers_show_a_bar_on_a_terminal_unless_quiet(cogment: Cogment) -> None:
    (cogment.directory / "large").write_bytes(b"x" * 20_000_000)
    for words, bar in (
        (["publish", "m", "large"], "publishing"),
        (["store", "m", "large"], "storing"),
        (["retrieve", "m", "--output=out"], "retrieving"),
    ):
        for quiet in ([], ["--quiet"]):
            force = ["--force"] if words[0] == "retrieve" else []
            command = (*WORDS, *words, *quiet, *force)
            program, directory = ("-c", IMPATIENT), cogment.directory
            with on_terminal(*command, program=program, environment=cogment.environment, cwd=directory) as terminal:
                assert terminal.wait() == 0, terminal.text
            assert (bar in terminal.plain) == (not quiet), terminal.text
            assert terminal.text.count("\x1b[?25l") == terminal.text.count("\x1b[?25h"), "the cursor is not shown again"


def test_a_short_transfer_shows_no_bar(cogment: Cogment) -> None:
    with on_terminal(*WORDS, "publish", "m", "w", environment=cogment.environment, cwd=cogment.directory) as terminal:
        assert terminal.wait() == 0, terminal.text
    assert terminal.plain == "published version 1 of model m: 9 B\n"


def test_versions_are_neither_written_to_nor_read_from_a_terminal(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    for words in (["retrieve", "m"], ["publish", "m", "-"]):
        with on_terminal(*WORDS, *words, environment=cogment.environment) as terminal:
            assert terminal.wait() == 2
        assert "terminal" in terminal.plain


def test_a_key_ends_a_watch_on_a_terminal(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    with on_terminal(*WORDS, "watch", "m", environment=cogment.environment) as terminal:
        terminal.wait_for(r"1  transient  \S+Z  9 B")
        terminal.press("\x03")
        assert terminal.wait() == 130
    assert "Traceback" not in terminal.plain


# Completion.


def completed(words: str, environment: dict[str, str] | None = None, shell: str = "bash") -> list[str]:
    """Return the completions of the last word, in the protocol of the shell."""
    variables = {"_COGMENT_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    if shell == "fish":
        variables["COMP_CWORD"] = words.rpartition(" ")[2]
    result = run_in_process(environment={**variables, **(environment or {})})
    assert (result.returncode, result.stderr) == (0, "")
    return [line for line in result.stdout.splitlines() if line]


def test_commands_and_flags_are_completed() -> None:
    assert completed("cogment client mod") == ["plain,model_registry"]
    assert set(completed("cogment client model_registry list")) == {
        "plain,list_aliases",
        "plain,list_consumers",
        "plain,list_models",
        "plain,list_versions",
    }
    assert completed("cogment client model_registry publish --user") == ["plain,--user_data"]
    assert completed("cogment client model_registry publish m ") == ["file,"]


def test_models_and_versions_are_completed_from_the_registry(cogment: Cogment, registry: ModelRegistry) -> None:
    for name in ("walker", "walker-2", "hopper"):
        registry.create_model(name)
    for _ in range(12):
        registry.publish("walker", DATA)
    environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": cogment.environment["COGMENT_MODEL_REGISTRY_ENDPOINT"]}
    words = "cogment client model_registry show_version"
    assert completed(f"{words} wal", environment) == ["plain,walker", "plain,walker-2"]
    assert len(completed(f"{words} ", environment)) == 3
    assert completed(f"{words} walker 1", environment) == ["plain,12", "plain,11", "plain,10", "plain,1"]
    assert completed(f"{words} walker --version 1", environment) == completed(f"{words} walker 1", environment)
    flag = f"--endpoint {environment['COGMENT_MODEL_REGISTRY_ENDPOINT']}"
    assert completed(f"{words} {flag} hop") == ["plain,hopper"]
    assert completed(f"{words} missing ", environment) == []
    for shell in ("zsh", "fish"):
        assert any("hopper" in line for line in completed(f"{words} hop", environment, shell))


def test_completion_is_silent_without_a_registry() -> None:
    for endpoint in (f"grpc://127.0.0.1:{free_port()}", "nonsense"):
        environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": endpoint}
        assert completed("cogment client model_registry show_model ", environment) == []
    with silent_server() as silent:
        environment = {"COGMENT_MODEL_REGISTRY_ENDPOINT": silent}
        assert completed("cogment client model_registry show_model ", environment) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_names_the_program(shell: str) -> None:
    result = run_in_process(environment={"_COGMENT_COMPLETE": f"{shell}_source"})
    assert result.returncode == 0
    assert "_COGMENT_COMPLETE" in result.stdout


@pytest.mark.parametrize(
    ("typed", "word", "replies"),
    [
        ("wa", "wa", ["walker"]),
        ("--endpoint ENDPOINT wa", "wa", ["walker"]),
        ("run:", ":", ["1", "2"]),
        ("run:1", "1", ["1"]),
        ("run:1 --endpoint=ENDPOINT --ver", "--ver", []),
        ("a", "a", ["a\\ b"]),
        ("a\\ ", "a\\ ", ["a\\ b"]),
        ("--js", "--js", ["--json"]),
    ],
)
def test_bash_completes_a_partly_typed_word(
    cogment: Cogment, registry: ModelRegistry, typed: str, word: str, replies: list[str]
) -> None:
    """Bash splits it at colons and equals signs."""
    for name in ("walker", "run:1", "run:2", "a b"):
        registry.create_model(name)
    environment = dict(cogment.environment)
    typed = typed.replace("ENDPOINT", environment.pop("COGMENT_MODEL_REGISTRY_ENDPOINT") if "ENDPOINT" in typed else "")
    script = f"""
        eval "$(_COGMENT_COMPLETE=bash_source cogment)"
        COMP_LINE={shlex.quote(f"cogment client model_registry show_model {typed}")}; COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=(cogment client model_registry show_model {shlex.quote(word)}); COMP_CWORD=4
        _cogment_completion cogment
        printf '%s\n' "${{COMPREPLY[@]}}"
    """
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    result = run("bash", "-c", script, environment={**environment, "PATH": path})
    assert (result.stdout.split("\n")[:-1], result.stderr) == (replies or [""], "")


# Texts of times.


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((-1, "just now"), (0.9, "just now"), (59, "59 s ago"), (60, "1 min ago"), (3600, "1 h ago")),
        *((47 * 3600, "47 h ago"), (48 * 3600, "2 days ago"), (-3600, "2033-05-18T04:33:20.000000Z")),
    ],
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    now_ns = 2_000_000_000 * 10**9
    assert presentation.age(now_ns - int(seconds * 10**9), now_ns) == text


def test_every_time_that_the_api_allows_can_be_shown() -> None:
    assert time_text(0) == "1970-01-01T00:00:00.000000Z"
    assert time_text(2**64 - 1) == "2554-07-21T23:34:33.709551Z"
    info = VersionInfo("m", 1, 2**64 - 1, archived=True, data_hash="", data_size_bytes=0)
    assert version_as_json(info)["created_ns"] == 2**64 - 1
