"""Who looks at a page, and what they may do. The pages do not offer what they may not do.

The server checks each call anyway; this only avoids forms that it would refuse.
"""

from dataclasses import dataclass

from starlette.requests import Request

from cogment_model_registry.errors import InvalidError
from cogment_model_registry.records.access import ANY, Action, Need, Scope
from cogment_model_registry.web.state import caller_of, registry_of
from cogment_model_registry.wire.forwarding import Description


@dataclass(frozen=True, slots=True)
class Rights:
    """What a caller may do.

    Attributes:
        name: The name of the caller.
        kind: How the caller was authenticated.
        scopes: What they may do.
        has_session: Whether they are logged in, and so can log out.
        expires_ns: When it ends, in nanoseconds since the Unix epoch; None for never.
    """

    name: str
    kind: str
    scopes: tuple[Scope, ...]
    has_session: bool = False
    expires_ns: int | None = None

    def may(self, action: Action, model_id: str | None = None, alias: str = "") -> bool:
        """Return whether the caller may do something.

        Args:
            action: What.
            model_id: With which model; None for at least one.
            alias: With which alias; `ANY` for every one.
        """
        need = Need((action,), model_id, alias)
        return any(scope.covers(need) for scope in self.scopes)

    @property
    def may_everything(self) -> bool:
        """Whether they may do everything."""
        return self.may("admin", ANY)

    def may_change(self, model_id: str) -> bool:
        """Return whether tags and metrics of a model may be changed."""
        return self.may("publish", model_id) or self.may("store", model_id)

    def may_force(self, model_id: str) -> bool:
        """Return whether versions may be deleted with the aliases that point to them."""
        return self.may("delete", model_id) and self.may("alias", model_id, ANY)

    def missing(self, model_id: str) -> str:
        """Return a sentence about what the caller may not do with a model; empty if they may do everything."""
        wanted: tuple[tuple[Action, str], ...] = (
            ("store", "promote versions"),
            ("alias", "move aliases"),
            ("delete", "delete versions"),
        )
        lacking = [(action, text) for action, text in wanted if not self.may(action, model_id)]
        if not lacking:
            return ""
        texts = [text for _, text in lacking]
        scopes = [str(action) for action, _ in lacking]
        return f"You may not {_listed(texts, 'or')} here: you need the scope {_listed(scopes, 'or')}."


def _listed(words: list[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def rights_of(description: Description, *, has_session: bool) -> Rights:
    """Return the rights that a server describes; unknown scopes, of a newer release, are ignored."""
    scopes = []
    for text in description.scopes:
        try:
            scopes.append(Scope.parse(text))
        except InvalidError:
            continue
    return Rights(description.name, description.kind, tuple(scopes), has_session, description.expires_ns)


async def read_rights(request: Request) -> Rights:
    """Return the rights of the caller.

    Raises:
        UnauthenticatedError: The caller needs a valid token.
    """
    description = await registry_of(request).describe_caller()
    return rights_of(description, has_session=caller_of(request).is_by_cookie)
