"""Bridges to other tools: MLflow, the cache of the Hugging Face Hub, training libraries, and webhooks.

Each module is a client of the registry, like any other program: it imports only the public modules of this package, and
the library that its extra installs.
"""
