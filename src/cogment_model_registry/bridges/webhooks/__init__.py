"""Webhooks: what happens in a registry, posted to HTTP servers.

`cogment webhooks` runs it, as a process of its own that follows the registry like any client. `verify` is for whoever
receives the posts.
"""

from cogment_model_registry.bridges.webhooks.signing import verify

__all__ = ["verify"]
