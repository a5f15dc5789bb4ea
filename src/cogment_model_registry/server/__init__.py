"""The model registry as a server: composition, the service, transfers, metrics, registration with a Directory."""
