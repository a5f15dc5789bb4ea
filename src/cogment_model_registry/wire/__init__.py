"""The messages on the network; the only part that knows protobuf."""
