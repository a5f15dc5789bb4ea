"""What deploy/ has, held against the program: its flags, its variables, its files, and the health check, which is run.

No image is built here, for want of an engine on the machines that test.
"""

import ast
import configparser
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.settings import Settings, all_settings
from tests.certificates import Authority
from tests.mounts import AS_ROOT, all_read_only, mounted, needs_root, reaching
from tests.processes import ServerProcess, clean_environment, run, run_cogment, server_process
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Http

ROOT = Path(__file__).parent.parent.parent
UNIT_PATH = ROOT / "deploy/cogment-model-registry.service"
CONTAINERFILE = (ROOT / "deploy/Containerfile").read_text()

NOBODY = 65534

COMMAND = "cogment services model_registry"
VARIABLES = {setting.environment for setting in all_settings(Settings)}


@pytest.fixture
def unit() -> configparser.ConfigParser:
    """The unit; a name that comes twice in a section is an error."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] # as the library's documentation does it
    parser.read_string(UNIT_PATH.read_text())
    return parser


def accepted(*flags: str) -> None:
    """Fail unless the program takes these flags; it then says what it is and ends."""
    result = run_cogment("services", "model_registry", *flags, "--version")
    assert (result.returncode, result.stderr) == (0, "")


def loaded(*flags: str, **environment: str) -> Settings:
    """Return the settings that flags and variables give, which must be allowed."""
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    return Settings.load(values, environment)


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze; the other tests of this module parse the unit")
    copy = tmp_path / UNIT_PATH.name
    # The program is where the installation puts it, which is not here.
    copy.write_text(re.sub(r"(?<=^ExecStart=)\S+", sys.executable, UNIT_PATH.read_text(), flags=re.MULTILINE))
    command = [program, "verify", "--man=no", str(copy)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    assert (result.returncode, result.stdout + result.stderr) == (0, "")


def test_the_program_accepts_the_command_of_the_unit(unit: configparser.ConfigParser) -> None:
    program, *arguments = unit["Service"]["ExecStart"].split()
    assert program == "/opt/cogment-model-registry/bin/cogment"
    assert arguments[:2] == COMMAND.split()[1:]
    accepted(*arguments[2:])
    state = f"/var/lib/{unit['Service']['StateDirectory']}"
    assert loaded(*arguments[2:]).archive_dir == f"{state}/archive"
    assert unit["Service"]["WorkingDirectory"] == state


def test_the_variables_of_the_unit_are_settings(unit: configparser.ConfigParser) -> None:
    name, _, value = unit["Service"]["Environment"].partition("=")
    assert name in VARIABLES
    assert loaded(**{name: value}).log_format == "json"


def test_the_unit_matches_how_the_server_stops_and_fails(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert float(service["TimeoutStopSec"]) >= 2 * Settings().grace_seconds
    assert service["Restart"] == "on-failure"
    assert service["ExecReload"].split()[1:] == ["-HUP", "$MAINPID"]


def test_the_unit_starts_again_what_came_too_early_and_not_what_is_set_wrongly(
    unit: configparser.ConfigParser, tmp_path: Path
) -> None:
    service = unit["Service"]
    not_again = [int(code) for code in service["RestartPreventExitStatus"].split()]
    assert run_cogment("services", "model_registry", "--port=no").returncode in not_again
    archive = f"--archive_dir={tmp_path}"
    for flags in (["--archive_dir=/dev/null/no"], [archive, "--port=0", "--host=192.0.2.1"]):  # RFC 5737: nobody's
        assert run_cogment("services", "model_registry", *flags).returncode not in (0, *not_again)
    seconds_of_trying = int(unit["Unit"]["StartLimitBurst"]) * float(service["RestartSec"])
    assert 120 <= seconds_of_trying < float(unit["Unit"]["StartLimitIntervalSec"])


def test_the_unit_waits_for_the_file_system_of_the_archive(unit: configparser.ConfigParser) -> None:
    place = unit["Unit"]["RequiresMountsFor"]
    assert unit["Service"]["ExecStart"].endswith(f"--archive_dir={place}/archive")


def test_the_unit_gives_few_rights(unit: configparser.ConfigParser) -> None:
    service = unit["Service"]
    assert service["User"] not in ("", "root")
    for name in ("ProtectHome", "PrivateTmp", "PrivateDevices", "NoNewPrivileges", "RestrictSUIDSGID"):
        assert service[name] == "true", name
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""


def test_systemd_finds_little_exposure_in_the_unit() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze; the test before looks at the most important settings")
    result = run(program, "security", "--offline=true", "--threshold=19", "--no-pager", str(UNIT_PATH))
    if "Unknown option" in result.stderr or "unrecognized option" in result.stderr:
        pytest.skip("this systemd-analyze rates no files")
    # The threshold is ten times the exposure, which is from 0 to 10; without sandboxing it is over 9.
    assert result.returncode == 0, result.stdout + result.stderr


def sandboxed(directory: Path, unit: configparser.ConfigParser) -> list[str]:
    """Return the words before a command that give it the rights of the unit, as far as they are tried without systemd.

    It runs as another user, without capabilities and new privileges; all file systems are read-only but for the
    directory of the state and a private /tmp; /home is empty.
    """
    needs_root()
    state = f"/var/lib/{unit['Service']['StateDirectory']}"
    reach = reaching(directory / "reached", [ROOT, sys.prefix, sys.base_prefix])
    made = directory / "state"
    made.mkdir()
    os.chown(made, NOBODY, NOBODY)
    mounts = [
        "mount -t tmpfs -o mode=755 none /var/lib",
        f"mkdir {state}",
        f"mount --bind {made} {state}",
        "mount -t tmpfs -o mode=000 none /home",
        all_read_only(writable=[state]),
        "mount -t tmpfs -o mode=1777 none /tmp",
    ]
    switch = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    switch += ["--inh-caps=-all", "--bounding-set=-all", "sh", "-c", f'umask 0027; cd {state}; exec "$@"', "sh"]
    return [*reach, *mounted(*mounts, unshare=AS_ROOT), *switch]


def test_the_server_works_with_the_rights_of_the_unit(unit: configparser.ConfigParser, tmp_path: Path) -> None:
    archive = f"/var/lib/{unit['Service']['StateDirectory']}/archive"
    before = sandboxed(tmp_path, unit)
    with server_process(Path(archive), "--local_socket=/tmp/socket", "--http_port=0", before=before) as server:
        use(f"grpc://127.0.0.1:{server.port}")
        use_http(server)
        assert psutil.Process(server.pid).uids().effective == NOBODY
        assert server.stop() == 0
        assert not [line for line in server.lines if "warning" in line or "error" in line]
    assert {path.name for path in (tmp_path / "state/archive").iterdir()} >= {"m"}
    for place in ("/", "/etc", "/usr", "/var/lib"):
        assert "Read-only file system" in run(*before, "touch", f"{place}/written").stderr


def use(endpoint: str) -> None:
    """Use a server as clients do: both tiers, and versions that are large enough for the local socket."""
    data = os.urandom(3 << 20)
    with ModelRegistry(endpoint) as registry:
        for create in (registry.publish, registry.store):
            assert registry.retrieve("m", create("m", data).number) == data
        next(registry.watch("m"))


def use_http(server: ServerProcess) -> None:
    """Use a server as browsers and curl do: versions that are sent from files, and such that arrive."""
    http = Http(int(server.wait_for_line(r"\bhttp_port[\"=: ]+(\d+)")[1]))
    data = os.urandom(3 << 20)
    assert http.ask("PUT", "/models/m/versions?archived", data).status == HTTPStatus.CREATED
    assert http.get("/models/m/versions/latest/data").body == data
    assert http.get("/models/m", {"Accept": "text/html"}).status == HTTPStatus.OK


def test_the_unit_allows_every_system_call_that_the_server_makes(
    unit: configparser.ConfigParser, tmp_path: Path
) -> None:
    analyze, strace = shutil.which("systemd-analyze"), shutil.which("strace")
    if not analyze or not strace or run(strace, "-qq", "-o", os.devnull, "true").returncode:
        pytest.skip("there is no systemd-analyze that knows the groups, or no strace that may trace")
    trace = tmp_path / "trace"
    follow = [strace, "-f", "-qq", "--signal=none", f"--output={trace}"]
    with server_process(tmp_path / "archive", "--metrics_port=0", "--http_port=0", before=follow) as server:
        use(f"grpc://127.0.0.1:{server.port}")
        use_http(server)
        [traced] = psutil.Process(server.pid).children()
        traced.send_signal(signal.SIGHUP)
        server.wait_for_line("rescanned the archive")
        traced.terminate()
        assert server.wait() == 0
    made = set(re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE))
    assert len(made) > 50
    assert made <= calls_of(unit["Service"]["SystemCallFilter"], run(analyze, "syscall-filter", "--no-pager").stdout)


def calls_of(name: str, text: str) -> set[str]:
    """Return the system calls of a group, which may have other groups, as systemd prints all groups."""
    parts = re.split(r"^(@[\w-]+)$", text, flags=re.MULTILINE)[1:]
    groups = {
        group: re.findall(r"^ +(@?\w[\w-]*)$", body, re.MULTILINE)
        for group, body in zip(parts[::2], parts[1::2], strict=True)
    }
    found: set[str] = set()
    for each in groups[name]:
        found |= calls_of(each, text) if each.startswith("@") else {each}
    return found


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile, with continued lines joined."""
    text = re.sub(r"^#.*\n", "", CONTAINERFILE, flags=re.MULTILINE).replace("\\\n", " ")
    return [(name, rest) for name, rest in (line.split(None, 1) for line in text.splitlines() if line.strip())]


