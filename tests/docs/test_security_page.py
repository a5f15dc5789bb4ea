"""docs/security.md, run: the commands of its section on encryption, as one script, with free ports."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cogment_model_registry.settings import DirectorySettings, Settings, all_settings
from tests import pages
from tests.ports import free_ports
from tests.processes import clean_environment

PAGE = "docs/security.md"
RUN_SECONDS = 100
PORT = re.compile(r"^(\w+_PORT)=\d+$", re.MULTILINE)


def script() -> str:
    """Return the commands of the page, with free ports and an end at the first one that fails."""
    text = "\n".join(pages.blocks(PAGE, "sh"))
    ports = iter(free_ports(len(PORT.findall(text))))
    return "set -euo pipefail\n" + PORT.sub(lambda match: f"{match[1]}={next(ports)}", text)


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_of_the_page_work_from_top_to_bottom(tmp_path: Path) -> None:
    path = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))
    programs = ("bash", "cogment", "curl", "grpcurl", "openssl")
    if missing := [name for name in programs if not shutil.which(name, path=path)]:
        pytest.skip(f"{PAGE} cannot be run here: there is no {', '.join(missing)}")
    output_path, directory = tmp_path / "output", tmp_path / "rehearsal"
    directory.mkdir()
    with output_path.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", script()],
            cwd=directory,
            env={**clean_environment(), "PATH": path},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what a failure leaves running can be ended as a whole
        )
        try:
            code: int | None = process.wait(RUN_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            left = pages.end_session(process)
    logs = "".join(log.read_text() for log in directory.glob("*.log"))
    assert code == 0, f"exit code {code} after:\n{output_path.read_text()}\n{logs}"
    assert not left, f"the page leaves processes behind, after:\n{output_path.read_text()}"
    assert "warning" not in logs


def test_every_block_is_run() -> None:
    # text and yaml: an example for a cluster; json: vectors of signatures, which tests/records/test_signatures.py takes
    assert pages.languages(PAGE) == {"json", "sh", "text", "yaml"}
    assert len(pages.blocks(PAGE, "sh")) >= 8


def test_the_page_names_every_setting_of_tls() -> None:
    for kind in (Settings, DirectorySettings):
        names = {setting.name for setting in all_settings(kind) if "tls" in setting.name}
        assert not {name for name in names if name not in pages.text_of(PAGE)}
