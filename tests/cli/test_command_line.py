"""The command line of the server, in real processes."""

import datetime
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from cogment_model_registry import __version__
from cogment_model_registry.settings import Settings, all_settings
from cogment_model_registry.wire import messages as m
from tests.in_process import run_in_process
from tests.processes import START_SECONDS, clean_environment, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, wait_until
from tools.generate_docs import commands

COGMENT = (sys.executable, "-m", "cogment_model_registry")
SCRIPTS = ("cogment", "cogment-model-registry")
REGISTRY = ("services", "model_registry")


@dataclass
class Started:
    """A server that a command started; `output` is set after it has ended."""

    pid: int
    address: str
    port: int
    output: str = ""


@contextmanager
def started(*command: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> Iterator[Started]:
    """Return a context manager for a command that serves; at the end it must exit with 0 and an empty standard error.

    Its address is found from the sockets of the process, independent of what it prints.
    """
    env = {**clean_environment(), **(environment or {})}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=env, cwd=cwd, text=True) as process:
        try:
            ip, port = wait_until(lambda: next(iter(listening(process.pid)), None))
            server = Started(process.pid, f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", port)
            assert answers(server.address)
            yield server
            process.send_signal(signal.SIGTERM)
            server.output, errors = process.communicate(timeout=START_SECONDS)
            assert (process.returncode, errors) == (0, "")
        finally:
            process.kill()


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses that a process listens on; gRPC listens on IPv4 addresses through IPv6 sockets if it can."""
    connections = psutil.Process(pid).net_connections(kind="tcp")
    addresses = [item.laddr for item in connections if item.status == psutil.CONN_LISTEN]
    return {(address.ip.removeprefix("::ffff:"), address.port) for address in addresses}


def answers(address: str) -> bool:
    """Return whether a registry answers at an address."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        call: Any = channel.unary_unary(f"/{m.SERVICE_NAMES[0]}/Version")
        try:
            return bool(m.ServiceVersionInfo.FromString(call(b"", timeout=PATIENCE_SECONDS)).versions)
        except grpc.RpcError:
            return False


def is_refused(result: subprocess.CompletedProcess[str], *parts: str) -> bool:
    """Return whether a command ended with exit code 2 and one line that contains all of the parts."""
    assert result.stdout == ""
    assert result.stderr.endswith("\n")
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert all(part in result.stderr for part in parts), result.stderr
    return result.returncode == 2


# Commands.


@pytest.mark.parametrize(("script", "service"), list(zip(SCRIPTS, ("registry", "model_registry"), strict=True)))
def test_both_scripts_serve_and_the_service_has_two_names(tmp_path: Path, script: str, service: str) -> None:
    program = str(Path(sys.executable).with_name(script))
    flags = ("--port", "0", "--host", "127.0.0.1", "--archive_dir", str(tmp_path / "archive"))
    with started(program, "services", service, *flags) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        assert (tmp_path / "archive").is_dir()


@pytest.mark.parametrize("script", SCRIPTS)
def test_program_and_service_print_their_version(script: str) -> None:
    program = str(Path(sys.executable).with_name(script))
    for words in ((), REGISTRY):
        output = subprocess.run(
            [program, *words, "--version"], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
        )
        assert __version__ in output.stdout
        assert len(output.stdout.splitlines()) == 1
        assert output.stderr == ""


@pytest.mark.parametrize("words", [(), ("services",)], ids=["cogment", "cogment services"])
def test_command_without_a_subcommand_shows_its_help(words: tuple[str, ...]) -> None:
    alone, asked = run_in_process(*words), run_in_process(*words, "--help")
    assert asked.returncode == 0
    assert asked.stdout.startswith("Usage: cogment")
    assert asked.stdout.strip() in alone.stdout + alone.stderr


def test_help_explains_each_setting_with_its_variable_and_default() -> None:
    result = run_in_process(*REGISTRY, "--help")
    assert result.returncode == 0
    assert result.stderr == ""
    sections = re.split(r"^  (?:-h, )?--", result.stdout, flags=re.MULTILINE)[1:]
    shown = {re.split(r"[\s,]", section)[0]: "".join(section.split()) for section in sections}
    assert list(shown) == [*[setting.name for setting in all_settings(Settings)], "version", "help"]
    for setting in all_settings(Settings):
        text = shown[setting.name]
        assert "".join(setting.help.split()) in text
        assert setting.environment in text
        assert f"default:{''.join(setting.default_text.split())}" in text


@pytest.mark.parametrize("columns", ["80", "120"])
def test_help_breaks_no_variable_name_over_two_lines(columns: str) -> None:
    words = run_in_process(*REGISTRY, "--help", environment={"COLUMNS": columns}).stdout.replace(";", " ").split()
    assert [setting.environment for setting in all_settings(Settings) if setting.environment not in words] == []


# Settings.


def test_settings_come_from_the_environment_and_directories_are_created(tmp_path: Path) -> None:
    archive, log_file = tmp_path / "a/b/archive", tmp_path / "c/d/cogment.log"
    environment = {
        "COGMENT_MODEL_REGISTRY_PORT": "0",
        "COGMENT_MODEL_REGISTRY_HOST": "127.0.0.1",
        "COGMENT_MODEL_REGISTRY_ARCHIVE_DIR": str(archive),
        "COGMENT_LOG_FILE": str(log_file),
    }
    with started(*COGMENT, *REGISTRY, environment=environment) as server:
        assert server.address == f"127.0.0.1:{server.port}"
        assert archive.is_dir()
        assert log_file.parent.is_dir()
    assert server.output == ""


def test_archive_is_below_the_working_directory_by_default(tmp_path: Path) -> None:
    with started(*COGMENT, *REGISTRY, "--port=0", "--host=127.0.0.1", cwd=tmp_path):
        assert (tmp_path / ".cogment/model_registry").is_dir()


def test_a_flag_overrides_the_environment(tmp_path: Path) -> None:
    environment = {"COGMENT_LOG_FORMAT": "nonsense", "COGMENT_MODEL_REGISTRY_PORT": "1"}
    with server_process(tmp_path / "archive", "--log_format=json", environment=environment) as server:
        assert json.loads(server.lines[0])["port"] == server.port != 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("grpc_reflection", "maybe"),
        ("cache_max_items", "many"),
        ("cache_max_bytes", "1.5 MiB"),
        ("log_level", "loud"),
        ("directory_endpoint", "foo:9005"),
        ("directory_registration_properties", "a=b=c"),
        ("upload_idle_seconds", "-1"),
        ("host", "a b"),
    ],
)
def test_setting_that_is_not_allowed_ends_the_start_with_one_line(tmp_path: Path, name: str, text: str) -> None:
    setting = next(setting for setting in all_settings(Settings) if setting.name == name)
    by_flag = run_in_process(*REGISTRY, f"--{name}={text}", cwd=tmp_path)
    assert is_refused(by_flag, f"--{name}", text, setting.kind.allowed)
    by_variable = run_in_process(*REGISTRY, cwd=tmp_path, environment={setting.environment: text})
    assert is_refused(by_variable, name, setting.environment, text, setting.kind.allowed)
    assert list(tmp_path.iterdir()) == [], "nothing is created before all settings are known to be good"


