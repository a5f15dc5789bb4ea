"""Run the command line: `python -m cogment_model_registry` is `cogment`."""

from cogment_model_registry.cli import program

if __name__ == "__main__":
    program()
