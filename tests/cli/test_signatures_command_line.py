"""Signatures on the command line: keys in files, made by openssl."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry, errors
from tests.cli.test_model_registry_command_line import Cogment, cogment, failed, registry
from tests.signing import KeyPair

__all__ = ["cogment", "registry"]

SIGNER, OTHER = KeyPair(), KeyPair()
DATA = b"some weights\n"


@pytest.fixture(autouse=True)
def files(cogment: Cogment) -> None:
    """Put keys and data where the commands run."""
    for name, pair in (("signer", SIGNER), ("other", OTHER)):
        (cogment.directory / f"{name}.key").write_bytes(pair.private_pem)
        (cogment.directory / f"{name}.pub").write_bytes(pair.public_pem)
    (cogment.directory / "data").write_bytes(DATA)


def openssl(directory: Path, *words: str) -> str:
    return subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, text=True).stdout


def test_what_is_signed_is_verified_when_it_is_retrieved(cogment: Cogment, registry: ModelRegistry) -> None:
    cogment.output("publish", "m", "data", "--sign=signer.key", "--user_data=step=1000")
    cogment.output("store", "m", "data", "--sign=signer.key", "--user_data=step=1000")
    for number in ("1", "2"):
        cogment.output("retrieve", "m", number, "--output=copy", "--force", "--verify=signer.pub")
        assert (cogment.directory / "copy").read_bytes() == DATA
    cogment.output("retrieve", "m", "--output=copy", "--force", "--verify=other.pub", "--verify=signer.pub", "--resume")
    key_id = SIGNER.public.key_id
    refused = cogment.run("retrieve", "m", "--output=no", "--verify=other.pub")
    assert failed(refused, 1, f'version 2 of model "m" is signed by key {key_id}, which is not trusted')
    assert not (cogment.directory / "no").exists()
    assert cogment.piped("retrieve", "m", "--verify=signer.pub", data=b"") == DATA
    registry.publish("m", DATA)
    assert failed(cogment.run("retrieve", "m", "--output=no", "--verify=signer.pub"), 1, "has no signature")
    [first, *_, last] = json.loads(cogment.output("list_versions", "m", "--json"))
    assert first["signature"]["key_id"] == key_id
    assert "signature" not in last


def test_versions_are_saved_while_they_are_signed(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA, sign=SIGNER.private)
    registry.publish("m", DATA)
    result = cogment.run("watch", "m", "--data=saved", "--verify=signer.pub", "--quiet")
    assert (result.returncode, result.stdout) == (1, "saved/m/000001.bin\n")
    assert result.stderr == 'error: version 2 of model "m" has no signature\n'
    assert [path.name for path in (cogment.directory / "saved" / "m").iterdir()] == ["000001.bin"]
    assert failed(cogment.run("watch", "m", "--verify=signer.pub"), 2, "give --data")


def test_a_model_demands_signatures(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.create_model("m")
    said = cogment.output("set_signers", "m", "--key=signer.pub", "--key=other.pub")
    assert said.startswith("versions of model m must be signed by one of 2 keys; revision ")
    keys = sorted([SIGNER.public, OTHER.public], key=lambda key: key.key_id)
    assert cogment.output("show_signers", "m", "--quiet").splitlines() == [key.key_id for key in keys]
    shown = cogment.output("show_signers", "m")
    assert shown == "".join(f"{key.key_id}\n{key.pem}" for key in keys)
    (cogment.directory / "again").write_text(shown)
    document = [{"key_id": key.key_id, "public_key": key.pem} for key in keys]
    assert cogment.json("show_signers", "m") == document
    assert cogment.json("set_signers", "m", "--key=again")["signers"] == document
    assert failed(cogment.run("publish", "m", "data"), 1, "has no signature")
    cogment.output("publish", "m", "data", "--sign=other.key")
    assert cogment.json("set_signers", "m", "--none")["signers"] == []
    cogment.output("publish", "m", "data")


@pytest.mark.skipif(not shutil.which("openssl"), reason="there is no openssl")
def test_openssl_makes_keys_and_checks_signatures(cogment: Cogment, registry: ModelRegistry) -> None:
    where = cogment.directory
    openssl(where, "genpkey", "-algorithm", "ed25519", "-out", "own.key")
    openssl(where, "pkey", "-in", "own.key", "-pubout", "-out", "own.pub")
    cogment.output("publish", "m", "data", "--sign=own.key", "--user_data=note=été")
    cogment.output("retrieve", "m", "--output=copy", "--verify=own.pub")
    details = cogment.json("show_signature", "m", "1", "--message=message", "--output=signature")
    assert details.keys() == {"model_id", "number", "key_id", "value"}
    check = ("pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "own.pub", "-in", "message", "-sigfile", "signature")
    assert "Signature Verified Successfully" in openssl(where, *check)
    (where / "message").write_bytes((where / "message").read_bytes().replace(b"note", b"nota"))
    with pytest.raises(subprocess.CalledProcessError):
        openssl(where, *check)
    assert failed(cogment.run("show_signature", "m", "--message=message"), 2, "exists")
    cogment.output("show_signature", "m", "--message=message", "--force", "--quiet")


@pytest.mark.parametrize(
    ("words", "code", "problem"),
    [
        (["set_signers", "m"], 2, "give either --key or --none"),
        (["set_signers", "m", "--none", "--key=signer.pub"], 2, "give either --key or --none"),
        (["set_signers", "m", "--key=signer.key"], 1, "a private key"),
        (["set_signers", "m", "--key=missing"], 1, "reading missing failed"),
        (["publish", "m", "data", "--sign=missing"], 1, "reading missing failed"),
        (["publish", "m", "data", "--sign=signer.pub"], 1, "no private key"),
        (["retrieve", "m", "--output=out", "--verify=signer.key"], 1, "a private key"),
        (["show_signature", "m", "1"], 1, "has no signature"),
    ],
)
def test_what_is_wrong_is_said(
    cogment: Cogment, registry: ModelRegistry, words: list[str], code: int, problem: str
) -> None:
    registry.publish("m", DATA)
    result = cogment.run(*words)
    assert result.returncode == code
    assert problem in result.stderr
    for line in SIGNER.private_pem.decode().splitlines()[1:-1]:
        assert line not in result.stderr


def test_a_file_that_is_too_large_for_keys_is_refused(cogment: Cogment, registry: ModelRegistry) -> None:
    registry.publish("m", DATA)
    (cogment.directory / "large").write_bytes(b" " * (1024 * 1024 + 1))
    assert failed(cogment.run("set_signers", "m", "--key=large"), 1, "more than 1048576 bytes")
    with pytest.raises(errors.InvalidError, match="more than 1048576 bytes"):
        registry.retrieve("m", verify=cogment.directory / "large")