@pytest.mark.parametrize(
    ("service", "variable", "place"),
    [
        ("model_registry", "COGMENT_MODEL_REGISTRY_PORT", "--archive_dir=/dev/null/archive"),
        ("directory", "COGMENT_DIRECTORY_PORT", "--persistence_file=/dev/null/file"),
    ],
)
def test_a_service_link_variable_is_ignored_with_a_warning(service: str, variable: str, place: str) -> None:
    link = "tcp://10.0.0.1:9002"
    result = run_cogment("services", service, place, "--log_format=json", environment={variable: link})
    assert result.returncode == 3, "the archive fails, not the port"
    [line] = map(json.loads, result.stdout.splitlines())
    assert (line["level"], line["variable"], line["value"]) == ("warning", variable, link)
    assert "--port gives the setting" in line["event"]
    result = run_cogment("services", service, place, "--port=0", environment={variable: link})
    assert (result.returncode, result.stdout) == (3, "")


def test_value_with_line_breaks_and_control_characters_is_reported_in_one_line(tmp_path: Path) -> None:
    result = run_in_process(*REGISTRY, "--log_level=a\nb\x1b[31mc\rd", cwd=tmp_path)
    assert is_refused(result, "log_level")
    assert result.stderr.rstrip("\n").isprintable()


