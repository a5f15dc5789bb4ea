"""The Cogment Directory: a client, and a small server."""
