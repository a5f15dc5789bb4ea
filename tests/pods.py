"""The manifests for Kubernetes, as far as they run without a cluster: a container is a process with rights of the pod.

The process is the server, with the arguments, variables and volumes of the manifest, as its user, without capabilities
and without new privileges, on a root file system that is read-only. Not tried: the filter of system calls of the
container runtime, the limits of resources, and the network. The root file system is that of this machine, with what the
image would set as variables.
"""

import os
import re
import shlex
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tests.mounts import AS_ROOT, all_read_only, mounted, reaching
from tests.processes import ServerProcess, server_process

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Manifest:
    """A manifest in deploy/, whose pods are those of its only StatefulSet.

    Args:
        name: The name of the file.
    """

    name: str

    @property
    def path(self) -> Path:
        """The file."""
        return ROOT / "deploy" / self.name

    @cached_property
    def documents(self) -> list[dict[str, Any]]:
        """All objects."""
        return list(yaml.safe_load_all(self.path.read_text()))

    def the(self, kind: str, name: str = "model-registry") -> dict[str, Any]:
        """Return the object of a kind that has a name."""
        objects = [document for document in self.documents if document["kind"] == kind]
        [found] = [document for document in objects if document["metadata"]["name"] == name]
        return found

    @property
    def pod(self) -> dict[str, Any]:
        """The template of the pods."""
        template: dict[str, Any] = self.the("StatefulSet")["spec"]["template"]
        return template

    @property
    def spec(self) -> dict[str, Any]:
        """What a pod is."""
        spec: dict[str, Any] = self.pod["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        """The only container of a pod."""
        [container] = self.spec["containers"]
        return dict(container)

    @property
    def ports(self) -> Mapping[str, int]:
        """The ports of the container."""
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}


ONE = Manifest("kubernetes.yaml")
SEVERAL = Manifest("kubernetes-several.yaml")


def image_variables() -> dict[str, str]:
    """Return the settings that the image has as variables."""
    containerfile = (ROOT / "deploy/Containerfile").read_text()
    return dict(re.findall(r"\b(COGMENT_\w+)=(\S+)", containerfile))


def service_links(service: Mapping[str, Any], address: str = "10.0.0.1") -> dict[str, str]:
    """Return the variables that Kubernetes sets for a Service in each pod of its namespace."""
    name = service["metadata"]["name"].upper().replace("-", "_")
    first, *_ = ports = service["spec"]["ports"]
    variables = {
        f"{name}_SERVICE_HOST": address,
        f"{name}_SERVICE_PORT": str(first["port"]),
        f"{name}_PORT": f"tcp://{address}:{first['port']}",
    }
    for port in ports:
        variables[f"{name}_SERVICE_PORT_{port['name'].upper()}"] = str(port["port"])
        prefix = f"{name}_PORT_{port['port']}_TCP"
        variables |= {prefix: f"tcp://{address}:{port['port']}", f"{prefix}_PROTO": "tcp"}
        variables |= {f"{prefix}_PORT": str(port["port"]), f"{prefix}_ADDR": address}
    return variables


def projected(directory: Path, files: Mapping[str, bytes], mode: int, gid: int) -> None:
    """Write files as a kubelet does: behind a link to their directory, which is swapped when they change."""
    directory.mkdir(exist_ok=True)
    data = directory / f"..{len(list(directory.iterdir()))}"
    data.mkdir()
    for name, content in files.items():
        path = data / name
        path.write_bytes(content)
        os.chown(path, 0, gid)
        path.chmod(mode)
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    (directory / "..new").symlink_to(data.name)
    (directory / "..new").replace(directory / "..data")


@dataclass
class Pod:
    """A pod of a manifest, with volumes below a directory of this machine.

    Attributes:
        place: An empty directory.
        config_maps: What the ConfigMaps have, by name.
        secrets: What the Secrets have, by name.
        manifest: The manifest.
        replaced: Variables that are others here, such as addresses.
        service_account_token: The token that Kubernetes makes for the pod.
        server: The container, while it runs.
        metrics_port: The port that it has for metrics here.
        http_port: The port that it has for HTTP here.
    """

    place: Path
    config_maps: Mapping[str, Mapping[str, bytes]]
    secrets: Mapping[str, Mapping[str, bytes]]
    manifest: Manifest = ONE
    replaced: Mapping[str, str] = field(default_factory=dict)
    service_account_token: str = ""
    server: ServerProcess | None = field(default=None, init=False)
    metrics_port: int = field(default=0, init=False)
    http_port: int = field(default=0, init=False)

    def write_volumes(self) -> None:
        """Write the volumes, also again when a Secret or a ConfigMap has changed."""
        gid: int = self.manifest.spec["securityContext"]["fsGroup"]
        for volume in self.manifest.spec["volumes"]:
            if "emptyDir" in volume:
                self._make(volume["name"], 0o2777, gid)
                continue
            if "secret" in volume:
                secret = volume["secret"]
                content, mode = self.secrets[secret["secretName"]], secret["defaultMode"]
                if "items" in secret:
                    content = {item["path"]: content[item["key"]] for item in secret["items"]}
            elif "projected" in volume:
                [source] = volume["projected"]["sources"]
                content, mode = {source["serviceAccountToken"]["path"]: self.service_account_token.encode()}, 0o440
            else:
                content, mode = self.config_maps[volume["configMap"]["name"]], 0o644
            projected(self.place / volume["name"], content, mode, gid)
        for claim in self.manifest.the("StatefulSet")["spec"]["volumeClaimTemplates"]:
            self._make(claim["metadata"]["name"], 0o2775, gid)

    def _make(self, name: str, mode: int, gid: int) -> None:
        """Make the directory of a volume, unless it is there, as a kubelet does."""
        path = self.place / name
        if not path.exists():
            path.mkdir()
            os.chown(path, 0, gid)
            path.chmod(mode)

    def variables(self) -> dict[str, str]:
        """Return the variables of the container."""
        variables = image_variables()
        for each in self.manifest.container["env"]:
            value = self._value(each)
            variables[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], value)
        assert {*self.replaced} <= {*variables}
        return {**variables, **self.replaced}

    def _value(self, variable: Mapping[str, Any]) -> str:
        if "value" in variable:
            return str(variable["value"])
        [(kind, key)] = variable["valueFrom"].items()
        if kind == "fieldRef":
            return {"metadata.name": "model-registry-0", "metadata.namespace": "models"}[key["fieldPath"]]
        kept = {"configMapKeyRef": self.config_maps, "secretKeyRef": self.secrets}[kind]
        return kept[key["name"]][key["key"]].decode()

    def before(self) -> list[str]:
        """Return the words before a command that runs in the container."""
        pod, own = self.manifest.spec["securityContext"], self.manifest.container["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["allowPrivilegeEscalation"] is False
        mounts = {each["mountPath"]: each for each in self.manifest.container["volumeMounts"]}
        # What is there on this machine is hidden.
        lines = [f"mount -t tmpfs -o mode=755 none {shlex.quote(top)}" for top in sorted({*map(_top, mounts)})]
        for path, mount in mounts.items():
            lines += [f"mkdir -p {path}", f"mount --bind {shlex.quote(str(self.place / mount['name']))} {path}"]
        writable = [path for path, mount in mounts.items() if not mount.get("readOnly")]
        lines.append(all_read_only(writable))
        switch = ["setpriv", f"--reuid={pod['runAsUser']}", f"--regid={pod['runAsGroup']}"]
        switch += [f"--groups={pod['fsGroup']}", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        links = [f"{name}={value}" for name, value in self.variables().items()]
        inside = ["env", *links, "PYTHONDONTWRITEBYTECODE=1", "HOME=/nonexistent"]
        reach = reaching(self.place / "reached", [ROOT, sys.prefix, sys.base_prefix])
        return [*reach, *mounted(*lines, unshare=AS_ROOT), *switch, *inside]

    @contextmanager
    def running(self, environment: Mapping[str, str] | None = None) -> Iterator[ServerProcess]:
        """Return a context manager in which the container runs, on free ports of this machine."""
        self.write_volumes()
        with server_process(
            None,
            *self.manifest.container["args"],
            "--metrics_port=0",
            "--http_port=0",
            environment=dict(environment or {}),
            before=self.before(),
        ) as server:
            self.server = server
            self.metrics_port = int(server.wait_for_line(r"\bmetrics_port[\"=: ]+(\d+)")[1])
            self.http_port = int(server.wait_for_line(r"\bhttp_port[\"=: ]+(\d+)")[1])
            yield server

    def probe(self, name: str) -> int:
        """Return the status with which a probe is answered. A kubelet checks no certificate, and shows none."""
        probe = self.manifest.container[name]
        assert self.server
        port = {"grpc": self.server.port, "metrics": self.metrics_port}[probe["httpGet"]["port"]]
        unchecked = ssl.create_default_context()
        unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
        address = f"{probe['httpGet']['scheme'].lower()}://127.0.0.1:{port}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(address, timeout=probe.get("timeoutSeconds", 1), context=unchecked) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code


def _top(path: str) -> str:
    """Return the directory of this machine in which a volume is mounted, such as /var/lib or /run."""
    parts = Path(path).parts
    return str(Path(*parts[:3])) if parts[1] == "var" else str(Path(*parts[:2]))
