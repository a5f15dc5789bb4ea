"""Names in a filter that no version of a model has: most are misspelt."""

import asyncio
import re
from collections.abc import Sequence

from cogment_model_registry.web.pages import queries
from cogment_model_registry.web.registries import Registry

_NAMES_MAX = 4
"""How many names are looked up: each takes a search."""

_STRING = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_NAMED = re.compile(
    rf"{_STRING}|(?<![\w.])(?P<kind>metrics|tags|user_data)[.:](?P<name>[\w/+@~-]+|{_STRING})", re.DOTALL
)
_KINDS = {"metrics": "metric", "tags": "tag", "user_data": "user data"}


def names_in(accepted: str) -> Sequence[tuple[str, str]]:
    """Return the metrics, tags and entries of `user_data` in a filter that is well formed.

    Args:
        accepted: The filter.

    Returns:
        The field and the name, as the filter has them, each once; a bounded number.
    """
    found = dict.fromkeys((each["kind"], each["name"]) for each in _NAMED.finditer(accepted) if each["kind"])
    return [*found][:_NAMES_MAX]


async def unknown_names(registry: Registry, model_id: str, accepted: str) -> list[str]:
    """Return the metrics, tags and entries of `user_data` in a filter that no version of a model has.

    Args:
        registry: The registry.
        model_id: The model.
        accepted: The filter, which is well formed.

    Returns:
        Texts such as ``metric retrun``.
    """
    names = names_in(accepted)
    pages = await asyncio.gather(
        *(
            queries.find_versions(registry, model_id, accepted=f"{kind}:{name}", order_by="version_number desc", size=1)
            for kind, name in names
        )
    )
    return [f"{_KINDS[kind]} {name}" for (kind, name), page in zip(names, pages, strict=True) if not page.versions]
