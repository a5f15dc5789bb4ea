"""`cogment archive verify` and `copy` with archives in object stores."""

import json
from pathlib import Path

import obstore

from cogment_model_registry import ModelRegistry
from cogment_model_registry.storage.bucket import layout
from tests.archive_tools.bucket_places import LARGE, Archives, check, fill
from tests.processes import server_process


def test_an_archive_goes_to_a_bucket_and_back_with_all_it_has(archives: Archives, tmp_path: Path) -> None:
    with server_process(archives.directory) as process:
        fill(process)
        ended = archives.copy(archives.directory, archives.url)  # a server may use what is copied
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout == "2 models: 2 versions copied (17.1 MiB), 0 unchanged, with a catalog: 0 problems\n"
    again = archives.copy(archives.directory, archives.url)
    assert again.stdout == "2 models: 0 versions copied (0 B), 2 unchanged, with a catalog: 0 problems\n"
    flags = [f"--archive_url={archives.url}"]
    with server_process(archives.catalog, *flags, environment=archives.environment) as process:
        check(process)
        assert process.stop() == 0
    back = tmp_path / "back"
    ended = archives.copy(archives.url, back)
    assert ended.returncode == 0, ended.stderr
    verified = archives.cogment("verify", str(back), "--json")
    assert json.loads(verified.stdout)["findings"] == [], verified.stdout
    with server_process(back) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
        assert registry.publish("été", b"next").number == 130
        assert registry.retrieve("été", "production") == b"first"
        assert registry.retrieve("été", 3) == LARGE


def test_a_copy_that_has_something_else_is_refused_and_stays(archives: Archives, tmp_path: Path) -> None:
    for name in ("one", "other"):
        with server_process(tmp_path / name) as process, ModelRegistry(f"grpc://127.0.0.1:{process.port}") as registry:
            registry.create_model(name)
            registry.create_model("both")
            registry.store("both", name.encode())
    assert archives.copy(tmp_path / "one", archives.url).returncode == 0
    before = sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk)
    ended = archives.copy(tmp_path / "other", archives.url)
    assert ended.returncode == 1
    assert ended.stderr == ('error: the copy has model "one", and the archive has not: copy to a new place\n')
    assert sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk) == before


def test_what_is_damaged_in_a_bucket_is_found_and_not_copied(archives: Archives, tmp_path: Path) -> None:
    with server_process(archives.directory) as process:
        fill(process)
    assert archives.copy(archives.directory, archives.url).returncode == 0
    sound = archives.cogment("verify", archives.url)
    assert sound.returncode == 0, sound.stderr
    assert sound.stdout.startswith("2 models, 2 versions, 17.1 MiB read in ")
    parts = sorted(each["path"] for chunk in obstore.list(archives.store, "data") for each in chunk if each["size"] > 5)
    obstore.put(archives.store, parts[0], b"x" + LARGE[1 : 8 * 1024 * 1024], use_multipart=False)
    obstore.put(archives.store, f"{layout.MODELS}/m.json", b"{}")
    ended = archives.cogment("verify", archives.url, "--json")
    document = json.loads(ended.stdout)
    assert (ended.returncode, document["sound"]) == (1, False)
    assert [(each["kind"], each["version_number"]) for each in document["findings"]] == [
        ("model_metadata_damaged", None),
        ("data_wrong_hash", 3),
    ]
    ended = archives.copy(archives.url, tmp_path / "copy")
    assert ended.returncode == 1
    assert 'problem: version 3 of model "été" is damaged: its bytes do not match their hash\n' in ended.stdout
    assert "1 version copied" in ended.stdout


def test_what_is_no_archive_is_an_error_of_one_line(archives: Archives, tmp_path: Path) -> None:
    ended = archives.cogment("verify", archives.url)
    assert ended.returncode == 3
    assert ended.stderr == f"error: archive {archives.url} cannot be used: no server has used it\n"
    ended = archives.cogment("verify", "s3://key:secret@bucket/a")
    assert ended.returncode == 2
    assert "secret" not in ended.stderr
    (tmp_path / "notes.txt").touch()
    assert archives.cogment("copy", str(tmp_path), str(tmp_path)).returncode == 1
