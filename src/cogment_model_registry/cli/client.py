"""`cogment client`: calls to servers from the command line."""

import click

from cogment_model_registry.cli.directory import directory
from cogment_model_registry.cli.model_registry import model_registry
from cogment_model_registry.cli.services import ServicesGroup


@click.group(cls=ServicesGroup)
def client() -> None:
    """Call a service."""


client.add_command(directory)
client.add_command(model_registry)
