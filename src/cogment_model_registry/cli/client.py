"""`cogment client`: calls to servers from the command line."""

import click

from cogment_model_registry.cli.groups import ServicesGroup

_COMMANDS = {
    "directory": "cogment_model_registry.cli.directory:directory",
    "model_registry": "cogment_model_registry.cli.model_registry:model_registry",
}


@click.group(cls=ServicesGroup, places=_COMMANDS, short_help="Use a model registry or a Directory.")
def client() -> None:
    """Use a service."""
