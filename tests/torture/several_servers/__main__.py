"""One run in a process of its own: ``PLACE DATABASES ROUNDS OWN_NETWORK``, with the state of `Random` on its input.

It writes its figures into a file of the place.
"""

import asyncio
import json
import pickle
import sys
from pathlib import Path

from tests.torture.proof import Figures
from tests.torture.several_servers.run import run
from tests.torture.several_servers.stage import FIGURES


def main() -> None:
    """Do it."""
    place, databases, rounds, has_own_network = sys.argv[1:]
    figures = Figures()
    random = pickle.load(sys.stdin.buffer)
    asyncio.run(
        run(Path(place), Path(databases), int(rounds), random, figures, has_own_network=has_own_network == "yes")
    )
    (Path(place) / FIGURES).write_text(json.dumps(vars(figures)))


if __name__ == "__main__":
    main()
