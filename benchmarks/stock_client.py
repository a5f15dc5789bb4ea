# mypy: ignore-errors
# (The stock client has no types, and is installed only in its own environment.)
"""Retrieve with the stock client, and print the seconds of each retrieval as JSON.

Run as a module, by a Python 3.10 that has `cogment`: ADDRESS MODEL COUNT.
"""

import asyncio
import json
import sys
import time

import cogment


async def main(address, model_id, count):
    """Retrieve the latest version a number of times, after one retrieval that is not measured."""
    context = cogment.Context(user_id="benchmarks", cog_settings=None)
    registry = await context.get_model_registry_v2(cogment.Endpoint(f"grpc://{address}"))
    seconds = []
    for index in range(count + 1):
        started = time.perf_counter()
        await registry.retrieve_model(model_id)
        if index:
            seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
