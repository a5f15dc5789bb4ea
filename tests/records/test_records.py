"""The rules of ids, hashes and annotations, and the texts of messages."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cogment_model_registry.errors import InvalidError, counted
from cogment_model_registry.records.versions import check_data_hash, check_model_id, check_user_data

GOOD_IDS = [
    "123", "m-v000001", "a.yaml", "CON", "yes", "null", "été", "_", "a", "0", "lost+found", "a b",
    "a-b.c:d+e=f@g~h(i),", "模型", "модель", "نموذج", "हिन्दी", "๑๒๓", "x" * 128, "é" * 64, "a~b", "a..b",
]  # fmt: skip

BAD_IDS = [
    "", ".", "..", ".a", "a.", "a ", " a", "-a", "a/b", "a\\b", "../a", "/a", "a\0b", "a\nb", "a\tb", "a%2fb", "%",
    "a*", "a?", "a|b", "a<b", "a>b", 'a"b', "a'b", "a;b", "a&b", "a$b", "a#b", "a!b", "a[b]",
    "a{b}", "a^b", "a`b", "~a", "=a", "@a",
    "a\u2044b",  # fraction slash
    "a\u2215b",  # division slash
    "a\uff0fb",  # full-width slash: a slash in NFKC
    "a\u29f5b",  # reverse solidus operator
    "a\uff3cb",  # full-width backslash
    "a\u200bb",  # zero-width space
    "a\u202eb",  # right-to-left override
    "a\u00adb",  # soft hyphen
    "a\ufeffb",  # byte-order mark
    "\u0301a",  # a mark first
    "e\u0301t",  # not in NFC
    "a\u00a0b",  # no-break space
    "a\u2024",  # one dot leader: ends with a dot in NFKC
    "\u2026a",  # ellipsis: begins with dots in NFKC
    "a\u2105b",  # care of: "c/o" in NFKC
    "²", "Ⅷ", "½", "😀", "x" * 129, "é" * 65, "a\ud800b", "a\x7fb", "a\x85b",
]  # fmt: skip


@pytest.mark.parametrize("model_id", GOOD_IDS)
def test_names_of_any_script_are_good_ids(model_id: str) -> None:
    check_model_id(model_id, 128)


@pytest.mark.parametrize("model_id", BAD_IDS)
def test_paths_lookalikes_of_paths_and_invisible_characters_are_refused_as_ids(model_id: str) -> None:
    with pytest.raises(InvalidError) as caught:
        check_model_id(model_id, 128)
    assert caught.value.message.isprintable()


MARKS = "_-.:+=@~(), "


def is_good(model_id: str) -> bool:
    """The rule again, as the documentation states it."""
    forms = [model_id, unicodedata.normalize("NFKC", model_id)]
    return (
        0 < len(model_id.encode()) <= 128
        and unicodedata.normalize("NFC", model_id) == model_id
        and all(
            all(
                unicodedata.category(c)[0] in "LM" or unicodedata.category(c) == "Nd" or c in "_-.:+=@~(), "
                for c in form
            )
            and (form[0] == "_" or unicodedata.category(form[0])[0] == "L" or unicodedata.category(form[0]) == "Nd")
            and form[-1] not in " ."
            for form in forms
        )
    )


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=6))
def test_an_id_is_accepted_exactly_when_the_rule_allows_it(model_id: str) -> None:
    try:
        check_model_id(model_id, 128)
    except InvalidError:
        assert not is_good(model_id)
    else:
        assert is_good(model_id)


@pytest.mark.parametrize(
    "data_hash",
    [
        "x",
        "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI",  # no padding
        "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhJ=",  # stray bits
        "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=\n",
        "8d8d20dd59142bad882cfaf626e696e60eee422d0470955926ef08629df27e12",  # hexadecimal
        "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3y",
        "jY0g-VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",  # the alphabet for URLs
        "é" * 44,
    ],
)
def test_a_hash_is_the_standard_base64_of_32_bytes(data_hash: str) -> None:
    check_data_hash("jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=", "m")
    with pytest.raises(InvalidError):
        check_data_hash(data_hash, "m")


def test_user_data_is_limited_in_bytes_of_keys_and_values_together() -> None:
    check_user_data({"é": "xx"}, 4, "m")
    with pytest.raises(InvalidError):
        check_user_data({"é": "xxx"}, 4, "m")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (counted(0, "model"), "0 models"),
        (counted(1, "model"), "1 model"),
        (counted(2, "model"), "2 models"),
        (counted(1, "entry", "entries"), "1 entry"),
        (counted(10_000_000, "entry", "entries"), "10000000 entries"),
        (counted(1.0, "second"), "1 second"),
        (counted(0.5, "second"), "0.5 seconds"),
    ],
)
def test_a_noun_is_in_the_plural_unless_there_is_one(text: str, words: str) -> None:
    assert text == words
