"""What this server is about to do together with the archive: a row that outlives a crash, until it is done.

An archived version exists if its row in `versions` does. Between the moment at which the archive has its record and
the one at which the row is committed, a crash leaves a record without a row; the row in `pending` says so. It is
resolved under the lock of the model: if it is still there then, the change was not committed, and what the archive has
of it is removed. A removal is finished: files first, row last.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from cogment_model_registry.errors import ModelRegistryError
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres.changes import Change
from cogment_model_registry.storage.postgres.translation import Record

PendingKind: TypeAlias = Literal["store", "promote", "remove", "remove model"]

INSERT = "INSERT INTO pending (server, kind, model_id, life, number) VALUES ($1, $2, $3, $4, $5) RETURNING pending"
DELETE = "DELETE FROM pending WHERE pending = $1"
LIST = "SELECT pending, server, kind, model_id, life, number FROM pending"


@dataclass(frozen=True, slots=True)
class Pending:
    """A change that a server has begun, and perhaps not ended.

    Attributes:
        pending: Its key.
        server: The lease of the server.
        kind: A version is stored (``store``), archived (``promote``) or removed (``remove``), or a model is removed
            (``remove model``).
        ref: The model.
        number: The version; 0 for none.
    """

    pending: int
    server: int
    kind: PendingKind
    ref: ModelRef
    number: int


def pending_of(row: Record) -> Pending:
    """Return what a row says."""
    ref = ModelRef(row["model_id"], row["life"])
    return Pending(row["pending"], row["server"], row["kind"], ref, row["number"])


async def begin(change: Change, kind: PendingKind, ref: ModelRef, number: int = 0) -> int:
    """Commit a pending row, with what the change has done before; return its key. The locks stay."""
    row = await change.fetch_one("begin pending", INSERT, change.server, kind, ref.model_id, ref.life, number)
    await change.commit_and_go_on()
    pending: int = row["pending"]
    return pending


async def void(change: Change, key: int) -> None:
    """Commit that nothing is pending, since the change failed before anything was done.

    Where that fails, the row stays, and is resolved like any other; the error of the change is what counts.
    """
    with suppress(ModelRegistryError):
        await change.fetch("end pending", DELETE, key)
        await change.commit()