@pytest.mark.parametrize(
    "words",
    [
        (*REGISTRY, "--prot=9000"),
        (*REGISTRY, "--cache-max-items=1"),
        (*REGISTRY, "--port"),
        (*REGISTRY, "9000"),
        ("services", "registri"),
        ("--nonsense",),
    ],
    ids=" ".join,
)
def test_unknown_flag_or_argument_ends_with_one_line(tmp_path: Path, words: tuple[str, ...]) -> None:
    assert is_refused(run_in_process(*words, cwd=tmp_path), "error: ", words[-1].split("=")[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "suggested"),
    [
        ("archiv", "cogment archive"),
        ("archive verfy models", "cogment archive verify"),
        ("verify models", "cogment archive verify"),
        ("list_models", "cogment client model_registry list_models"),
        ("client list-models", "cogment client model_registry list_models"),
        ("client model_registry ls", "list_models, list_versions"),
        ("client model_registry show_modle m", "cogment client model_registry show_model"),
        ("client directory inqire", "cogment client directory inquire"),
        ("client registri status", "cogment client model_registry"),
        ("services modelregistry", "cogment services model_registry"),
        ("services nonsense", "directory, model_registry"),
        ("services orchestrator", "cogment-model-registry"),
        ("launch run.yaml", "cogment-model-registry"),
        ("version", "cogment --version"),
        ("client help", "cogment client --help"),
        ("services model_registry --prot=9000", "--port"),
        ("services model_registry --archive-dir=models", "--archive_dir"),
        ("client model_registry status --time-out=3", "--timeout"),
        ("client directory inquire --typ=actor", "--type"),
        ("archive verify models --repiar", "--repair"),
    ],
)
def test_a_mistyped_argument_gets_a_suggestion(line: str, suggested: str, tmp_path: Path) -> None:
    assert is_refused(run_in_process(*line.split(), cwd=tmp_path), suggested)


