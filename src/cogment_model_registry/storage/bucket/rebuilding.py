"""Rebuilding the object of a model that is malformed, from the records of its versions.

Without its object, nobody knows which life the model has. A record says of which model it is, so a life that no other
model has and whose records are of this model is that life, if there is only one. The `user_data` are lost; the
malformed object is kept under another name, for people.
"""

from cogment_model_registry.errors import DataLossError, counted
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.contents import Listing
from cogment_model_registry.storage.bucket.layout import ModelRecord
from cogment_model_registry.storage.bucket.objects import Objects

DAMAGED = "damaged"
"""The folder of malformed objects that were replaced."""


async def rebuild_model(objects: Objects, name: str, listing: Listing, living: set[str]) -> ModelRecord:
    """Rebuild the malformed object of a model, and return it.

    Args:
        objects: The objects of the archive, which this process owns.
        name: The name of the object.
        listing: The names of all lives.
        living: The lives of other models.

    Raises:
        DataLossError: It cannot be rebuilt.
        UnavailableError: The store failed.
    """
    text = await objects.find(name) or b""
    found = {}
    for life in sorted(listing.versions.keys() - living):
        model_id = await _model_of(objects, life, listing.versions[life])
        if model_id and layout.model_name(model_id) == name:
            found[life] = model_id
    named = {life: model_id for life, model_id in found.items() if life.encode() in text}
    lives = named or found
    if len(lives) != 1:
        raise DataLossError(f"it cannot be rebuilt: {counted(len(lives), 'set')} of versions may be those of the model")
    [(life, model_id)] = lives.items()
    await objects.put(f"{DAMAGED}/{name}", text)
    model = ModelRecord(ModelInfo(model_id), life)
    await objects.put(name, layout.build_model(model))
    return model


async def _model_of(objects: Objects, life: str, numbers: set[int]) -> str:
    """Return the model of a life by a record; empty if none says it."""
    for number in sorted(numbers, reverse=True):
        text = await objects.find(layout.version_name(life, number))
        if text is None:
            continue
        try:
            model_id = layout.parse_model_id(text)
            if layout.parse_record(text, model_id, number) is not None:
                return model_id
        except layout.BadObject:
            continue
    return ""
