"""What a catalog of one server needs of its archive, below the contract.

A folder is what has the versions of a model: a directory of files, which people may change by hand, or one life of a
model in a bucket.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cogment_model_registry.registry.contracts import Archive, ModelContents


@dataclass(frozen=True, slots=True)
class FolderStamp:
    """The state of a folder: another one whenever an entry of it comes, goes, or gets another name.

    Attributes:
        inode: Which folder it is: the inode of a directory, or a life as a number.
        changed_ns: What is another number after a change: the time of the last one (ctime), which no program can set,
            or in a bucket a hash of what there is.
        is_settled: Whether the next change gives another state. Otherwise `changed_ns` is a time in the past, before
            which all changes came that are known to be older; such a state equals none that was recorded.
    """

    inode: int
    changed_ns: int
    is_settled: bool = True


@dataclass(frozen=True, slots=True)
class KnownFolder:
    """What is known of a folder since an earlier scan.

    Attributes:
        size_bytes: The bytes of its versions, by number, ascending.
        stamp: Its state then; None when it is not known.
        is_complete: Whether these versions were all that it had, in this state.
    """

    size_bytes: Mapping[int, int] = field(default_factory=dict)
    stamp: FolderStamp | None = None
    is_complete: bool = False


@dataclass(frozen=True, slots=True)
class FolderContents(ModelContents):
    """What a folder has of a model.

    Attributes:
        high_water_mark: The persisted number up to which none may be given again; 0 for none.
        stamp: The state of the folder before it was scanned; None when it was not scanned.
        changed: The versions that are not known, or whose metadata was written since the folder had the known state.
        is_plain: Whether it has nothing else of the model than these versions.
        is_as_known: Whether it is in the known state, and was not read.
    """

    high_water_mark: int = 0
    stamp: FolderStamp | None = None
    changed: Sequence[int] = ()
    is_plain: bool = False
    is_as_known: bool = False


class FolderArchive(Archive):
    """An archive that can be scanned again, since people may change its files by hand, and has the marks of numbers.

    The caller runs no `write_high_water_mark` of a model at the same time as `begin_removal` or another one.
    """

    @abstractmethod
    async def scan(self, known: Mapping[str, KnownFolder] | None = None) -> Sequence[FolderContents]:
        """Return all models, ordered by id, whatever else lies in the folder.

        Args:
            known: What is known of them; a folder that is in the known state, and was complete then, is not read.
        """

    @abstractmethod
    async def scan_model(self, model_id: str, known: KnownFolder | None = None) -> FolderContents | None:
        """Return one model; None when it does not exist."""

    @abstractmethod
    async def write_high_water_mark(self, model_id: str, number: int) -> None:
        """Persist the number up to which none may be given again.

        Raises:
            NotFoundError: The model does not exist.
            TooLargeError: No space is left.
        """
