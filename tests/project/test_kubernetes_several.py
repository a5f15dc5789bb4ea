"""deploy/kubernetes-several.yaml: what it has besides deploy/kubernetes.yaml; test_kubernetes.py tests both."""

import json
import os
import pwd
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import jwt

from cogment_model_registry import ModelRegistry, errors
from cogment_model_registry.settings import Settings
from tests.certificates import Authority
from tests.mounts import needs_root
from tests.object_store import ACCESS_KEY_ID, BUCKET, SECRET_ACCESS_KEY, S3Server
from tests.pods import ONE, SEVERAL, Pod
from tests.postgres import new_database, postgres_server
from tests.processes import ServerProcess
from tests.project.test_kubernetes import (
    ISSUER,
    KEY,
    TRAINER,
    in_container,
    secret_of,
    service_account_token,
    settings_of,
)
from tests.waiting import wait_until

SERVERS = "system:serviceaccount:models:model-registry"
SPEC = SEVERAL.the("StatefulSet")["spec"]
LABELS = {"matchLabels": SEVERAL.pod["metadata"]["labels"]}


def test_the_servers_share_an_archive_and_a_catalog_and_keep_their_audit_log_alone() -> None:
    settings = settings_of(SEVERAL)
    assert SPEC["replicas"] == 3
    assert settings.archive_url.startswith("s3://")
    assert settings.catalog_url.startswith("postgresql://")
    assert "sslmode=verify-full" in settings.catalog_url
    assert settings.archive_dir == Settings().archive_dir  # that of the image is unset
    assert [claim["metadata"]["name"] for claim in SPEC["volumeClaimTemplates"]] == ["audit"]


def test_an_update_or_a_drain_takes_one_server_at_a_time() -> None:
    budget = SEVERAL.the("PodDisruptionBudget")["spec"]
    assert budget == {"maxUnavailable": 1, "selector": LABELS}
    # A StatefulSet replaces one pod at a time unless its strategy says otherwise.
    assert SPEC["updateStrategy"] == {"type": "RollingUpdate"}
    assert SPEC["minReadySeconds"] > 0
    for constraint in SEVERAL.spec["topologySpreadConstraints"]:
        assert constraint["labelSelector"] == LABELS
        assert constraint["maxSkew"] == 1


def test_a_pod_has_the_time_that_its_stop_takes() -> None:
    command, seconds = SEVERAL.container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    of_the_lease_and_the_directory = 10
    takes = int(seconds) + settings_of(SEVERAL).grace_seconds + of_the_lease_and_the_directory
    assert SEVERAL.spec["terminationGracePeriodSeconds"] >= takes


def test_secrets_come_from_secrets_and_are_not_in_the_file() -> None:
    sources = {each["name"]: each.get("valueFrom", {}).get("secretKeyRef") for each in SEVERAL.container["env"]}
    assert {name: source["name"] for name, source in sources.items() if source} == {
        "PGPASSWORD": "model-registry-database",
        "AWS_ACCESS_KEY_ID": "model-registry-object-store",
        "AWS_SECRET_ACCESS_KEY": "model-registry-object-store",
    }
    assert not [document for document in SEVERAL.documents if document["kind"] == "Secret"]


