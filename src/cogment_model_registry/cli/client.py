"""`cogment client`: asking servers from the command line."""

import click

from cogment_model_registry.cli.directory import directory


@click.group()
def client() -> None:
    """Ask a service."""


client.add_command(directory)
