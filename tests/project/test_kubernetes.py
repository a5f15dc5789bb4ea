"""The manifests for Kubernetes: valid for its API, consistent, and run as far as it goes without a cluster.

`tests/pods.py` says what is tried of a pod, and what is not. test_kubernetes_several.py tries several servers.
"""

import json
import re
import time
import warnings
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jwt
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.server import monitoring
from cogment_model_registry.settings import DirectorySettings, Settings, all_settings
from tests.certificates import LOCAL, Authority, Issued
from tests.mounts import needs_root
from tests.pods import ONE, SEVERAL, Manifest, Pod, service_links
from tests.processes import run, run_cogment
from tests.waiting import wait_until
from tests.web.http import Http
from tests.web.test_encryption import trusting

KUBERNETES = ("1.27", "1.31", "1.37")
"""Versions whose API the manifest is checked against: the oldest that clouds still run, one between, the newest."""

KEY = rsa.generate_private_key(65537, 2048)
ISSUER = "https://kubernetes.default.svc.cluster.local"
TRAINER = "system:serviceaccount:models:trainer"
MANIFEST_NAMES = {"tls": "model-registry-tls", "issuer": "model-registry-issuer"}


# The files.


MANIFESTS = [pytest.param(each, id=each.name) for each in (ONE, SEVERAL)]
OBJECTS = [
    pytest.param(document, id=f"{manifest.name} {document['kind']} {document['metadata']['name']}")
    for manifest in (ONE, SEVERAL)
    for document in manifest.documents
]