def test_servers_reach_each_other_by_names_that_a_certificate_can_have() -> None:
    service = SEVERAL.the("Service", SPEC["serviceName"])
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == LABELS["matchLabels"]
    host = next(each["value"] for each in SEVERAL.container["env"] if each["name"].endswith("_PEER_HOST"))
    assert host == f"$(POD_NAME).{service['metadata']['name']}.$(POD_NAMESPACE).svc"
    paths = {mount["name"]: mount["mountPath"] for mount in SEVERAL.container["volumeMounts"]}
    settings = settings_of(SEVERAL)
    assert settings.peer_tls_ca.startswith(f"{paths['ca']}/")
    assert settings.peer_token_file.startswith(f"{paths['peers']}/")
    # The token that they show is for this service, and of their own account.
    [source] = next(each for each in SEVERAL.spec["volumes"] if each["name"] == "peers")["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == settings.oidc_audience
    assert SEVERAL.the("ServiceAccount", SEVERAL.spec["serviceAccountName"])


def test_the_policy_lets_servers_connect_to_each_other_and_to_what_they_share() -> None:
    policy = SEVERAL.the("NetworkPolicy")["spec"]
    peers = {"podSelector": LABELS}
    assert {"from": [peers], "ports": [{"port": "grpc"}]} in policy["ingress"]
    assert {"to": [peers], "ports": [{"port": "grpc"}]} in policy["egress"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {"grpc", 53, 5432, 443}
    # Clients and Prometheus come from the same places as to one server.
    one = ONE.the("NetworkPolicy")["spec"]["ingress"]
    assert [rule for rule in policy["ingress"] if rule["from"] != [peers]] == one


def test_browsers_keep_to_one_server() -> None:
    service = SEVERAL.the("Service", "model-registry-http")["spec"]
    assert service["sessionAffinity"] == "ClientIP"
    assert [port["targetPort"] for port in service["ports"]] == ["http"]
    assert "http" not in [port["targetPort"] for port in SEVERAL.the("Service")["spec"]["ports"]]


# Three pods.


class Cluster:
    """Three pods of the manifest, with PostgreSQL over TLS and an object store, all on this machine.

    Args:
        place: An empty directory.
        authority: The authority of all certificates.
        database: The address of the database.
        store: The object store.
    """

    def __init__(self, place: Path, authority: Authority, database: str, store: S3Server) -> None:
        at = urlsplit(database)
        documented = next(each["value"] for each in SEVERAL.container["env"] if each["name"].endswith("_CATALOG_URL"))
        keys = json.dumps(
            {"keys": [{**jwt.algorithms.RSAAlgorithm.to_jwk(KEY.public_key(), as_dict=True), "kid": "1"}]}
        )
        self.authority = authority
        self.pods = [
            Pod(
                place / f"pod-{number}",
                config_maps={
                    "model-registry-issuer": {"issuer": ISSUER.encode(), "jwks.json": keys.encode()},
                    "model-registry-ca": {"ca.pem": authority.certificate.read_bytes()},
                },
                secrets={
                    "model-registry-tls": secret_of(authority.issue()),
                    "model-registry-database": {"password": b"-", "ca.pem": authority.certificate.read_bytes()},
                    "model-registry-object-store": {
                        "access_key_id": ACCESS_KEY_ID.encode(),
                        "secret_access_key": SECRET_ACCESS_KEY.encode(),
                    },
                },
                manifest=SEVERAL,
                replaced={
                    "COGMENT_MODEL_REGISTRY_CATALOG_URL": documented.replace(
                        "registry@postgres.example.com:5432/registry", f"{at.username}@localhost:{at.port}{at.path}"
                    ),
                    "COGMENT_MODEL_REGISTRY_ARCHIVE_URL": f"s3://{BUCKET}/pods-{at.path.strip('/')}",
                    "COGMENT_MODEL_REGISTRY_PEER_HOST": "localhost",
                    "AWS_ENDPOINT_URL": store.endpoint,
                },
                service_account_token=service_account_token(SERVERS),
            )
            for number in range(3)
        ]
        for pod in self.pods:
            pod.place.mkdir(parents=True)

    @contextmanager
    def running(self) -> Iterator[list[ServerProcess]]:
        """Run the pods; a context manager."""
        with ExitStack() as stack:
            yield [stack.enter_context(pod.running()) for pod in self.pods]

    def client(self, *servers: ServerProcess) -> ModelRegistry:
        """Return a client that knows some servers, with the token of the trainer."""
        endpoints = ",".join(f"grpcs://localhost:{server.port}" for server in servers)
        return ModelRegistry(endpoints, tls_ca=str(self.authority.certificate), token=service_account_token())


@contextmanager
def database_over_tls(authority: Authority) -> Iterator[str]:
    """Run PostgreSQL with a certificate; a context manager with the address of a database."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        issued = authority.issue()
        files = {"ssl_cert_file": issued.certificate, "ssl_key_file": issued.key}
        settings = {"ssl": "on"}
        for name, file in files.items():
            settings[name] = shutil.copy(file, folder)
            # PostgreSQL takes a key of root that its group may read.
            os.chown(settings[name], 0, pwd.getpwnam("postgres").pw_gid)
            Path(settings[name]).chmod(0o640)
        with postgres_server(settings) as server, new_database(server) as url:
            yield url


def test_three_pods_serve_as_one_and_one_of_them_may_stop(object_store: S3Server, tmp_path: Path) -> None:
    needs_root()
    authority = Authority(tmp_path)
    with database_over_tls(authority) as database:
        cluster = Cluster(tmp_path / "cluster", authority, database, object_store)
        with cluster.running() as servers:
            for pod in cluster.pods:
                assert [pod.probe(name) for name in ("startupProbe", "readinessProbe", "livenessProbe")] == [200] * 3
            first, second, third = servers
            for name, subject, scopes in (
                ("servers", SERVERS, ("read",)),
                ("trainers", TRAINER, ("publish", "store", "alias", "read")),
            ):
                flags = [f"--name={name}", f"--subject={subject}", *(f"--scope={scope}" for scope in scopes)]
                in_container(cluster.pods[0], "token", "create", *flags)
            data = os.urandom(3 << 20)
            with cluster.client(first) as trainer, cluster.client(second) as near, cluster.client(third) as far:
                wait_until(lambda: may_list(trainer) and may_list(near) and may_list(far))
                transient = trainer.publish("policy-1", data)
                for actor in (near, far):
                    assert actor.retrieve("policy-1", transient.number) == data
                archived = trainer.store("policy-1", b"weights", alias="production")
            with cluster.client(first, second, third) as actor:
                assert actor.retrieve("policy-1", "production") == b"weights"
                begun = time.monotonic()
                assert first.stop() == 0
                assert time.monotonic() - begun < SEVERAL.spec["terminationGracePeriodSeconds"]
                assert actor.retrieve("policy-1", "production") == b"weights"
                assert actor.store("policy-1", b"next").number > archived.number
            for server in (second, third):
                assert server.stop() == 0
            for server in servers:
                assert [line for line in server.lines if '"warning"' in line or '"error"' in line] == []


def may_list(registry: ModelRegistry) -> bool:
    try:
        registry.list_models()
    except errors.PermissionDeniedError:
        return False
    return True
