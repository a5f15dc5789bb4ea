"""TLS on the command line: flags, variables, and errors of one line."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority, Issued
from tests.in_process import run_in_process
from tests.processes import ServerProcess, server_process


@pytest.fixture(scope="module")
def actor(authority: Authority) -> Issued:
    return authority.issue("actor", usage="clientAuth")


@pytest.fixture(scope="module")
def server(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A registry that requires certificates of its clients."""
    flags = [*authority.issue().flags, f"--tls_client_ca={authority.certificate}"]
    with server_process(tmp_path_factory.mktemp("server") / "archive", *flags) as process:
        yield process
        process.stop()


@pytest.fixture(scope="module")
def directory(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A Directory that requires certificates of its clients."""
    flags = [*authority.issue("directory").flags, f"--tls_client_ca={authority.certificate}", "--persistence_file="]
    place = tmp_path_factory.mktemp("directory")
    with server_process(place / "archive", *flags, service="directory") as process:
        yield process
        process.stop()


def test_flags_connect_to_a_registry(server: ServerProcess, authority: Authority, actor: Issued) -> None:
    endpoint = f"--endpoint=grpcs://localhost:{server.port}"
    words = ["client", "model_registry", "create_model", "walker", endpoint, f"--tls_ca={authority.certificate}"]
    result = run_in_process(*words, *actor.flags)
    assert (result.returncode, result.stderr) == (0, "")


def test_variables_connect_to_a_registry(server: ServerProcess, authority: Authority, actor: Issued) -> None:
    environment = {
        "COGMENT_MODEL_REGISTRY_ENDPOINT": f"grpcs://localhost:{server.port}",
        "COGMENT_MODEL_REGISTRY_TLS_CA": str(authority.certificate),
        "COGMENT_MODEL_REGISTRY_CLIENT_CERTIFICATE": str(actor.certificate),
        "COGMENT_MODEL_REGISTRY_CLIENT_KEY": str(actor.key),
    }
    result = run_in_process("client", "model_registry", "list_models", "--json", environment=environment)
    assert (result.returncode, result.stderr) == (0, "")
    json.loads(result.stdout)


def test_flags_and_variables_connect_to_a_directory(
    directory: ServerProcess, authority: Authority, actor: Issued
) -> None:
    endpoint = f"--directory_endpoint=grpcs://localhost:{directory.port}"
    words = ["client", "directory", "inquire", "--type=modelregistry", endpoint]
    result = run_in_process(*words, f"--tls_ca={authority.certificate}", *actor.flags)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[0] Services found\n", "")
    environment = {
        "COGMENT_DIRECTORY_TLS_CA": str(authority.certificate),
        "COGMENT_DIRECTORY_CLIENT_CERTIFICATE": str(actor.certificate),
        "COGMENT_DIRECTORY_CLIENT_KEY": str(actor.key),
    }
    result = run_in_process(*words, environment=environment)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[0] Services found\n", "")


def test_errors_are_one_line_that_says_what_to_do(
    server: ServerProcess, directory: ServerProcess, authority: Authority, actor: Issued, tmp_path: Path
) -> None:
    registry = ["client", "model_registry", "list_models", f"--endpoint=grpcs://localhost:{server.port}"]
    plain = ["client", "model_registry", "list_models", f"--endpoint=grpc://localhost:{server.port}"]
    inquire = ["client", "directory", "inquire", "--type=modelregistry"]
    inquire.append(f"--directory_endpoint=grpcs://localhost:{directory.port}")
    ca = f"--tls_ca={authority.certificate}"
    for words, message in (
        (registry, "its certificate is not trusted (unable to get local issuer certificate); check that tls_ca"),
        ([*registry, ca], "if it requires a client certificate, give tls_certificate and tls_key"),
        ([*registry, f"--tls_ca={tmp_path}/no"], f"tls_ca {tmp_path}/no cannot be read: No such file or directory"),
        ([*registry, f"--tls_key={actor.key}"], 'tls_certificate: "" is not allowed; it must be the file of'),
        ([*plain, ca], f'"grpc://localhost:{server.port}" is not allowed; it must be grpcs://localhost:'),
        (plain, "it requires TLS; use grpcs:// in place of grpc://"),
        (inquire, "its certificate is not trusted"),
        ([*inquire, f"--tls_ca={tmp_path}/no"], f"tls_ca {tmp_path}/no cannot be read: No such file or directory"),
        ([*inquire, f"--tls_key={actor.key}"], "give --tls_certificate and --tls_key together"),
    ):
        result = run_in_process(*words)
        assert result.returncode != 0
        assert result.stdout == ""
        assert message in result.stderr
        assert result.stderr.startswith("error: ")
        assert result.stderr.count("\n") == 1, result.stderr
