"""The three contracts of storage: Archive, TransientStore and Catalog.

The registry is written against these alone, so another backend (an object store, a database) is one more class, and
several servers can share models and versions. `cogment_model_registry.testing` has a conformance suite for each
contract, and backends in memory that pass it.

A version goes through the same steps in either store: an `Upload` takes its bytes, `finish` returns their hash (and
makes them durable, in an archive), and `commit` binds them to a number. Only the catalog makes a version visible: an
upload that ends in any other way leaves nothing.

All methods run on one event loop, may be called concurrently, and never block it. Whatever a database may answer is
awaited. Errors are those of `cogment_model_registry.errors`; a method raises `UnavailableError` when its backend fails,
in addition to the errors that it states.
"""

from cogment_model_registry.registry.contracts.catalog import (
    Catalog,
    CatalogCounts,
    ModelOutline,
    ModelRef,
    ModelState,
    Newer,
    Promotion,
    Search,
    Slot,
)
from cogment_model_registry.registry.contracts.news import Lost, News, Shown, Watcher
from cogment_model_registry.registry.contracts.stores import (
    Archive,
    EvictionListener,
    ModelContents,
    Reader,
    Removal,
    TransientStore,
    TransientUsage,
    Upload,
    VersionStore,
)

__all__ = [
    "Archive",
    "Catalog",
    "CatalogCounts",
    "EvictionListener",
    "Lost",
    "ModelContents",
    "ModelOutline",
    "ModelRef",
    "ModelState",
    "Newer",
    "News",
    "Promotion",
    "Reader",
    "Removal",
    "Search",
    "Shown",
    "Slot",
    "TransientStore",
    "TransientUsage",
    "Upload",
    "VersionStore",
    "Watcher",
]
