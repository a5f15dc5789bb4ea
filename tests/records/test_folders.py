"""Which paths a folder may have that is one version."""

import os
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.folders import ENTRIES_MAX, PathNames


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty name"),
        ("/etc", "empty name"),
        ("a//b", "empty name"),
        ("a/", "empty name"),
        (".", 'the name "."'),
        ("..", 'the name ".."'),
        ("../x", 'the name ".."'),
        ("a/../../x", 'the name ".."'),
        ("C:\\x", "the character"),
        ("a\\b", "the character"),
        ("x:stream", "the character"),
        ("what?", "the character"),
        ("a\0b", "the character"),
        ("a\nb", "the character"),
        ("a\x7fb", "the character"),
        ("\ud800", "the character"),
        ("dot.", "ends with a dot or a space"),
        ("space ", "ends with a dot or a space"),
        ("CON", "a device"),
        ("nul.txt", "a device"),
        ("Com1.tar.gz", "a device"),
        ("lpt¹", "a device"),
        ("aux .bin", "a device"),
        ("x" * 256, "more than 255 bytes"),
        ("ü" * 128, "more than 255 bytes"),
    ],
)
def test_a_name_that_one_of_the_systems_cannot_have_is_refused(path: str, reason: str) -> None:
    with pytest.raises(InvalidError, match=reason):
        PathNames().add(path, is_folder=False)


@pytest.mark.parametrize(
    "path", ["a", ".hidden", "...x", " x", "con1", "x" * 255, "ü" * 127, "\N{SNAKE}", "a-b_c+d=e,f@g"]
)
def test_other_names_are_taken(path: str) -> None:
    PathNames().add(path, is_folder=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "A"),
        ("straße", "STRASSE"),
        ("ü", unicodedata.normalize("NFD", "ü")),
        ("Ü", unicodedata.normalize("NFD", "ü")),
    ],
)
def test_paths_that_some_system_takes_for_the_same_are_refused(first: str, second: str) -> None:
    names = PathNames()
    names.add(first, is_folder=False)
    with pytest.raises(InvalidError, match="are the same path where the system ignores case"):
        names.add(second, is_folder=False)
    with pytest.raises(InvalidError, match="comes twice"):
        names.add(first, is_folder=False)


def test_a_file_is_in_a_folder_that_came_before_it_with_the_same_name() -> None:
    names = PathNames()
    names.add("a", is_folder=True)
    names.add("a/b", is_folder=False)
    for path in ("A/c", "b/c", "a/b/c"):
        with pytest.raises(InvalidError, match="is in no folder that came before it"):
            names.add(path, is_folder=False)


def test_a_path_has_a_bounded_length() -> None:
    names, part = PathNames(), "x" * 200
    for depth in range(1, 6):
        names.add("/".join([part] * depth), is_folder=True)
    with pytest.raises(InvalidError, match="longer than 1,024 bytes"):
        names.add("/".join([part] * 6), is_folder=True)


def test_a_folder_has_a_bounded_number_of_entries() -> None:
    names = PathNames()
    for number in range(ENTRIES_MAX):
        names.add(str(number), is_folder=False)
    with pytest.raises(InvalidError, match="may have 10,000 files and folders"):
        names.add("one more", is_folder=False)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=6))
@example(["a", "A/x", "../x"])
def test_what_is_taken_stays_in_the_folder(paths: list[str]) -> None:
    names = PathNames()
    for path in paths:
        try:
            names.add(path, is_folder=True)
        except InvalidError:
            continue
        parts = path.split("/")
        assert os.path.normpath(os.path.join("root", *parts)) == os.path.join("root", *parts)
        assert not os.path.isabs(path)
