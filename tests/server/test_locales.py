"""What processes write and find does not depend on their locale: file names, exports, arguments, the log."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from cogment_model_registry import ModelRegistry
from cogment_model_registry.storage.filesystem import layout
from tests.locales import POSIX, UTF_8, MissingLocaleError, latin_1
from tests.processes import START_SECONDS, clean_environment, server_process

DATA = b"the bytes of a version"

CAFE, NAIVE = "café", "naïve模型"  # the second one does not exist in Latin-1
FOREIGN = CAFE.encode("latin-1")

Locale = Mapping[str, str]


@pytest.fixture(scope="session", params=["Latin-1", "POSIX without UTF-8"])
def locale(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Locale:
    """The environment of a locale that is not UTF-8."""
    if request.param == "Latin-1":
        try:
            return latin_1(tmp_path_factory.mktemp("locales"))
        except MissingLocaleError as error:
            pytest.skip(str(error))
    return POSIX


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive that a server with UTF-8 has written, and a directory whose name is Latin-1."""
    with server_process(tmp_path / "archive", environment=UTF_8) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            registry.store(CAFE, DATA, user_data={"clé": "é"})
        assert server.stop() == 0
    with contextlib.suppress(OSError):  # some file systems refuse such names
        os.mkdir(os.fsencode(tmp_path / "archive") + b"/" + FOREIGN)
    return tmp_path / "archive"


def names(directory: Path) -> set[bytes]:
    """Return the names in a directory, without those of the catalog's database."""
    return set(os.listdir(os.fsencode(directory))) - set(map(os.fsencode, layout.CATALOG_NAMES))


def cogment(locale: Locale, *words: str | bytes, **streams: bytes) -> "subprocess.CompletedProcess[bytes]":
    """Run a `cogment` command that terminates, with arguments of any bytes."""
    command = [sys.executable, "-m", "cogment_model_registry", *words]
    environment = {**clean_environment(), **locale}
    return subprocess.run(
        command, capture_output=True, timeout=START_SECONDS, check=False, env=environment, input=streams.get("input")
    )


def word(text: str, locale: Locale) -> bytes:
    """Return an argument as a user of a locale types it."""
    return text.encode("latin-1" if "8859" in locale["LC_ALL"] else "utf-8")


def test_a_server_finds_and_writes_the_same_names_in_each_locale(archive: Path, locale: Locale) -> None:
    with server_process(archive, "--log_level=debug", environment=dict(locale)) as server:
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            assert [model.model_id for model in registry.list_models()] == [CAFE]
            assert registry.retrieve(CAFE) == DATA
            registry.create_model(CAFE, user_data={"clé": "à"})
            assert registry.store(NAIVE, DATA).number == 1
            server.signal(signal.SIGHUP)
            server.wait_for_line("rescanned")
            assert {model.model_id for model in registry.list_models()} == {CAFE, NAIVE}
            registry.store("doomed é", DATA)
            registry.delete_model("doomed é")
        assert server.stop() == 0
    assert any(f"model_id={NAIVE} " in line for line in server.lines), "the log is UTF-8"
    assert names(archive) - {FOREIGN} == {b".lock", CAFE.encode(), NAIVE.encode()}
    model = os.fsdecode(os.fsencode(archive) + b"/" + NAIVE.encode())
    assert names(Path(model)) >= {f"{NAIVE}{end}".encode() for end in (".yaml", "-v000001.yaml", "-v000001.data")}
    with (
        server_process(archive, environment=UTF_8) as server,
        ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry,
    ):
        assert registry.get_model(CAFE).user_data == {"clé": "à"}
        assert registry.retrieve(NAIVE) == DATA


def test_the_tools_of_an_archive_find_the_same_names_in_each_locale(archive: Path, locale: Locale) -> None:
    report = json.loads(cogment(locale, "archive", "verify", "--json", str(archive)).stdout)
    assert (report["models"], report["versions"]) == (1, 1)
    assert {finding["file"] for finding in report["findings"]} <= {"caf\udce9"}
    exported = cogment(locale, "archive", "export", str(archive), word(CAFE, locale))
    assert exported.returncode == 0, exported.stderr
    with tarfile.open(fileobj=io.BytesIO(exported.stdout), encoding="utf-8") as tar:
        assert f"{CAFE}/{CAFE}-v000001.data" in tar.getnames()
    imported = cogment(
        locale, "archive", "import", str(archive), "-", b"--model_id=" + word("naïve", locale), input=exported.stdout
    )
    assert imported.returncode == 0, imported.stderr
    assert names(archive) - {FOREIGN} == {b".lock", CAFE.encode(), "naïve".encode()}


def test_words_of_the_command_line_are_text_in_each_locale(tmp_path: Path, locale: Locale) -> None:
    with server_process(tmp_path / "archive", environment=UTF_8) as server:
        endpoint = f"--endpoint=grpc://127.0.0.1:{server.port}"
        words: tuple[str | bytes, ...] = (word(CAFE, locale), b"--user_data=" + word("clé=é", locale), endpoint)
        result = cogment(locale, "client", "model_registry", "create_model", *words)
        assert (result.returncode, result.stderr) == (0, b"")
        with ModelRegistry(f"grpc://127.0.0.1:{server.port}") as registry:
            assert registry.get_model(CAFE).user_data == {"clé": "é"}
            registry.create_model("b", user_data={"note": NAIVE + "🦊é"})
        # Characters outside the encoding are escaped as in JSON, so programs read the same document.
        result = cogment(locale, "client", "model_registry", "list_models", "--json", endpoint)
        models = json.loads(result.stdout.decode("latin-1" if "8859" in locale["LC_ALL"] else "utf-8"))
        assert {model["model_id"]: model["user_data"] for model in models} == {
            "b": {"note": NAIVE + "🦊é"},
            CAFE: {"clé": "é"},
        }