@pytest.mark.parametrize(
    ("flags", "is_on"),
    [
        (["--grpc_reflection", "--cache_max_items=1"], True),
        (["--grpc_reflection=false"], False),
    ],
)
def test_reflection_can_be_enabled(tmp_path: Path, flags: list[str], is_on: bool) -> None:
    with (
        server_process(tmp_path / "archive", *flags) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        call: Any = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        list_services = b"\x3a\x00"
        if is_on:
            assert b"cogmentAPI.ModelRegistrySP" in next(call(iter([list_services]), timeout=PATIENCE_SECONDS))
        else:
            with pytest.raises(grpc.RpcError, check=lambda error: error.code() == grpc.StatusCode.UNIMPLEMENTED):
                next(call(iter([list_services]), timeout=PATIENCE_SECONDS))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("client model_registry show_model", ["MODEL", "cogment client model_registry show_model --help"]),
        ("archive export models", ["MODEL_ID", "cogment archive export --help"]),
        ("client model_registry watch m --count=soon", ["--count", "'soon' is not a valid whole number"]),
        ("client directory inquire --service_id=x", ["--service_id", "'x' is not a valid whole number"]),
    ],
)
def test_an_error_about_a_missing_argument_names_the_help(line: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert is_refused(run_in_process(*line.split(), cwd=tmp_path), *words)


@pytest.mark.parametrize("words", [words[1:] for words in commands()], ids=lambda words: " ".join(words) or "cogment")
@pytest.mark.parametrize("columns", ["40", "80"])
def test_every_help_fits_a_terminal_and_breaks_no_variable(words: tuple[str, ...], columns: str) -> None:
    text = run_in_process(*words, "--help", environment={"COLUMNS": columns}).stdout
    width = max(int(columns), 50)  # click's minimum
    usage = f"Usage: cogment {' '.join(words)}"  # a word that cannot be broken
    assert [line for line in text.splitlines() if len(line.rstrip()) > width and line.rstrip() != usage] == []
    wide = run_in_process(*words, "--help", environment={"COLUMNS": "500"}).stdout
    variables = {name for name in re.findall(r"COGMENT_[A-Z_]+", wide) if len(name) < width - 10}
    assert {name for name in variables if name not in text} == set()
    assert [line for line in text.partition("Commands:")[2].splitlines() if line.endswith("...")] == [] or width < 80


# Interfaces.


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--host=nohost.invalid", ["host nohost.invalid", "choose"]),
        ("--host=192.0.2.1", ["host 192.0.2.1", "Cannot assign requested address"]),
        ("--port=TAKEN", ["port TAKEN on 127.0.0.1", "Address already in use", "choose another port"]),
        ("--archive_dir=file", ["archive directory file", "not a directory"]),
    ],
)
def test_a_failed_start_says_what_failed_and_why(flag: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        flags = {"--host": "127.0.0.1", "--port": "0", "--archive_dir": "models"}
        flags |= dict([flag.replace("TAKEN", port).split("=")])
        result = run_cogment(*REGISTRY, *(f"{name}={value}" for name, value in flags.items()), cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (3, "", 1)
    assert all(word.replace("TAKEN", port) in result.stderr for word in words), result.stderr


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_ipv4_is_served_by_default(tmp_path: Path) -> None:
    with started(*COGMENT, *REGISTRY, "--port=0", f"--archive_dir={tmp_path}") as server:
        assert answers(f"127.0.0.1:{server.port}")


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_is_served_by_default(tmp_path: Path) -> None:
    with started(*COGMENT, *REGISTRY, "--port=0", f"--archive_dir={tmp_path}") as server:
        assert answers(f"[::1]:{server.port}")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_only_the_given_host_is_served(tmp_path: Path, host: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with started(*COGMENT, *REGISTRY, "--port=0", f"--host={host}", f"--archive_dir={tmp_path}") as server:
        assert listening(server.pid) == {(host, server.port)}
        others = {"127.0.0.1", "127.0.0.2", "[::1]"} - {host, f"[{host}]"}
        assert not any(answers(f"{other}:{server.port}") for other in others)


# The log.


@pytest.fixture
def damaged_archive(tmp_path: Path) -> Path:
    """An archive that causes an error and a debug line in the log of a start."""
    model = tmp_path / "archive/m"
    model.mkdir(parents=True)
    (model / "m.yaml").write_text("model_id: m\nuser_data: {}\n")
    (model / "m-v000001.yaml").write_text("model_id: m\n")  # without data
    (tmp_path / "archive/.no model").mkdir()
    return tmp_path / "archive"


def test_text_log_shows_the_port_and_ends_with_the_stop(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive") as server:
        assert re.search(r"\bport=(\d+)\b", server.lines[0])
        assert answers(f"127.0.0.1:{server.port}")
        assert server.stop() == 0
        assert "stopped" in server.lines[-1]
        assert "\x1b" not in "".join(server.lines), "a log that is not a terminal has no colours"


def test_json_log_is_one_object_a_line(damaged_archive: Path) -> None:
    with server_process(damaged_archive, "--log_format=json", "--log_level=trace") as server:
        assert server.stop() == 0
        events = [json.loads(line) for line in server.lines]
    assert {"error", "info", "debug"} <= {event["level"] for event in events}
    assert [event["port"] for event in events if event["event"] == "serving"] == [server.port]
    for event in events:
        assert datetime.datetime.fromisoformat(event["timestamp"]).tzinfo


@pytest.mark.parametrize(
    ("level", "shown"),
    [("5", {"debug", "info", "error"}), ("info", {"info", "error"}), ("error", {"error"}), ("off", set[str]())],
)
def test_log_shows_its_level_and_higher_ones(damaged_archive: Path, level: str, shown: set[str]) -> None:
    flags = ("--port=0", "--host=127.0.0.1", f"--archive_dir={damaged_archive}", "--log_format=json")
    with started(*COGMENT, *REGISTRY, *flags, environment={"COGMENT_LOG_LEVEL": level}) as server:
        pass
    assert {json.loads(line)["level"] for line in server.output.splitlines()} == shown


def test_log_file_has_the_local_date_in_its_name_and_is_appended_to(tmp_path: Path) -> None:
    # A time zone with another date than UTC.
    offset_hours = 14 if datetime.datetime.now(datetime.UTC).hour >= 11 else -12
    zone = datetime.timezone(datetime.timedelta(hours=offset_hours))

    def local_date() -> datetime.date:
        return datetime.datetime.now(zone).date()

    directory = tmp_path / "logs/deep"
    flags = ("--host=127.0.0.1", f"--archive_dir={tmp_path / 'archive'}", f"--log_file={directory / 'cogment.log'}")
    dates = {local_date()}
    ports = []
    for _ in range(2):
        with started(*COGMENT, *REGISTRY, "--port=0", *flags, environment={"TZ": f"<XYZ>{-offset_hours:+}"}) as server:
            ports.append(server.port)
        assert server.output == ""
    dates.add(local_date())
    files = sorted(directory.iterdir())
    assert {file.name for file in files} <= {f"cogment_{date.isoformat()}.log" for date in dates}
    text = "".join(file.read_text() for file in files)
    assert [int(port) for port in re.findall(r"\bport=(\d+)\b", text)] == ports


def test_log_file_that_cannot_be_written_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log_file = tmp_path / "file/cogment.log"
    result = run_cogment(*REGISTRY, f"--log_file={log_file}", f"--archive_dir={tmp_path / 'archive'}")
    assert result.returncode == 3
    assert len(result.stderr.splitlines()) == 1
    assert str(log_file) in result.stderr


def test_undecodable_names_do_not_break_the_log(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    try:
        os.mkdir(os.fsencode(archive) + b"/bad\xff")
    except OSError:
        pytest.skip("this file system refuses such names")
    flags = ("--port=0", "--host=127.0.0.1", f"--archive_dir={archive}", f"--log_file={tmp_path / 'x.log'}")
    with started(*COGMENT, *REGISTRY, *flags, "--log_level=debug"):
        pass
    [file] = tmp_path.glob("x_*.log")
    assert "bad" in file.read_text()
