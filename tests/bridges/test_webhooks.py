"""`cogment webhooks`, as a process, with real servers that receive, fail, hang and are killed."""

import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.bridges.webhooks import running, verify
from cogment_model_registry.bridges.webhooks.configuration import Configuration, Hook
from cogment_model_registry.bridges.webhooks.delivery import _Attempt
from cogment_model_registry.bridges.webhooks.events import Events
from cogment_model_registry.bridges.webhooks.signing import headers_of, key_of, keys_of
from cogment_model_registry.bridges.webhooks.state import Post, State
from tests.bridges.receivers import Received, Receiver, receiving
from tests.ports import free_port
from tests.processes import ServerProcess, clean_environment, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, wait_until

SECRET = "whsec_" + base64.b64encode(b"k" * 32).decode()
VARIABLE = "HOOK_SECRET"


class Webhooks:
    """`cogment webhooks` in a separate process.

    Attributes:
        lines: The lines that it has logged so far.
    """

    def __init__(self, config: Path, endpoint: str) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        command = [sys.executable, "-m", "cogment_model_registry", "webhooks", f"--config={config}"]
        self.process = subprocess.Popen(
            [*command, f"--endpoint={endpoint}"],
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), VARIABLE: SECRET},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def wait_for_line(self, pattern: str) -> None:
        with self._news:
            found = self._news.wait_for(lambda: any(re.search(pattern, line) for line in self.lines), PATIENCE_SECONDS)
        assert found, self.lines

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join()
        assert self.process.stderr
        self.process.stderr.close()
        return code


@contextlib.contextmanager
def posting(config: Path, endpoint: str) -> Iterator[Webhooks]:
    """Return a context manager with a process that posts what happens in it."""
    webhooks = Webhooks(config, endpoint)
    try:
        webhooks.wait_for_line("ready: ")
        yield webhooks
    finally:
        if webhooks.process.poll() is None:
            assert webhooks.end() == 0, webhooks.lines


def hook(url: str, events: str, more: str = "", name: str = "one") -> str:
    return (
        f'[[hook]]\nname = "{name}"\nurl = "{url}"\nsecret_variable = "{VARIABLE}"\n'
        f"events = {json.dumps(events.split())}\nfirst_pause_seconds = 0.05\nlongest_pause_seconds = 0.2\n{more}\n"
    )


def configured(directory: Path, *hooks: str, more: str = "") -> Path:
    path = directory / "hooks.toml"
    path.write_text("\n".join([more, *hooks]))
    return path


@pytest.fixture
def registry(shared_endpoint: str) -> Iterator[ModelRegistry]:
    with ModelRegistry(shared_endpoint, progress=False) as client:
        yield client


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


EVERYTHING = (
    "version.published version.archived version.deleted version.evicted model.deleted alias.moved consumer.lagging "
    "consumer.recovered"
)


def told(posts: list[Received]) -> list[tuple[Any, ...]]:
    """Return the types of events with what they are about."""
    names = ("version_number", "number", "alias", "consumer_id")
    return [(each.event["type"], *(each.event["data"][n] for n in names if n in each.event["data"])) for each in posts]


