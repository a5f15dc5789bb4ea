"""Words that everyone uses: models and versions, the bytes of a version, and the services of a Directory."""
