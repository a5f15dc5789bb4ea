"""Figures of the server, each compared with its floor in the same run: `python -m benchmarks`, or `make bench`.

A floor is what the same gRPC library moves with nothing behind it, or what the disk takes: see `floors`. Servers, their
floors and the clients are processes of their own on one machine, over the loopback interface.
"""

import os

# gRPC's clients would tell of each connection that ends with its server.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
