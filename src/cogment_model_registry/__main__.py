"""Run the command line: `python -m cogment_model_registry` is `cogment`."""

import sys

from cogment_model_registry.cli import main

if __name__ == "__main__":
    sys.exit(main())