def test_each_event_is_posted_once_signed_and_in_order(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    registry.store("policy", b"before", alias="production")
    config = configured(tmp_path, hook(receiver.url("/hook?x=1"), EVERYTHING), more="promotions_seconds = 0.1")
    with posting(config, shared_endpoint):
        registry.publish("policy", b"two", tags={"stage": "x"}, metrics={"return": 1.5})
        registry.store("policy", b"three")
        receiver.wait_for(3)
        registry.set_alias("policy", "production", 3)
        receiver.wait_for(4)
        registry.promote("policy", 2)
        receiver.wait_for(5)
        registry.report_consumer("policy", "actor", version=1)
        for _ in range(9):
            registry.publish("policy", b"more")
        receiver.wait_for(14)
        registry.report_consumer("policy", "actor", version=1)
        receiver.wait_for(15)
        registry.report_consumer("policy", "actor", version=12)
        receiver.wait_for(16)
        registry.delete_version("policy", 1)
        receiver.wait_for(17)
        registry.delete_model("policy")
        posts = receiver.wait_for(18)
    assert told(posts[:5]) == [
        ("version.published", 2),
        ("version.published", 3),
        ("version.archived", 3),
        ("alias.moved", 3, "production"),
        ("version.archived", 2),
    ]
    assert told(posts[5:14]) == [("version.published", number) for number in range(4, 13)]
    assert told(posts[14:]) == [
        ("consumer.lagging", 1, "actor"),
        ("consumer.recovered", 12, "actor"),
        ("version.deleted", 1),
        ("model.deleted",),
    ]
    first = posts[0]
    assert (first.path, first.headers["content-type"]) == ("/hook?x=1", "application/json")
    assert verify(SECRET, first.headers, first.body) == first.message_id
    data = first.event["data"]
    assert (data["model_id"], data["tags"], data["metrics"]) == ("policy", {"stage": "x"}, {"return": 1.5})
    assert posts[3].event["data"]["version_number_before"] == 1
    assert len({each.message_id for each in posts}) == 18


def test_a_hook_gets_what_it_wants_of_the_models_that_it_names(
    registry: ModelRegistry, shared_endpoint: str, tmp_path: Path
) -> None:
    with receiving() as first, receiving() as second:
        config = configured(
            tmp_path,
            hook(first.url(), "version.published", 'models = ["policy-*"]'),
            hook(second.url(), "alias.moved", 'models = ["other"]\naliases = ["production"]', "two"),
        )
        with posting(config, shared_endpoint):
            registry.publish("policy-1", b"1")
            registry.store("other", b"1", alias="staging")
            registry.store("other", b"2", alias="production")
            registry.publish("policy-2", b"1")
            assert [each.event["data"]["model_id"] for each in first.wait_for(2)] == ["policy-1", "policy-2"]
            (post,) = second.wait_for(1)
            assert post.event["data"] == {
                "model_id": "other",
                "alias": "production",
                "version_number": 2,
                "version_number_before": None,
            }


def test_a_post_that_fails_is_tried_again_and_holds_up_no_other_hook(
    registry: ModelRegistry, shared_endpoint: str, tmp_path: Path
) -> None:
    with receiving() as failing, receiving() as good:
        failing.answer = lambda _post: (503, {}) if len(failing.posts) < 4 else (200, {})
        config = configured(
            tmp_path,
            hook(failing.url(), "version.published"),
            hook(good.url(), "version.published", name="two"),
        )
        with posting(config, shared_endpoint) as webhooks:
            registry.publish("policy", b"1")
            registry.publish("policy", b"2")
            posts = failing.wait_for(5)
            good.wait_for(2)
            webhooks.wait_for_line("hook=one .* tries=3 failed: status 503")
        assert [each.event["data"]["number"] for each in posts] == [1, 1, 1, 1, 2]
        assert len({each.message_id for each in posts[:4]}) == 1
        for each in posts:
            verify(SECRET, each.headers, each.body)


@pytest.mark.parametrize("how", ["hangs", "redirects", "refuses"])
def test_a_hook_that_is_given_up_is_in_the_dead_letters(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path, how: str
) -> None:
    answers = {"hangs": None, "redirects": (307, {"Location": receiver.url("/elsewhere")}), "refuses": (410, {})}
    receiver.answer = lambda post: answers[how] if post.event["data"]["number"] == 1 else (204, {})
    config = configured(
        tmp_path,
        hook(receiver.url("/?secret=hidden"), "version.published", "timeout_seconds = 0.5\ngive_up_seconds = 1"),
    )
    with posting(config, shared_endpoint) as webhooks:
        registry.publish("policy", b"1")
        registry.publish("policy", b"2")
        wait_until(lambda: any(each.event["data"].get("number") == 2 for each in receiver.posts))
    (line,) = (tmp_path / "hooks.dead.jsonl").read_text().splitlines()
    letter = json.loads(line)
    assert (letter["hook"], letter["event"]["data"]["number"]) == ("one", 1)
    reasons = {"hangs": "no answer within 0.5 s", "redirects": "a redirect, which is not followed", "refuses": "410"}
    assert reasons[how] in letter["reason"]
    assert len(receiver.posts) == 2 or how != "refuses"
    assert "/elsewhere" not in {each.path for each in receiver.posts}
    text = "".join(webhooks.lines)
    assert "hidden" not in text
    assert SECRET not in text
    assert SECRET.removeprefix("whsec_") not in text


def test_a_try_whose_time_was_over_before_it_was_connected_does_not_go_on(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answer = lambda _post: None  # it would trickle its answer
    attempt = _Attempt(Hook("one", receiver.url(), (b"x" * 24,), ("alias.moved",), timeout_seconds=0.1))
    create_connection = socket.create_connection

    def connect_late(*arguments: Any, **named: Any) -> socket.socket:
        wait_until(attempt._is_cut.is_set)
        return create_connection(*arguments, **named)

    monkeypatch.setattr(socket, "create_connection", connect_late)
    assert attempt.post(Post(1, "evt_1", b"{}", 0, None)) == ("no answer within 0.1 s", 0)
    assert not receiver.posts


def test_the_receiver_says_when_it_wants_a_post_again(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answer = lambda _post: (429, {"Retry-After": "1"}) if len(receiver.posts) < 2 else (200, {})
    config = configured(tmp_path, hook(receiver.url(), "version.published").replace("seconds = 0.2", "seconds = 5"))
    with posting(config, shared_endpoint) as webhooks:
        registry.publish("policy", b"1")
        webhooks.wait_for_line(r"tries=1 failed: status 429; next try in 1\.0 s")
        receiver.wait_for(2)


def test_too_many_waiting_events_are_given_up_the_oldest_first(
    registry: ModelRegistry, shared_endpoint: str, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    config = configured(tmp_path, hook(url, "version.published"), more="waiting_max = 2")
    letters = tmp_path / "hooks.dead.jsonl"
    with posting(config, shared_endpoint):
        for number in range(5):
            registry.publish("policy", b"%d" % number)
        wait_until(lambda: letters.exists() and len(letters.read_text().splitlines()) == 3)
    given_up = [json.loads(line) for line in letters.read_text().splitlines()]
    assert [each["event"]["data"]["number"] for each in given_up] == [1, 2, 3]
    assert "the limit is 2" in given_up[0]["reason"]


def test_what_happens_while_nobody_posts_is_posted_later(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    config = configured(tmp_path, hook(receiver.url(), "version.published alias.moved"))
    with posting(config, shared_endpoint):
        registry.store("policy", b"1")
        receiver.wait_for(1)
    registry.store("policy", b"2", alias="production")
    with posting(config, shared_endpoint):
        # The first one comes again if the process ended before it knew that it was received.
        wait_until(lambda: len({each.message_id for each in receiver.posts}) == 3)
    later = {each.message_id: each for each in receiver.posts if each.message_id != receiver.posts[0].message_id}
    assert sorted(told([*later.values()])) == [("alias.moved", 2, "production"), ("version.published", 2)]


def test_a_receiver_and_a_process_that_are_killed_lose_nothing(
    registry: ModelRegistry, shared_endpoint: str, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "received.jsonl"
    config = configured(tmp_path, hook(f"http://127.0.0.1:{port}/", "version.published"))
    program = [sys.executable, "-m", "tests.bridges.receivers", str(port), str(log)]

    def received() -> list[int]:
        lines = log.read_text().splitlines() if log.exists() else []
        return [json.loads(line)[1]["data"]["number"] for line in lines if line.endswith("]")]

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    def kill(process: "subprocess.Popen[str]") -> None:
        process.kill()
        process.communicate()

    receiver = start()
    webhooks = Webhooks(config, shared_endpoint)
    try:
        webhooks.wait_for_line("ready: ")
        for number in range(1, 41):
            registry.publish("policy", b"%d" % number)
            if number % 10 == 5:
                kill(receiver)
                receiver = start()
            if number % 10 == 0:
                webhooks.end(signal.SIGKILL)
                webhooks = Webhooks(config, shared_endpoint)
        wait_until(lambda: 40 in received(), received)
    finally:
        webhooks.end()
        kill(receiver)
    numbers = received()
    assert sorted(set(numbers)) == list(range(1, 41))
    firsts = [number for index, number in enumerate(numbers) if number not in numbers[:index]]
    assert firsts == list(range(1, 41))  # a repeated one comes before any later one
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert all(len({each[0] for each in lines if each[1]["data"]["number"] == number}) == 1 for number in numbers)


@pytest.mark.parametrize("others", [1, 70])  # a watch of more than 64 models does not resume exactly after a restart
def test_no_event_is_lost_when_the_registry_was_restarted(tmp_path: Path, receiver: Receiver, others: int) -> None:
    config = configured(tmp_path, hook(receiver.url(), EVERYTHING), more="promotions_seconds = 0.1")

    def client(server: ServerProcess) -> ModelRegistry:
        return ModelRegistry(f"grpc://127.0.0.1:{server.port}", progress=False)

    with server_process(tmp_path / "archive") as server, client(server) as registry:
        for number in range(others):
            registry.store(f"other {number}", b"1")
        registry.store("policy", b"before")
        with posting(config, f"grpc://127.0.0.1:{server.port}"):
            registry.store("policy", b"2")
            registry.publish("policy", b"3, which ends with the server")
            wait_until(lambda: len({each.message_id for each in receiver.posts}) == 3)
        registry.store("policy", b"4", alias="production")
        registry.store("new", b"1")
        registry.delete_model("other 0")
    before = {each.message_id for each in receiver.posts}
    with server_process(tmp_path / "archive") as server, client(server) as registry:
        with posting(config, f"grpc://127.0.0.1:{server.port}") as webhooks:
            number = registry.publish("policy", b"5").number
            wait_until(lambda: ("version.published", number) in told(receiver.posts))
            registry.promote("policy", number)
            wait_until(lambda: ("version.archived", number) in told(receiver.posts))
            wait_until(lambda: len({each.message_id for each in receiver.posts} - before) == 8)
        assert "failed" not in "".join(webhooks.lines)
    with contextlib.closing(State(tmp_path / "hooks.db")) as state:
        assert state.transient_models() == []
        assert len(state.models()) == others + 1
    later = {each.message_id: each for each in receiver.posts if each.message_id not in before}
    assert sorted(told([*later.values()])) == [
        ("alias.moved", 4, "production"),
        ("model.deleted",),
        ("version.archived", 1),
        ("version.archived", 4),
        ("version.archived", number),
        ("version.published", 1),
        ("version.published", 4),
        ("version.published", number),
    ]


def test_waiting_events_of_a_hook_that_was_renamed_are_in_the_dead_letters(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    old, other = hook(url, "version.published", name="old"), hook(receiver.url(), "version.published", name="other")
    with posting(configured(tmp_path, old, other), shared_endpoint) as webhooks:
        registry.publish("policy", b"1")
        registry.publish("policy", b"2")
        webhooks.wait_for_line("hook=old .* failed")
        receiver.wait_for(2)  # an event waits for all hooks before it is posted to one
    config = configured(tmp_path, hook(receiver.url(), "version.published", name="new"))
    with posting(config, shared_endpoint) as webhooks:
        webhooks.wait_for_line("hook=old is not configured any more; events given up: 2")
        registry.publish("policy", b"3")
        receiver.wait_for(3)
    letters = [json.loads(line) for line in (tmp_path / "hooks.dead.jsonl").read_text().splitlines()]
    assert [(each["hook"], each["event"]["data"]["number"]) for each in letters] == [("old", 1), ("old", 2)]
    assert [each.event["data"]["number"] for each in receiver.posts] == [1, 2, 3]


def test_receivers_that_hang_hold_up_neither_others_nor_the_end(
    registry: ModelRegistry, shared_endpoint: str, tmp_path: Path
) -> None:
    with receiving() as hanging, receiving() as good:
        hanging.answer = lambda _post: None
        hooks = [hook(hanging.url(), "version.published", "timeout_seconds = 500", f"h{n}") for n in range(5)]
        config = configured(tmp_path, *hooks, hook(good.url(), "version.published", name="good"))
        with posting(config, shared_endpoint):
            registry.publish("policy", b"1")
            registry.publish("policy", b"2")
            good.wait_for(2)
            hanging.wait_for(5)
    assert {each.event["data"]["number"] for each in hanging.posts} == {1}


def test_a_process_that_cannot_keep_its_promise_ends(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.answer = lambda _post: (410, {})
    text = hook(receiver.url(), "version.published")
    config = configured(tmp_path, text, more='dead_letters = "missing/letters.jsonl"')
    with posting(config, shared_endpoint) as webhooks:
        registry.publish("policy", b"1")
        assert webhooks.process.wait(PATIENCE_SECONDS) == 1
        webhooks.wait_for_line("error: the dead letters letters.jsonl cannot be written: No such file")
        webhooks.end()
    assert "Traceback" not in "".join(webhooks.lines)
    (tmp_path / "missing").mkdir()
    with posting(config, shared_endpoint):
        wait_until((tmp_path / "missing/letters.jsonl").exists)


def test_two_processes_do_not_share_a_state(
    registry: ModelRegistry, shared_endpoint: str, receiver: Receiver, tmp_path: Path
) -> None:
    config = configured(tmp_path, hook(receiver.url(), "version.published"))
    with posting(config, shared_endpoint):
        other = run_cogment(
            "webhooks", f"--config={config}", f"--endpoint={shared_endpoint}", environment={VARIABLE: SECRET}
        )
    assert other.returncode == 1
    assert "the state hooks.db cannot be used: another process uses it" in other.stderr


def test_a_state_counts_what_waits(tmp_path: Path) -> None:
    def fail() -> None:
        with state.changing():
            state.add_post("one", b"{}")
            raise errors.UnavailableError("the test lets it fail")

    with contextlib.closing(State(tmp_path / "hooks.db")) as state:
        with state.changing():
            for _ in range(3):
                state.add_post("one", b"{}")
            state.add_post("two", b"{}")
        with pytest.raises(errors.UnavailableError):
            fail()
        state.remove_posts("one", state.first_posts("one", 2))
        assert (state.waiting("one"), state.waiting("two"), state.waiting("three")) == (1, 1, 0)
    with contextlib.closing(State(tmp_path / "hooks.db")) as state:
        assert (state.waiting("one"), state.waiting_hooks()) == (1, ["one", "two"])


def test_an_error_that_nobody_expects_while_looking_for_promotions_ends_the_process(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Events) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Events, "look_for_promoted", fail)
    config = configured(tmp_path, hook("http://127.0.0.1:9/", EVERYTHING), more="promotions_seconds = 0.1")
    with pytest.raises(ValueError, match="a bug"):
        running.run(registry, Configuration.read(config, {VARIABLE: SECRET}))


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hooks.db").write_bytes(b"no database" * 100)
    with pytest.raises(errors.PreconditionError, match="cannot be used: file is not a database"):
        State(tmp_path / "hooks.db")


def test_a_state_in_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.PreconditionError, match=r"the state hooks\.db cannot be used: unable to open"):
        State(tmp_path / "missing" / "hooks.db")


def _with_secret_file(name: str) -> str:
    return hook("https://x/", "alias.moved").replace(f'secret_variable = "{VARIABLE}"', f'secret_file = "{name}"')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has no hook"),
        ("hook = 1", "has no hook"),
        ("= x", "is not TOML"),
        (hook("https://x/", "version.published") + 'other = "x"', '"other", which is not a known setting'),
        ('other = "x"\n' + hook("https://x/", "version.published"), '"other", which is not a known setting'),
        (hook("https://x/", "version.published") * 2, "two hooks have the name 'one'"),
        (hook("https://x/", "version.publish"), '"version.publish"; events are version.published'),
        (hook("https://x/", ""), "events of hook .* must be a list"),
        (hook("ftp://x/", "alias.moved"), "must be https://host/path"),
        (hook("https:///x", "alias.moved"), "must be https://host/path"),
        (hook("http://example.org/", "alias.moved"), "is not https; set allow_http"),
        (hook("https://user:hidden@x/", "alias.moved"), "must not have a user"),
        (hook("https://x/#y", "alias.moved"), "neither spaces nor a fragment"),
        (hook("https://x:99999/", "alias.moved"), "is malformed"),
        (hook("https://x..y/", "alias.moved"), "is malformed"),
        (hook(f"https://{'x' * 64}.org/", "alias.moved"), "is malformed"),
        (hook("https://x/", "alias.moved", "timeout_seconds = 0"), "timeout_seconds of hook .* 0.1 or more"),
        (hook("https://x/", "alias.moved", 'timeout_seconds = "1"'), "timeout_seconds of hook"),
        (hook("https://x/", "alias.moved", name="a b"), "the name"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "NOTHING"), '"NOTHING" with the secret .* is not set'),
        (hook("https://x/", "alias.moved", 'secret_file = "x"'), "either secret_file or secret_variable"),
        (_with_secret_file("missing"), 'secret_file "missing" of hook "one" cannot be read: No such file or directory'),
        (_with_secret_file("a\\u0000"), "cannot be read: embedded null"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "SHORT"), "has 6 bytes; it must have 24"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "BROKEN"), "is not base64"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "OTHER_SCRIPT"), "is not base64"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "MANY"), "there are 5 secrets"),
        (hook("https://x/", "alias.moved").replace(VARIABLE, "EMPTY"), "has 0 bytes"),
    ],
)
def test_a_wrong_configuration_is_refused_without_its_secrets(tmp_path: Path, text: str, reason: str) -> None:
    environment = {
        VARIABLE: SECRET,
        "SHORT": "hidden",
        "BROKEN": "whsec_hidden!",
        "OTHER_SCRIPT": "whsec_hiddenü",
        "MANY": f"{SECRET}\n" * 5,
        "EMPTY": "\n",
    }
    with pytest.raises(errors.InvalidError, match=reason) as caught:
        Configuration.read(configured(tmp_path, text), environment)
    assert "hidden" not in caught.value.message