def the(name: str) -> str:
    """Return what the last instruction of a name says, which is the one of the image."""
    return [rest for each, rest in instructions() if each == name][-1]


def health_command() -> list[str]:
    """Return the command of the health check, for the Python and the files of this working copy."""
    program, script = json.loads(the("HEALTHCHECK").partition("CMD")[2])
    assert program == "python"
    [copied] = [rest.split() for name, rest in instructions() if name == "COPY" and rest.endswith(f" {script}")]
    return [sys.executable, "-I", str(ROOT / copied[0])]


def is_healthy(**variables: str) -> bool:
    """Return what the health check says in a container with these variables."""
    environment = {**clean_environment(), **variables}
    result = subprocess.run(
        health_command(), env=environment, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    return result.returncode == 0


def test_the_image_copies_existing_files() -> None:
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=")]
    assert {source for *sources, _ in copied for source in sources} >= {"requirements/serve.txt", "src"}
    for *sources, _ in copied:
        for source in sources:
            assert (ROOT / source).exists(), source


def is_ignored(name: str) -> bool:
    """Return whether the build of the image gets no file or directory of this name: the last pattern decides.

    The patterns are simple ones: `*` for all, `!` and a path for one that is needed, and `**/` and a name.
    """
    ignored = False
    for line in (ROOT / ".containerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        parts = name.split("/")
        path, anywhere = pattern.split("/"), pattern.removeprefix("**/")
        if pattern == "*" or parts[: len(path)] == path or (anywhere != pattern and anywhere in parts):
            ignored = not line.startswith("!")
    return ignored


def test_the_build_of_the_image_gets_what_it_copies_and_nothing_else() -> None:
    copied = [rest.split() for name, rest in instructions() if name == "COPY" and not rest.startswith("--from=")]
    needed = {source for *sources, _ in copied for source in sources}
    assert [source for source in needed if is_ignored(source)] == []
    assert not is_ignored("src/cogment_model_registry/__main__.py")
    assert is_ignored("src/cogment_model_registry/__pycache__/__main__.pyc")
    tops = {source.split("/")[0] for source in needed}
    assert [path.name for path in ROOT.iterdir() if path.name not in tops and not is_ignored(path.name)] == []


def test_the_image_has_the_files_that_the_build_reads() -> None:
    copied = " ".join(rest for name, rest in instructions() if name == "COPY")
    for name in re.findall(r"^(?:readme = \"|license-files = \[\")([\w.]+)", _project(), re.MULTILINE):
        assert name in copied.split()


def _project() -> str:
    return (ROOT / "pyproject.toml").read_text()


def test_the_image_installs_pinned_versions_as_the_makefile_does() -> None:
    runs = " ".join(rest for name, rest in instructions() if name == "RUN")
    assert "--require-hashes -r requirements/serve.txt" in runs
    assert "--no-deps --no-build-isolation ." in runs
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert len(set(bases)) == 1
    minor = re.fullmatch(r"python:3\.(\d+)-slim", bases[0])
    assert minor, bases
    assert f"Programming Language :: Python :: 3.{minor[1]}" in _project()


def test_the_image_has_what_each_kind_of_server_needs() -> None:
    extras = tomllib.loads(_project())["project"]["optional-dependencies"]
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements/serve.txt").read_text(), re.MULTILINE)
    for extra in ("server", "web", "oidc", "signatures", "bucket", "postgresql"):
        for need in extras[extra]:
            [name] = re.findall(r"^[\w-]+", need)
            assert name.lower() in pinned, need


def test_the_image_serves_as_an_unprivileged_user_with_its_settings() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", the("USER"))
    assert json.loads(the("ENTRYPOINT")) == COMMAND.split()
    variables = dict(part.split("=", 1) for part in the("ENV").split())
    settings = {name: value for name, value in variables.items() if name.startswith("COGMENT_")}
    assert set(settings) <= VARIABLES
    assert loaded(**settings).archive_dir.startswith(f"{the('VOLUME').strip()}/")
    image = loaded(**settings)
    assert [*map(int, the("EXPOSE").split())] == [image.port, image.metrics_port, HTTP_PORT]
    assert the("STOPSIGNAL") == "SIGTERM"


HTTP_PORT = 9080
"""The port of the compose files and the manifests; the image alone does not serve HTTP."""

METRICS_PORT = "COGMENT_MODEL_REGISTRY_METRICS_PORT"
HOST = "COGMENT_MODEL_REGISTRY_HOST"


def metrics_port_of(server: ServerProcess) -> str:
    return server.wait_for_line(r"\bmetrics_port[\"=: ]+(\d+)")[1]


@pytest.mark.parametrize("encryption", ["none", "tls", "client certificates"])
def test_the_health_check_succeeds_against_a_server_and_fails_without_one(tmp_path: Path, encryption: str) -> None:
    flags = ["--metrics_port=0"]
    if encryption != "none":
        authority = Authority(tmp_path)
        # Of a name that is not that of this host.
        flags += authority.issue(names=("DNS:registry.example",)).flags
        flags += [f"--tls_client_ca={authority.certificate}"] if encryption == "client certificates" else []
    with server_process(tmp_path / "archive", *flags) as server:
        port = metrics_port_of(server)
        assert is_healthy(**{METRICS_PORT: port})
        assert is_healthy(**{METRICS_PORT: port, HOST: "*"})
        assert is_healthy(**{METRICS_PORT: port, HOST: "tcp://10.0.0.1:9002"})
        assert server.stop() == 0
        assert not is_healthy(**{METRICS_PORT: port})


def test_the_health_check_asks_the_interface_of_the_server(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive", "--host=127.0.0.2", "--metrics_port=0") as server:
        port = metrics_port_of(server)
        assert is_healthy(**{METRICS_PORT: port, HOST: "127.0.0.2"})
        assert not is_healthy(**{METRICS_PORT: port})


def test_the_health_check_fails_against_something_else_that_listens() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        assert not is_healthy(**{METRICS_PORT: str(other.getsockname()[1])})


def test_the_health_check_fails_while_the_server_does_not_serve(tmp_path: Path) -> None:
    with server_process(tmp_path / "archive", "--metrics_port=0") as server:
        port = metrics_port_of(server)
        (tmp_path / "archive").rename(tmp_path / "elsewhere")
        wait_until(lambda: not is_healthy(**{METRICS_PORT: port}))


def test_the_health_check_gives_up_before_the_engine_ends_it() -> None:
    [seconds] = re.findall(r"--timeout=(\d+)s", the("HEALTHCHECK"))
    script = (ROOT / "deploy/healthcheck.py").read_text()
    [each] = re.findall(r"^SECONDS = (\d+)$", script, re.MULTILINE)
    assert 2 * int(each) < int(seconds)


def test_the_health_check_needs_only_the_standard_library_and_the_defaults_of_the_image() -> None:
    script = (ROOT / "deploy/healthcheck.py").read_text()
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported
    assert imported <= sys.stdlib_module_names
    assert set(re.findall(r"COGMENT_\w+", script)) <= VARIABLES
    [port] = re.findall(r"else (\d+)$", script, re.MULTILINE)
    assert f"{METRICS_PORT}={port}" in the("ENV")
