"""HTTP: the pages, /api/v1, and what monitoring asks. It runs in a process of its own.

A request becomes calls of the registry, over a UNIX socket of the server and with the token of whoever asks; what they
may do, and how much, is decided there. So nothing here can hold up gRPC, and nothing here has rights of its own.
"""