def test_a_configuration_has_defaults_and_shows_no_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET + "\n")
    text = '[[hook]]\nname = "a"\nurl = "https://x/y"\nsecret_file = "secret"\nevents = ["alias.moved"]\n'
    found = Configuration.read(configured(tmp_path, text), {})
    assert found.hooks[0].keys == (b"k" * 32,)
    assert (found.state_path, found.dead_letters_path) == (tmp_path / "hooks.db", tmp_path / "hooks.dead.jsonl")
    assert found.model_ids == ()
    assert "kkkk" not in repr(found)
    text += 'models = ["b", "a"]\n'
    assert Configuration.read(configured(tmp_path, text), {}).model_ids == ("a", "b")


def test_check_prints_the_hooks(tmp_path: Path) -> None:
    config = configured(tmp_path, hook("https://x/", "alias.moved"))
    done = run_cogment("webhooks", f"--config={config}", "--check", environment={VARIABLE: SECRET})
    assert (done.returncode, done.stdout) == (0, "one\n")
    done = run_cogment("webhooks", f"--config={tmp_path / 'missing'}", "--check")
    assert done.returncode == 1
    assert "missing failed: No such file" in done.stderr


def test_a_registry_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    config = configured(tmp_path, hook("https://x/", "alias.moved"))
    arguments = ("--endpoint=grpc://127.0.0.1:1", "--retry_seconds=0")
    done = run_cogment("webhooks", f"--config={config}", *arguments, environment={VARIABLE: SECRET})
    assert done.returncode == 4
    assert "error: watching all models" in done.stderr


