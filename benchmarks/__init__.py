"""Figures of the server, each compared with its floor in the same run: `python -m benchmarks`, or `make bench`.

A floor is the speed of the same gRPC library without a registry, or of the disk: see `floors`. Servers, their floors
and the clients are separate processes on one machine, over the loopback interface.
"""

import os

# gRPC's clients would log each connection that ends with its server.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
