"""Webhooks: events of a registry, posted to HTTP servers.

`cogment webhooks` runs as a separate process that watches the registry like any client. Receivers check posts with
`verify`.
"""

from cogment_model_registry.bridges.webhooks.signing import verify

__all__ = ["verify"]
