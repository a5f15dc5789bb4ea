"""HTTP: the pages, /api/v1, health and metrics. It runs in its own process.

A request becomes calls to the server over a UNIX socket, with the token of the caller; the server checks rights and
limits. So nothing here can block gRPC, and nothing here has rights of its own.
"""
