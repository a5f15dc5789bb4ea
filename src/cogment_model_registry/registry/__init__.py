"""The rules of the registry, and the contracts of the storage that they need."""
