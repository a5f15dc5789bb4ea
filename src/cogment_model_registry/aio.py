"""The client for asyncio: what `cogment_model_registry.ModelRegistry` does, awaited."""

from cogment_model_registry.client.asynchronous import AsyncLatest, ModelRegistry, Progress

__all__ = ["AsyncLatest", "ModelRegistry", "Progress"]
