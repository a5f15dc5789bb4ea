"""The Python client: one implementation, blocking and for asyncio. It talks to any server of the documented API."""
