"""Bridges to what teams have: MLflow, the Hub's layout, training libraries, and webhooks for everything else.

Each module is a client of the registry like any other program: it imports the public modules of this package, and the
library that its extra installs.
"""
