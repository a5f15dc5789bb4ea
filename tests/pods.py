"""deploy/kubernetes.yaml, as far as it runs without a cluster: its container as a process with the rights of the pod.

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
from pathlib import Path
from typing import Any

import yaml

from tests.mounts import AS_ROOT, all_read_only, mounted, reaching
from tests.processes import ServerProcess, server_process

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "deploy/kubernetes.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))


def the(kind: str) -> dict[str, Any]:
    """Return the only object of a kind."""
    [found] = [document for document in DOCUMENTS if document["kind"] == kind]
    return found


POD: dict[str, Any] = the("StatefulSet")["spec"]["template"]
SPEC: dict[str, Any] = POD["spec"]
CONTAINER: dict[str, Any] = SPEC["containers"][0]
PORTS: Mapping[str, int] = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}


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
    """The pod of the manifest, with volumes below a directory of this machine.

    Attributes:
        place: An empty directory.
        config_maps: What the ConfigMaps have, by name.
        secrets: What the Secrets have, by name.
        server: The container, while it runs.
        metrics_port: The port that it has for metrics here.
    """

    place: Path
    config_maps: Mapping[str, Mapping[str, bytes]]
    secrets: Mapping[str, Mapping[str, bytes]]
    server: ServerProcess | None = field(default=None, init=False)
    metrics_port: int = field(default=0, init=False)

    def write_volumes(self) -> None:
        """Write the volumes, also again when a Secret or a ConfigMap has changed."""
        gid: int = SPEC["securityContext"]["fsGroup"]
        for volume in SPEC["volumes"]:
            if "secret" in volume:
                content, mode = self.secrets[volume["secret"]["secretName"]], volume["secret"]["defaultMode"]
            else:
                content, mode = self.config_maps[volume["configMap"]["name"]], 0o644
            projected(self.place / volume["name"], content, mode, gid)
        for claim in the("StatefulSet")["spec"]["volumeClaimTemplates"]:
            path = self.place / claim["metadata"]["name"]
            if not path.exists():
                path.mkdir()
                os.chown(path, 0, gid)
                path.chmod(0o2775)

    def variables(self) -> dict[str, str]:
        """Return the variables of the container."""
        variables = image_variables()
        for each in CONTAINER.get("env", ()):
            if "value" in each:
                variables[each["name"]] = each["value"]
            else:
                key = each["valueFrom"]["configMapKeyRef"]
                variables[each["name"]] = self.config_maps[key["name"]][key["key"]].decode()
        return variables

    def before(self) -> list[str]:
        """Return the words before a command that runs in the container."""
        pod, own = SPEC["securityContext"], CONTAINER["securityContext"]
        assert own["readOnlyRootFilesystem"]
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert own["allowPrivilegeEscalation"] is False
        mounts = {each["mountPath"]: each for each in CONTAINER["volumeMounts"]}
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
            *CONTAINER["args"],
            "--metrics_port=0",
            environment=dict(environment or {}),
            before=self.before(),
        ) as server:
            self.server = server
            self.metrics_port = int(server.wait_for_line(r"\bmetrics_port[\"=: ]+(\d+)")[1])
            yield server

    def probe(self, name: str) -> int:
        """Return the status with which a probe is answered. A kubelet checks no certificate, and shows none."""
        probe = CONTAINER[name]
        assert self.server
        port = {PORTS["grpc"]: self.server.port, PORTS["metrics"]: self.metrics_port}[PORTS[probe["httpGet"]["port"]]]
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
