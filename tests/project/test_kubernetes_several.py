"""deploy/kubernetes-several.yaml: what it has besides deploy/kubernetes.yaml; test_kubernetes.py tests both."""

from cogment_model_registry.settings import Settings
from tests.pods import ONE, SEVERAL
from tests.project.test_kubernetes import settings_of

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
    assert peers in policy["ingress"][0]["from"]
    assert {"to": [peers], "ports": [{"port": "grpc"}]} in policy["egress"]
    ports = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert ports == {"grpc", 53, 5432, 443}
    # Clients and Prometheus come from the same places as to one server.
    one = ONE.the("NetworkPolicy")["spec"]["ingress"]
    assert policy["ingress"][0]["from"] == [*one[0]["from"], peers]
    assert policy["ingress"][1:] == one[1:]