# Signatures.


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of the specification: https://github.com/standard-webhooks/standard-webhooks."""
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = headers_of([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_is_replaced_without_a_post_that_the_receiver_refuses(receiver: Receiver) -> None:
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    hook_with_both = Hook("one", receiver.url(), keys_of(f"{SECRET}\n\n  {other}\n"), ("alias.moved",))
    assert _Attempt(hook_with_both).post(Post(1, "msg_1", b"{}", 0, None)) == ("", 0)
    (post,) = receiver.posts
    for secret in (SECRET, other):
        assert verify(secret, post.headers, post.body) == "msg_1"
    with pytest.raises(errors.SignatureError):
        verify("whsec_" + base64.b64encode(b"x" * 32).decode(), post.headers, post.body)


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-timestamp": "9" * 400},
        {"webhook-timestamp": "9" * 5000},
        {"webhook-timestamp": "1e3"},
        {"webhook-timestamp": "-1000"},
        {"webhook-timestamp": "1_000"},
        {"webhook-timestamp": "\u0661"},
        {"webhook-id": "\udcff"},
        {"webhook-signature": "v1,\udcff"},
        {"webhook-signature": "v1,\u00fc"},
        {"webhook-signature": "v1"},
        {"webhook-signature": "v1,"},
    ],
)
def test_headers_of_an_attacker_are_refused_with_one_error(changed: dict[str, str]) -> None:
    headers = headers_of([key_of(SECRET)], "msg_1", 1000, b"body")
    with pytest.raises(errors.SignatureError):
        verify(SECRET, {**headers, **changed}, b"body", now_seconds=1000)


