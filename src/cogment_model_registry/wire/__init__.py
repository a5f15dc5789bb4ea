"""What crosses the network, and the only place that knows protobuf."""
