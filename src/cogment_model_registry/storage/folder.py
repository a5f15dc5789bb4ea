"""What a catalog that lives in the files of an archive needs, below the contract: only a folder of files knows it."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from cogment_model_registry.registry.contracts import Archive, ModelContents


@dataclass(frozen=True, slots=True)
class FolderContents(ModelContents):
    """What a folder has of a model.

    Attributes:
        high_water_mark: The persisted number up to which none may be given again; 0 for none.
    """

    high_water_mark: int = 0


class FolderArchive(Archive):
    """An archive whose files people may add and remove by hand, and which keeps the marks of numbers.

    The caller runs no `write_high_water_mark` of a model at the same time as `begin_removal` or another one.
    """

    @abstractmethod
    async def scan(self) -> Sequence[FolderContents]:
        """Return all models, ordered by id, whatever else lies in the folder."""

    @abstractmethod
    async def scan_model(self, model_id: str) -> FolderContents | None:
        """Return one model; None when it does not exist."""

    @abstractmethod
    async def write_high_water_mark(self, model_id: str, number: int) -> None:
        """Persist the number up to which none may be given again.

        Raises:
            NotFoundError: The model does not exist.
            TooLargeError: No space is left.
        """