@pytest.mark.parametrize("document", OBJECTS)
@pytest.mark.parametrize("version", KUBERNETES)
def test_the_manifest_is_valid_for_the_api_of_kubernetes(document: dict[str, Any], version: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library closes no file
        import kubernetes_validate  # type: ignore[import-untyped]  # noqa: PLC0415

        kubernetes_validate.validate(document, version, strict=True)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate({**document, "unknown": 1}, version, strict=True)


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_objects_belong_to_the_same_pods(manifest: Manifest) -> None:
    labels = manifest.pod["metadata"]["labels"]
    workload, policy = map(manifest.the, ("StatefulSet", "NetworkPolicy"))
    services = [document for document in manifest.documents if document["kind"] == "Service"]
    assert workload["spec"]["selector"]["matchLabels"] == labels
    assert all(service["spec"]["selector"] == labels for service in services)
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    manifest.the("Service", workload["spec"]["serviceName"])
    targets = {port["targetPort"] for service in services for port in service["spec"]["ports"]}
    assert targets == {"grpc", "http"}
    allowed = [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert {*targets, *allowed} == {*manifest.ports}
    claims = [claim["metadata"]["name"] for claim in workload["spec"]["volumeClaimTemplates"]]
    volumes = [*claims, *(volume["name"] for volume in manifest.spec["volumes"])]
    mounts = manifest.container["volumeMounts"]
    assert sorted(mount["name"] for mount in mounts) == sorted(volumes)
    assert not any("subPath" in mount for mount in mounts)


def test_there_is_one_server_for_an_archive_on_a_volume() -> None:
    assert ONE.the("StatefulSet")["spec"]["replicas"] == 1
    claims = ONE.the("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert [claim["spec"]["accessModes"] for claim in claims] == [["ReadWriteOnce"], ["ReadWriteOnce"]]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_pod_fits_the_image_and_the_server(manifest: Manifest) -> None:
    image = (Path(__file__).parents[2] / "deploy/Containerfile").read_text()
    user = manifest.spec["securityContext"]
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in image
    settings = settings_of(manifest)
    assert {"grpc": settings.port, "metrics": settings.metrics_port, "http": settings.http_port} == manifest.ports
    # The socket between the process that serves HTTP and the server needs a directory that can be written.
    [sockets] = [mount for mount in manifest.container["volumeMounts"] if mount["name"] == "sockets"]
    [place] = [each["value"] for each in manifest.container["env"] if each["name"] == "TMPDIR"]
    assert (sockets["mountPath"], sockets.get("readOnly", False)) == (place, False)
    paths = {mount["name"]: mount["mountPath"] for mount in manifest.container["volumeMounts"]}
    assert settings.audit_log == paths["audit"]
    assert settings.tls_certificate.startswith(f"{paths['tls']}/")
    assert settings.tls_key.startswith(f"{paths['tls']}/")
    assert settings.oidc_keys.startswith(f"{paths['issuer']}/")
    assert manifest.spec["terminationGracePeriodSeconds"] >= 2 * settings.grace_seconds


def settings_of(manifest: Manifest) -> Settings:
    """Return the settings of a pod, as flags and variables give them."""
    known = {setting.environment for setting in all_settings(Settings)}
    named = {each["name"] for each in manifest.container["env"] if each["name"].startswith("COGMENT_")}
    assert named <= known
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in manifest.container["args"])
    assert {*flags} <= {setting.name for setting in all_settings(Settings)}
    pod = Pod(
        Path(),
        config_maps={MANIFEST_NAMES["issuer"]: {"issuer": ISSUER.encode()}},
        secrets={
            "model-registry-database": {"password": b"password"},
            "model-registry-object-store": {"access_key_id": b"key", "secret_access_key": b"secret"},
        },
        manifest=manifest,
    )
    return Settings.load(flags, pod.variables())


def test_the_archive_of_one_server_is_on_its_volume() -> None:
    paths = {mount["name"]: mount["mountPath"] for mount in ONE.container["volumeMounts"]}
    assert f"VOLUME {paths['archive']}\n" in (Path(__file__).parents[2] / "deploy/Containerfile").read_text()
    assert settings_of(ONE).archive_dir.startswith(f"{paths['archive']}/")


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_pod_fits_the_restricted_standard(manifest: Manifest) -> None:
    """The rules of the Pod Security Standard "restricted", https://kubernetes.io/docs/concepts/security/."""
    spec = manifest.spec
    pod, own = spec["securityContext"], manifest.container["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] != 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own["allowPrivilegeEscalation"] is False
    assert own["capabilities"] == {"drop": ["ALL"]}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & {*spec}
    assert {kind for volume in spec["volumes"] for kind in volume if kind != "name"} <= {
        "secret",
        "configMap",
        "projected",
        "emptyDir",
    }
    assert not any("hostPort" in port for port in manifest.container["ports"])
    # Beyond the standard.
    assert own["readOnlyRootFilesystem"] is True
    assert spec["automountServiceAccountToken"] is False


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_no_variable_of_the_service_is_one_of_a_setting(manifest: Manifest) -> None:
    variables = {each.environment for kind in (Settings, DirectorySettings) for each in all_settings(kind)}
    for service in manifest.documents:
        if service["kind"] == "Service":
            assert not {*service_links(service)} & variables
    # That is so because of the name.
    service = {**manifest.the("Service"), "metadata": {"name": "cogment-model-registry"}}
    assert {*service_links(service)} & variables == {"COGMENT_MODEL_REGISTRY_PORT"}
    assert manifest.spec["enableServiceLinks"] is False


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_the_annotations_lead_prometheus_to_the_metrics(manifest: Manifest) -> None:
    assert manifest.pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/scheme": "https",
        "prometheus.io/port": str(manifest.ports["metrics"]),
        "prometheus.io/path": monitoring.METRICS,
    }


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_probes_wait_longer_than_the_server_takes_to_answer(manifest: Manifest) -> None:
    for name, path in (
        ("startupProbe", monitoring.ALIVE),
        ("readinessProbe", monitoring.READY),
        ("livenessProbe", monitoring.ALIVE),
    ):
        assert manifest.container[name]["httpGet"]["path"] == path
    for name in ("readinessProbe", "livenessProbe"):
        assert manifest.container[name]["timeoutSeconds"] > monitoring.LOOP_SECONDS


# The pod of one server.


def secret_of(issued: Issued) -> Mapping[str, bytes]:
    """Return what a Secret of the type kubernetes.io/tls has."""
    return {"tls.crt": issued.certificate.read_bytes(), "tls.key": issued.key.read_bytes()}


@pytest.fixture
def pod(tmp_path: Path, authority: Authority) -> Pod:
    """The pod, with a certificate for this machine and for the Service, and the keys of an issuer."""
    needs_root()
    name = ONE.the("Service")["metadata"]["name"]
    issued = authority.issue(names=(*LOCAL, f"DNS:{name}.models.svc"))
    key = json.dumps({"keys": [{**jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "1"}]})
    place = tmp_path / "pod"
    place.mkdir()
    return Pod(
        place,
        config_maps={MANIFEST_NAMES["issuer"]: {"issuer": ISSUER.encode(), "jwks.json": key.encode()}},
        secrets={MANIFEST_NAMES["tls"]: secret_of(issued)},
    )


def service_account_token(subject: str = TRAINER, **claims: object) -> str:
    """Return a token as the API server of a cluster makes it for a pod."""
    now = int(time.time())
    usual = {"iss": ISSUER, "aud": ["model-registry"], "sub": subject, "iat": now, "nbf": now, "exp": now + 3600}
    return jwt.encode({**usual, **claims}, KEY, "RS256", {"kid": "1"})


def in_container(pod: Pod, *command: str) -> str:
    """Return what a command prints that runs in the container, as `kubectl exec` runs it."""
    result = run_cogment(*command, before=pod.before(), environment=pod.variables())
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def may_store(endpoint: str, authority: Authority, token: str) -> bool:
    """Return whether a token lets its holder store a version of the model policy-1."""
    with ModelRegistry(endpoint, tls_ca=str(authority.certificate), token=token) as registry:
        try:
            registry.store("policy-1", b"")
        except errors.PermissionDeniedError:
            return False
        return True


def test_the_pod_serves_with_the_rights_of_the_manifest(pod: Pod, authority: Authority) -> None:
    with pod.running(service_links(ONE.the("Service"))) as server:
        assert {name: pod.probe(name) for name in ("startupProbe", "readinessProbe", "livenessProbe")} == dict.fromkeys(
            ("startupProbe", "readinessProbe", "livenessProbe"), 200
        )
        process = psutil.Process(server.pid)
        assert {process.uids().effective, process.gids().effective} == {10001}
        status = Path(f"/proc/{server.pid}/status").read_text()
        capabilities = re.findall(r"^Cap(?:Inh|Prm|Eff|Bnd|Amb):\t(\w+)$", status, re.MULTILINE)
        assert {int(each, 16) for each in capabilities} == {0}
        assert "NoNewPrivs:\t1\n" in status
        endpoint = f"grpcs://localhost:{server.port}"
        with (
            ModelRegistry(endpoint, tls_ca=str(authority.certificate)) as nobody,
            pytest.raises(errors.UnauthenticatedError),
        ):
            nobody.list_models()
        http = Http(pod.http_port, trusting(authority))
        assert http.get("/readyz").status == HTTPStatus.OK
        assert http.get("/api/v1/models").status == HTTPStatus.UNAUTHORIZED
        secret = in_container(pod, "token", "create", "--name=ops", "--scope=admin")
        in_container(
            pod, "token", "create", "--name=trainers", f"--subject={TRAINER}", "--scope=store:policy-*", "--scope=read"
        )
        wait_until(lambda: may_store(endpoint, authority, service_account_token()))  # a grant counts within a second
        for token in (secret, service_account_token()):
            with ModelRegistry(endpoint, tls_ca=str(authority.certificate), token=token) as registry:
                version = registry.store("policy-1", token.encode())
                assert registry.retrieve("policy-1", version.number) == token.encode()
            answer = http.with_token(token).get(f"/models/policy-1/versions/{version.number}/data")
            assert (answer.status, answer.body) == (HTTPStatus.OK, token.encode())
        with (
            ModelRegistry(endpoint, tls_ca=str(authority.certificate), token=service_account_token()) as registry,
            pytest.raises(errors.PermissionDeniedError),
        ):
            registry.store("other", b"weights")
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < ONE.spec["terminationGracePeriodSeconds"]
        assert [line for line in server.lines if "warning" in line or "error" in line] == []
    # The next pod has the archive of the one before.
    with (
        pod.running() as server,
        ModelRegistry(f"grpcs://localhost:{server.port}", tls_ca=str(authority.certificate), token=secret) as registry,
    ):
        assert [model.model_id for model in registry.list_models()] == ["policy-1"]


def test_the_root_file_system_of_the_pod_is_read_only(pod: Pod) -> None:
    pod.write_volumes()
    archive = next(each["mountPath"] for each in ONE.container["volumeMounts"] if each["name"] == "archive")
    for place in ("/", "/tmp", "/usr", "/var/lib", "/run/secrets/model-registry", "/etc", archive):
        result = run(*pod.before(), "touch", f"{place}/written")
        if place == archive:
            assert (result.returncode, result.stderr) == (0, "")
        else:
            assert "Read-only file system" in result.stderr, place


def test_a_renewed_secret_is_taken_without_a_restart(pod: Pod, authority: Authority, tmp_path: Path) -> None:
    with pod.running() as server:
        other = Authority(tmp_path, "other")
        pod.secrets = {MANIFEST_NAMES["tls"]: secret_of(other.issue())}
        pod.write_volumes()
        server.wait_for_line("certificate renewed")
        with (
            ModelRegistry(f"grpcs://localhost:{server.port}", tls_ca=str(other.certificate), token="no") as registry,
            pytest.raises(errors.UnauthenticatedError),
        ):
            registry.list_models()
        assert server.is_running
