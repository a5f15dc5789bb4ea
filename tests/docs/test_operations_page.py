"""The shell commands of docs/operations.md run with real processes, and its statements about files are checked.

The blocks marked `sh` are one script, from the top of the page to its bottom, which runs unchanged except for ports.
Those marked `console` need root or systemd: they are compared with the files of the working copy instead.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cogment_model_registry.settings import Settings, all_settings
from tests import pages
from tests.certificates import LOCAL, Authority
from tests.ports import free_port, free_ports
from tests.processes import clean_environment, run_cogment
from tests.waiting import PATIENCE_SECONDS, wait_until
from tests.web.http import Http, http_server
from tests.web.test_encryption import trusting

ROOT = pages.ROOT
PAGE = pages.text_of("docs/operations.md")

RUN_SECONDS = 100
PORT = re.compile(r"^(\w+_PORT)=\d+$", re.MULTILINE)


def blocks(language: str) -> list[str]:
    """Return the blocks of the page in a language, in order."""
    return pages.blocks("docs/operations.md", language)


def root_commands() -> list[str]:
    """Return the commands after prompts."""
    lines = "".join(blocks("console")).splitlines()
    return [line[2:] for line in lines if line.startswith(("# ", "$ "))]


def script() -> str:
    """Return the commands of the page, with free ports, as a script that stops at the first failure."""
    text = "\n".join(blocks("sh"))
    ports = iter(free_ports(len(PORT.findall(text))))
    return "set -euo pipefail\n" + PORT.sub(lambda match: f"{match[1]}={next(ports)}", text)


def environment() -> dict[str, str]:
    """Return the environment of a user who has installed the registry."""
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    return {**clean_environment(), "PATH": path}


@pytest.fixture
def programs() -> None:
    """Skip the test if a program that the page requires is missing."""
    path = environment()["PATH"]
    missing = [name for name in ("bash", "cogment", "curl", "grpcurl", "tar") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"docs/operations.md cannot be run here: there is no {', '.join(missing)}")
    result = subprocess.run(
        ["grpcurl", "-version"], env={"PATH": path}, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    if result.returncode:
        pytest.skip(f"docs/operations.md cannot be run here: grpcurl does not run: {result.stderr.decode().strip()}")


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_of_the_page_work_from_top_to_bottom(programs: None, tmp_path: Path) -> None:
    output_path = tmp_path / "output"
    directory = tmp_path / "rehearsal"
    directory.mkdir()
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script()],
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so everything that a failure leaves running can be killed
        )
        try:
            code = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            left = pages.end_session(process)
    text = output_path.read_text()
    assert code == 0, f"exit code {code} after:\n{text}"
    assert not left, f"the page leaves processes behind, after:\n{text}"
    assert "[1] Services found" in text
    assert '"dataChunk": "d2VpZ2h0cyAx"' in text
    [log] = (directory / "logs").iterdir()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] in ("serving", "stopped")] == [
        "serving",
        "stopped",
    ] * 4
    assert {event["level"] for event in events} <= {"debug", "info"}


def test_every_block_with_commands_is_run_or_checked() -> None:
    assert pages.languages("docs/operations.md") == {
        "",
        "console",
        "nginx",
        "sh",
        "yaml",
    }  # no language: output and text of files
    assert len(blocks("sh")) >= 10


def test_the_installation_matches_the_makefile() -> None:
    made = re.findall(r"-m pip install (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    [pins] = [arguments for arguments in made if "serve.txt" in arguments]
    [package] = {arguments for arguments in made if "--editable" in arguments}
    commands = root_commands()
    assert f"/opt/cogment-model-registry/bin/python -m pip install {pins}" in commands
    assert f"/opt/cogment-model-registry/bin/python -m pip install {package.replace('--editable ', '')}" in commands
    assert (ROOT / "requirements/serve.txt").is_file()


def test_the_commands_for_root_are_the_expected_ones() -> None:
    known = {
        *("python3", "/opt/cogment-model-registry/bin/python", "/opt/cogment-model-registry/bin/cogment"),
        *("useradd", "install", "systemctl", "journalctl", "podman", "docker", "export", "rm"),
    }
    assert {command.split()[0] for command in root_commands()} == known


def test_the_commands_for_root_use_existing_paths_user_and_unit() -> None:
    unit = (ROOT / "deploy/cogment-model-registry.service").read_text()
    text = "\n".join(root_commands())
    assert "User=cogment\n" in unit
    assert re.search(r"^useradd .* cogment$", text, re.MULTILINE)
    assert "EnvironmentFile=-/etc/cogment-model-registry/environment\n" in unit
    assert "/etc/cogment-model-registry/environment" in text
    assert "ExecStart=/opt/cogment-model-registry/bin/cogment " in unit
    for path in re.findall(r"\bdeploy/[\w.-]+", PAGE):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"^(?:systemctl (?:enable --now|status)|journalctl --unit) (\S+)", text, re.MULTILINE):
        assert (ROOT / f"deploy/{name}.service").is_file(), name


def test_the_environment_file_of_the_page_is_accepted() -> None:
    [text] = re.findall(r"<<'EOF'\n(.*?)^EOF$", PAGE, re.MULTILINE | re.DOTALL)
    variables = dict(line.split("=", 1) for line in text.splitlines())
    assert set(variables) <= {setting.environment for setting in all_settings(Settings)}
    settings = Settings.load({}, variables)
    assert (settings.host, settings.cache_max_bytes) == ("192.0.2.10", 8 * 2**30)


def test_the_numbers_on_the_page_match_the_unit_and_the_settings() -> None:
    unit = (ROOT / "deploy/cogment-model-registry.service").read_text()
    settings = Settings()
    assert "TimeoutStopSec=30\n" in unit
    assert "waits 30 seconds" in PAGE
    for part in ("RestartSec=5\n", "StartLimitBurst=60\n", "StartLimitIntervalSec=600\n"):
        assert part in unit
    assert "after five seconds, up to 60 times in ten minutes" in PAGE
    assert f"`grace_seconds` ({settings.grace_seconds:g} by default)" in PAGE
    assert f"| `keepalive_seconds` + `keepalive_timeout_seconds` | {settings.keepalive_seconds:g} + " in PAGE
    assert f"| `max_connections` | {settings.max_connections} |" in PAGE
    assert f"| `upload_idle_seconds` | {settings.upload_idle_seconds:g} seconds |" in PAGE


def test_the_settings_that_the_page_names_exist() -> None:
    names = {setting.name for setting in all_settings(Settings)}
    table = PAGE.partition("## Limits and keepalive")[2]
    named = re.findall(r"^\| [^|]+ \| ([^|]+) \|", table, re.MULTILINE)[1:]
    assert {name for cell in named for name in re.findall(r"`(\w+)`", cell)} <= names


def test_the_configuration_of_prometheus_is_yaml_with_a_target() -> None:
    [job] = next(parsed for parsed in map(yaml.safe_load, blocks("yaml")) if "scrape_configs" in parsed)[
        "scrape_configs"
    ]
    assert job["static_configs"] == [{"targets": ["192.0.2.10:9003"]}]


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
def test_the_configuration_of_nginx_passes_on_what_browsers_and_programs_need(tmp_path: Path) -> None:
    [block] = blocks("nginx")
    [flags] = re.findall(r"in front of a server with `--http_port=9080 (.*)`", PAGE)
    authority, port, archive = Authority(tmp_path), free_port(), tmp_path / "archive"
    issued = authority.issue(names=(*LOCAL, "DNS:registry.example"))
    with http_server(archive, *flags.split()) as server:
        here = {
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/nginx/registry.pem": str(issued.certificate),
            "/etc/nginx/registry.key": str(issued.key),
            "127.0.0.1:9080": f"127.0.0.1:{server.http.port}",
        }
        for documented, actual in here.items():
            assert documented in block
            block = block.replace(documented, actual)
        with nginx(tmp_path / "nginx", block):
            http = Http(port, trusting(authority))
            wait_until(lambda: is_ready(http))
            token = run_cogment(
                "token", "create", f"--archive_dir={archive}", "--name=ops", "--scope=admin"
            ).stdout.strip()
            data, name = os.urandom(3 << 20), {"Host": "registry.example"}
            assert http.with_token(token).ask("PUT", "/models/m/versions", data, name).status == 201
            path = "/models/m/versions/1/data"
            assert http.with_token(token).get(path, name).body == data
            assert http.with_token(token).get(path, {**name, "Range": "bytes=5-9"}).body == data[5:10]
            assert http.get("/readyz", {"Host": "other.example"}).status == 421
            login = http.form("/login", f"token={token}", {**name, "Origin": "https://registry.example"})
            assert login.status == 303
            assert "Secure" in login.headers["set-cookie"]
            (cookie,) = login.cookies.values()
            connection = http.connect()
            connection.request("GET", "/api/v1/events", headers={**name, "Cookie": cookie})
            response = connection.getresponse()
            wait_until(lambda: b"event: caught_up" in response.readline())  # nothing is buffered
            connection.close()


def is_ready(http: Http) -> bool:
    try:
        return http.get("/readyz", {"Host": "registry.example"}).status == 200
    except OSError:
        return False


@contextlib.contextmanager
def nginx(folder: Path, server: str) -> Iterator[None]:
    """Return a context manager for nginx with a server."""
    folder.mkdir()
    places = "".join(f"{name}_temp_path {folder}/{name};" for name in ("proxy", "fastcgi", "uwsgi", "scgi"))
    places += f"client_body_temp_path {folder}/body;"
    configuration = folder / "nginx.conf"
    configuration.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\n"
        f"http {{ access_log off; {places}\n{server}}}\n"
    )
    process = subprocess.Popen(["nginx", "-c", str(configuration), "-p", str(folder), "-e", str(folder / "errors")])
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
