"""The objects of models, where several servers write them.

Each write replaces exactly what was read before it, so what a server that is gone has sent and the network delivers
later changes nothing: neither the life of a model that was created again, nor its `user_data`. For the same reason, the
object of a model that is removed stays and says that its life has ended; the next life replaces it.

A write that the store did not confirm is either found to be there, or made impossible by one more write of what was
there. Each write has a text of its own, so that the store tells it from others that say the same.
"""

import secrets
from dataclasses import replace

from cogment_model_registry.errors import ModelRegistryError, NotFoundError, UnavailableError
from cogment_model_registry.records.versions import ModelInfo
from cogment_model_registry.storage.bucket import layout
from cogment_model_registry.storage.bucket.layout import ModelRecord
from cogment_model_registry.storage.bucket.objects import Objects, Written
from cogment_model_registry.storage.bucket.translation import ObjectExists

_ATTEMPTS = 3
"""How often a write begins again, since something late changed the object in between."""


async def read(objects: Objects, model_id: str) -> ModelRecord | None:
    """Return what the object of a model says, also of an ended life; None if there is none.

    Raises:
        UnavailableError: The store failed, or the object is malformed.
    """
    text = await objects.find(layout.model_name(model_id))
    return None if text is None else _parse(text, layout.model_name(model_id))


async def write(objects: Objects, info: ModelInfo) -> ModelRecord:
    """Create a model, or replace its `user_data`; return it.

    Raises:
        TooLargeError: No space is left.
        UnavailableError: The store failed, or the object is malformed.
    """
    name = layout.model_name(info.model_id)
    for _ in range(_ATTEMPTS):
        written = await objects.find_written(name)
        before = None if written is None else _parse(written.data, name)
        life = layout.new_life() if before is None or before.is_ended else before.life
        model = ModelRecord(info, life)
        if await _change(objects, written, model):
            return model
    raise _contradiction()


async def end(objects: Objects, model_id: str) -> ModelRecord:
    """End the life of a model; return what it was.

    Raises:
        NotFoundError: It does not exist.
        UnavailableError: The store failed, or the object is malformed.
    """
    name = layout.model_name(model_id)
    for _ in range(_ATTEMPTS):
        written = await objects.find_written(name)
        before = None if written is None else _parse(written.data, name)
        if written is None or before is None or before.is_ended:
            raise NotFoundError.model(model_id)
        if await _change(objects, written, replace(before, info=ModelInfo(model_id), is_ended=True)):
            return before
    raise _contradiction()


async def _change(objects: Objects, before: Written | None, model: ModelRecord) -> bool:
    """Write an object in place of what was read; return whether nobody else changed it in between."""
    name = layout.model_name(model.info.model_id)
    text = layout.build_model(model, secrets.token_hex(16))
    try:
        await _write(objects, name, text, before)
    except ObjectExists:
        now = await objects.find_written(name)
        return now is not None and now.data == text
    except UnavailableError:
        if await _is_there(objects, name, text, before):
            return True
        raise
    return True


async def _write(objects: Objects, name: str, text: bytes, before: Written | None) -> None:
    if before is None:
        await objects.create(name, text)
    else:
        await objects.replace(name, text, before)


async def _is_there(objects: Objects, name: str, text: bytes, before: Written | None) -> bool:
    """Return whether a write that the store did not confirm was done; if not, it never will be.

    If the store does not answer now either, that stays open, and this returns False.
    """
    try:
        now = await objects.find_written(name)
        if now is not None and now.data == text:
            return True
        if now is None:
            sent = _parse(text, name)
            nothing = ModelRecord(ModelInfo(sent.info.model_id), layout.new_life(), is_ended=True)
            await objects.create(name, layout.build_model(nothing, secrets.token_hex(16)))
        elif before is not None and now.data == before.data:
            await objects.replace(name, layout.build_model(_parse(now.data, name), secrets.token_hex(16)), now)
    except ObjectExists:
        now = await objects.find_written(name)
        return now is not None and now.data == text
    except ModelRegistryError:
        return False
    return False


def _parse(text: bytes, name: str) -> ModelRecord:
    try:
        return layout.parse_model(text, name)
    except layout.BadObject as error:
        raise UnavailableError(f"the archive failed: the object of the model is malformed: {error}") from None


def _contradiction() -> UnavailableError:
    return UnavailableError("the archive failed: the object store contradicts itself")
