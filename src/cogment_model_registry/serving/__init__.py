"""The parts that every gRPC server of this package shares: calls, health, logs, a life cycle, workarounds for gRPC."""
