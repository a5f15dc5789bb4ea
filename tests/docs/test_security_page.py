"""docs/security.md, run: its commands as one script with free ports, and those for a cluster with a stand-in for it."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.client.credentials import TOKEN_FILE_VARIABLE
from cogment_model_registry.client.encryption import CA_VARIABLE
from cogment_model_registry.client.endpoints import ENDPOINT_VARIABLE
from cogment_model_registry.settings import DirectorySettings, Settings, all_settings
from tests import pages
from tests.docs import kubectl
from tests.issued_tokens import jwk, jwks
from tests.mounts import needs_root
from tests.pods import ONE
from tests.ports import free_ports
from tests.processes import clean_environment
from tests.waiting import wait_until

PAGE = "docs/security.md"
RUN_SECONDS = 100
PORT = re.compile(r"^(\w+_PORT)=\d+$", re.MULTILINE)
PROGRAMS = ("bash", "cogment", "curl", "grpcurl", "openssl")
ISSUER = "https://kubernetes.default.svc.cluster.local"
TRAINER = "system:serviceaccount:models:trainer"


def script(*blocks: str) -> str:
    """Return commands of the page, with free ports and an end at the first one that fails."""
    text = "\n".join(blocks)
    ports = iter(free_ports(len(PORT.findall(text))))
    return "set -euo pipefail\n" + PORT.sub(lambda match: f"{match[1]}={next(ports)}", text)


def is_for_a_cluster(block: str) -> bool:
    return "kubectl " in block


class Session:
    """A shell that runs commands of the page in an empty directory."""

    def __init__(self, text: str, directory: Path, *programs: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self.output_path = directory.with_suffix(".output")
        path = os.pathsep.join(
            [*map(str, programs), os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)]
        )
        if missing := [name for name in PROGRAMS if not shutil.which(name, path=path)]:
            pytest.skip(f"{PAGE} cannot be run here: there is no {', '.join(missing)}")
        with self.output_path.open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", text],
                cwd=directory,
                env={**clean_environment(), "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that what a failure leaves running can be ended as a whole
            )

    def wait(self) -> None:
        """Wait until the commands have ended well."""
        code = self.process.wait(RUN_SECONDS)
        assert code == 0, f"exit code {code} after:\n{self.output}\n{self.logs}"

    @property
    def output(self) -> str:
        return self.output_path.read_text()

    @property
    def logs(self) -> str:
        return "".join(log.read_text() for log in self.directory.glob("*.log"))


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_of_the_page_work_from_top_to_bottom(tmp_path: Path) -> None:
    blocks = [block for block in pages.blocks(PAGE, "sh") if not is_for_a_cluster(block)]
    session = Session(script(*blocks), tmp_path / "rehearsal")
    try:
        session.wait()
    finally:
        left = pages.end_session(session.process)
    assert not left, f"the page leaves processes behind, after:\n{session.output}"
    assert "warning" not in session.logs
    assert "actor lacks the scope publish:policy-walker" in session.output
    assert "this server needs a token" in session.output
    assert (session.directory / "received").read_text() == "weights\n"


@pytest.mark.timeout(RUN_SECONDS + 20)
def test_the_commands_for_a_cluster_work_with_a_stand_in_for_it(tmp_path: Path) -> None:
    needs_root()
    key = rsa.generate_private_key(65537, 2048)
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    raw = {
        "/openid/v1/jwks": jwks(jwk(key, "1")).decode(),
        "/.well-known/openid-configuration": json.dumps({"issuer": ISSUER}),
    }
    (cluster / "raw.json").write_text(json.dumps(raw))
    kubectl.install(cluster / "kubectl")
    certificates = next(block for block in pages.blocks(PAGE, "sh") if "issue() {" in block)
    blocks = [block for block in pages.blocks(PAGE, "sh") if is_for_a_cluster(block)]
    assert len(blocks) == 2
    directory = tmp_path / "rehearsal"
    session = Session(script(f"ln -s {pages.ROOT}/deploy deploy", certificates, *blocks), directory, cluster)
    try:
        session.wait()
        [port] = re.findall(r'"port": (\d+)', (cluster / kubectl.LOG_NAME).read_text())
        endpoint, now = f"grpcs://localhost:{port}", int(time.time())
        claims = {"iss": ISSUER, "aud": ["model-registry"], "sub": TRAINER, "iat": now, "exp": now + 3600}
        trainer, operator = jwt.encode(claims, key, "RS256", {"kid": "1"}), (directory / "operator.token").read_text()
        trusted = str(directory / "ca.pem")
        with (
            ModelRegistry(endpoint, tls_ca=trusted, token=trainer) as ours,
            ModelRegistry(endpoint, tls_ca=trusted, token=operator.strip()) as theirs,
            ModelRegistry(endpoint, tls_ca=trusted) as nobodys,
        ):
            wait_until(lambda: may_publish(ours))  # a grant counts within a second
            assert [model.model_id for model in theirs.list_models()] == ["policy-walker"]
            with pytest.raises(errors.PermissionDeniedError):
                ours.publish("other", b"weights")
            with pytest.raises(errors.UnauthenticatedError):
                nobodys.list_models()
    finally:
        pages.end_session(session.process)
    log = [json.loads(line) for line in (cluster / kubectl.LOG_NAME).read_text().splitlines()]
    assert {line["level"] for line in log} == {"info"}


def may_publish(registry: ModelRegistry) -> bool:
    try:
        registry.publish("policy-walker", b"weights")
    except errors.PermissionDeniedError:
        return False
    return True


@pytest.mark.parametrize(
    "words",
    [
        ["create", "secret", "tls", "model-registry-tls", "--cert=pod.pem", "--key=pod.key"],
        ["create", "configmap", "model-registry-issuer", "--from-literal=issuer=x", "--from-file=jwks.json"],
    ],
)
def test_kubectl_creates_what_the_stand_in_creates(words: list[str], tmp_path: Path) -> None:
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("there is no kubectl; its stand-in reads the same words")
    page = "\n".join(pages.blocks(PAGE, "sh"))
    assert " ".join(["kubectl", *words[:3]]) in page
    openssl = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout pod.key -out pod.pem"
    subprocess.run(["bash", "-c", f"{openssl} && echo keys > jwks.json"], cwd=tmp_path, check=True, capture_output=True)
    real = subprocess.run(
        [program, *words, "--dry-run=client", "--output=json"], cwd=tmp_path, check=True, capture_output=True
    )
    cluster = tmp_path / "cluster"
    cluster.mkdir()
    kubectl.install(cluster / "kubectl")
    subprocess.run([cluster / "kubectl", *words], cwd=tmp_path, check=True)
    kept = next(path for kind in ("secret", "configmap") for path in (cluster / kind).glob("*"))
    assert {path.name for path in kept.iterdir()} == {*json.loads(real.stdout)["data"]}


def client_pod() -> dict[str, Any]:
    """Return the pod of a client on the page."""
    [pod] = map(yaml.safe_load, pages.blocks(PAGE, "yaml"))
    assert isinstance(pod, dict)
    return pod


def test_the_pod_of_a_client_fits_the_manifest_and_the_commands() -> None:
    pod = client_pod()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library closes no file
        import kubernetes_validate  # type: ignore[import-untyped]  # noqa: PLC0415

        kubernetes_validate.validate(pod, "1.37", strict=True)
    rules = ONE.the("NetworkPolicy")["spec"]["ingress"]
    assert pod["metadata"]["labels"] in [peer["podSelector"]["matchLabels"] for peer in rules[0]["from"]]
    [container] = pod["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    assert {*environment} == {ENDPOINT_VARIABLE, CA_VARIABLE, TOKEN_FILE_VARIABLE}
    service = ONE.the("Service")
    assert environment[ENDPOINT_VARIABLE] == f"grpcs://{service['metadata']['name']}.models:{Settings().port}"
    assert f"DNS:{service['metadata']['name']}.models," in pages.text_of(PAGE)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert all(os.path.dirname(environment[name]) in mounts for name in (CA_VARIABLE, TOKEN_FILE_VARIABLE))
    [source] = next(each for each in pod["spec"]["volumes"] if "projected" in each)["projected"]["sources"]
    assert f"--oidc_audience={source['serviceAccountToken']['audience']}" in ONE.container["args"]
    assert f"system:serviceaccount:models:{pod['spec']['serviceAccountName']} " in pages.text_of(PAGE)


def test_every_block_is_run_or_checked() -> None:
    # text: examples
    assert pages.languages(PAGE) <= {"sh", "text", "yaml"}
    assert len(pages.blocks(PAGE, "sh")) >= 12


def test_the_page_names_every_setting_of_tls() -> None:
    for kind in (Settings, DirectorySettings):
        names = {setting.name for setting in all_settings(kind) if "tls" in setting.name}
        assert not {name for name in names if name not in pages.text_of(PAGE)}
