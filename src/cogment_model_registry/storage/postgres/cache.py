"""What was read from PostgreSQL lately. It serves while PostgreSQL is away, and never else."""

from collections.abc import Sequence

from cachetools import LRUCache

from cogment_model_registry.records.versions import ModelInfo, VersionInfo, user_data_bytes
from cogment_model_registry.registry.contracts import ModelRef
from cogment_model_registry.storage.postgres.notes import Note

_VERSIONS_BYTES = 32 * 1024 * 1024
_INFO_BYTES = 900  # as in the catalog of one server
_MODELS = 10_000


def _info_bytes(info: VersionInfo) -> int:
    return _INFO_BYTES + 2 * user_data_bytes(info.user_data)


class Cache:
    """Models and versions by what was asked for: a version by its number, or as the n-th from the last."""

    def __init__(self) -> None:
        self._refs: LRUCache[str, ModelRef] = LRUCache(_MODELS)
        self._models: LRUCache[int, ModelInfo] = LRUCache(_MODELS)
        self._versions: LRUCache[tuple[int, int], VersionInfo] = LRUCache(_VERSIONS_BYTES, _info_bytes)
        self._last: LRUCache[int, dict[int, VersionInfo]] = LRUCache(_MODELS)

    def put_ref(self, ref: ModelRef) -> None:
        """Keep the life of a model."""
        self._refs[ref.model_id] = ref

    def put_model(self, life: int, info: ModelInfo) -> None:
        """Keep a model."""
        self._refs[info.model_id] = ModelRef(info.model_id, life)
        self._models[life] = info

    def put_versions(self, ref: ModelRef, numbers: Sequence[int], infos: Sequence[VersionInfo]) -> None:
        """Keep the answer to a question for versions."""
        self._refs[ref.model_id] = ref
        for number, info in zip(numbers, infos, strict=True):
            self._versions[ref.life, info.number] = info
            if number < 0:
                last = self._last.get(ref.life)
                if last is None:
                    last = self._last[ref.life] = {}
                last[number] = info

    def find(self, model_id: str) -> ModelRef | None:
        """Return the life of a model, if it is known."""
        return self._refs.get(model_id)

    def get_model(self, model_id: str) -> ModelInfo | None:
        """Return a model, if it is known."""
        ref = self._refs.get(model_id)
        return self._models.get(ref.life) if ref else None

    def get_versions(self, model_id: str, numbers: Sequence[int]) -> list[VersionInfo] | None:
        """Return versions, if all of them are known."""
        ref = self._refs.get(model_id)
        if ref is None:
            return None
        last = self._last.get(ref.life, {})
        found = [last.get(number) if number < 0 else self._versions.get((ref.life, number)) for number in numbers]
        known = [info for info in found if info is not None]
        return known if len(known) == len(numbers) else None

    def take(self, note: Note) -> None:
        """Keep in line with a change."""
        if note.kind in ("created", "removed"):
            self._refs.pop(note.model_id, None)
        elif note.kind == "changed":
            self._models.pop(note.life, None)
        elif note.kind in ("shown", "lost"):
            self._last.pop(note.life, None)  # which one is the n-th from the last has changed
            for number in note.numbers:
                self._versions.pop((note.life, number), None)
        if note.info is not None:
            self._versions[note.life, note.info.number] = note.info
            if note.kind == "shown":
                self._last[note.life] = {-1: note.info}
            elif note.kind == "promoted":
                self._last.pop(note.life, None)