def test_a_post_that_was_changed_or_recorded_is_refused() -> None:
    headers = headers_of([key_of(SECRET)], "msg_1", 1000, b"body")
    assert verify(SECRET, headers, b"body", now_seconds=1000) == "msg_1"
    more = {name.title(): value for name, value in headers.items()}
    more["Webhook-Signature"] = "v1,AAAA v2,xxxx " + more["Webhook-Signature"]
    assert verify(SECRET, more, b"body", now_seconds=1299) == "msg_1"
    other = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    for secret, changed, body, now in (
        (SECRET, {}, b"other", 1000),
        (other, {}, b"body", 1000),
        (SECRET, {"webhook-id": "msg_2"}, b"body", 1000),
        (SECRET, {"webhook-timestamp": "1001"}, b"body", 1000),
        (SECRET, {"webhook-timestamp": "x"}, b"body", 1000),
        (SECRET, {"webhook-signature": ""}, b"body", 1000),
        (SECRET, {}, b"body", 1301),
        (SECRET, {}, b"body", 699),
    ):
        with pytest.raises(errors.SignatureError):
            verify(secret, {**headers, **changed}, body, now_seconds=now)
    with pytest.raises(errors.SignatureError, match="missing or malformed"):
        verify(SECRET, {}, b"body")
    assert verify(SECRET, headers_of([key_of(SECRET)], "msg_1", int(time.time()), b""), b"") == "msg_1"
