"""The conformance suite of `Catalog` for a local catalog, over any archive."""

from cogment_model_registry.records.lifecycle import Annotations
from cogment_model_registry.records.uploads import UploadRequest
from cogment_model_registry.records.versions import ModelInfo, VersionInfo
from cogment_model_registry.registry.contracts import Catalog
from cogment_model_registry.storage.catalog.local import LocalCatalog
from cogment_model_registry.testing.archive import remove
from cogment_model_registry.testing.bytes import describe, keep
from cogment_model_registry.testing.catalog import CatalogSuite


class LocalCatalogSuite(CatalogSuite):
    """Demands on a local catalog, whose models live in its archive. A subclass says how to open one."""

    async def prepare_model(self, catalog: Catalog, info: ModelInfo) -> None:
        assert isinstance(catalog, LocalCatalog)
        await catalog._archive.write_model(info)

    async def retire_model(self, catalog: Catalog, model_id: str) -> None:
        assert isinstance(catalog, LocalCatalog)
        await remove(catalog._archive, model_id)

    async def publish_archived(
        self, catalog: Catalog, annotations: Annotations, request: UploadRequest | None = None
    ) -> VersionInfo:
        assert isinstance(catalog, LocalCatalog)
        async with catalog.publishing(await catalog.find("m"), archived=True) as slot:
            info = describe("m", slot.number, b"data", True)
            await slot.annotate(info, annotations, request)
            await keep(catalog._archive, info, b"data")
            slot.show(info)
        return info
