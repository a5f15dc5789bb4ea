"""Completion in bash, which breaks the words of a line at colons and equals signs before it calls the program."""

import os
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class, split_arg_string

_BREAKS = ":=@"
"""The characters of `COMP_WORDBREAKS` that endpoints, flags and ids have."""


class _WholeWords(BashComplete):
    """Completes the line as it was typed, and gives bash the part of each answer that it replaces, quoted."""

    source_template = BashComplete.source_template.replace(
        "$(env ", '$(env COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" '
    ).replace("COMPREPLY+=($value)", 'COMPREPLY+=("$(printf %%q "$value")")')

    _kept = ""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the whole words before the one that is to be completed, and that one."""
        line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)]
        if not line:
            return super().get_completion_args()
        words = split_arg_string(line)
        is_begun = len(split_arg_string(line + "x")) == len(words)  # also when its end is quoted or escaped
        incomplete = words.pop() if is_begun else ""
        breaks = set(_BREAKS) & set(os.environ.get("COMP_WORDBREAKS", _BREAKS))
        self._kept = incomplete[: 1 + max(incomplete.rfind(each) for each in breaks)] if breaks else ""
        return words[1:], incomplete

    def format_completion(self, item: "CompletionItem[Any]") -> str:
        """Return an answer in the format of the script, without the part of the word that bash keeps."""
        return f"{item.type},{item.value.removeprefix(self._kept)}"


def install() -> None:
    """Register this completion with click."""
    add_completion_class(_WholeWords)
