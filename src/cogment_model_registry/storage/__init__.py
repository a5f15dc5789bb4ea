"""The backends of the contracts in `registry.contracts`, one folder each."""
