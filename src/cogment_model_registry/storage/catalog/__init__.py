"""The catalog: what exists."""
