"""What each gRPC server of this package has: calls, health, logs, a life cycle, workarounds for gRPC."""
