# mypy: ignore-errors
# (The stock client has no types, and is installed only in its own environment.)
"""A session of the stock client with a registry: what a trainer and its actors do, in successive scenarios.

Run as a program, by a Python 3.10 that has `cogment`, with the registry's address as its argument; for TLS, the files
of the authority to trust, of the client's key and of its certificate follow. It prints one JSON object: the results of
each scenario, by its name, or the traceback of its failure as `error`. It checks nothing.
"""

import asyncio
import json
import logging
import random
import sys
import time
import traceback
from contextlib import aclosing

import cogment
import grpc.aio
from cogment.errors import CogmentError

SCENARIO_SECONDS = 15


def described(info):
    """Return the fields of an iteration's info; None if there is none."""
    return info and {
        "name": info.model_name,
        "iteration": info.iteration,
        "timestamp": info.timestamp,
        "hash": info.hash,
        "size": info.size,
        "stored": info.stored,
        "properties": dict(info.properties),
    }


async def error_of(call):
    """Return the error that the stock client raises."""
    try:
        result = await call
    except CogmentError as error:
        return f"CogmentError: {error}"
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return f"no error, but {result!r}"


async def list_models(registry):
    created = []
    listings = {}
    for count in (0, 9, 10, 11, 20, 21):
        while len(created) < count:
            created.append(f"listed-{len(created):02}")
            await registry.update_model_info(created[-1], {"place": str(len(created))})
        models = await registry.list_models()
        listings[count] = [[model.name, dict(model.properties)] for model in models]
    for name in created:
        await registry.remove_model(name)
    return {"listings": listings, "left": len(await registry.list_models())}


async def list_iterations(registry):
    await registry.publish_model("m", None)  # only the model
    sent = 0
    listings = {}
    for count in (0, 9, 10, 11, 20, 21):
        while sent < count:
            sent += 1
            await (registry.publish_model if sent % 5 else registry.store_model)("m", b"iteration %d" % sent)
        iterations = await registry.list_iterations("m")
        listings[count] = [[info.iteration, info.size, info.stored] for info in iterations]
    return {"listings": listings, "unknown": await error_of(registry.list_iterations("unknown"))}


async def publish_and_store(registry):
    before = await registry.get_model_info("m")
    began_ns = time.time_ns()
    published = await registry.publish_model("m", b"published", {"episodes": "10", "note": ""})
    model = await registry.get_model_info("m")
    stored = await registry.store_model("m", b"stored")
    stored_first = await registry.store_model("n", b"stored", {"first": "yes"})
    return {
        "began_ns": began_ns,
        "ended_ns": time.time_ns(),
        "before": before,
        "created": [model.name, dict(model.properties)],
        "published": described(published),
        "stored": described(stored),
        "stored first": described(stored_first),
        "not a name": await error_of(registry.publish_model("not/a/name", b"data")),
        "models": [model.name for model in await registry.list_models()],
    }


async def iteration_info(registry):
    await registry.publish_model("m", b"one")
    await registry.store_model("m", b"two", {"a": "b"})
    iterations = (1, 2, -1, -2, 0, 3, -3, 2**31 - 1, -(2**31))
    infos = {number: described(await registry.get_iteration_info("m", number)) for number in iterations}
    return {"infos": infos, "unknown": await error_of(registry.get_iteration_info("unknown", 1))}


async def retrieve(registry):
    await registry.publish_model("m", b"one")
    await registry.store_model("m", b"two")
    models = {}
    for number in (1, 2, -1, -2, 0, 3, -3):
        model = await registry.retrieve_model("m", number)
        models[number] = model and model.decode()
    latest = await registry.retrieve_model("m")
    return {"models": models, "latest": latest.decode(), "unknown": await error_of(registry.retrieve_model("unknown"))}


async def model_info(registry):
    seen = [await registry.get_model_info("m")]
    for properties in ({"type": "policy", "empty": ""}, {"owner": "été"}, {}):
        await registry.update_model_info("m", properties)
        seen.append(dict((await registry.get_model_info("m")).properties))
    await registry.update_model_info("m", {"type": "policy"})
    await registry.publish_model("m", b"data")
    return {"seen": seen, "after publish": dict((await registry.get_model_info("m")).properties)}


def deserialized(data):
    return json.loads(data)


async def track(registry):
    await registry.publish_model("m", None)
    latest = await registry.track_latest_model("m", deserialized)
    available_before = latest.is_available()
    followed = []
    for number in range(1, 6):
        await (registry.publish_model if number % 2 else registry.store_model)("m", b'{"weights": %d}' % number)
        await latest.wait_for_newer(number - 1)
        model, info = await latest.get()
        followed.append([model["weights"], info.iteration])
    for number in range(6, 21):
        await registry.publish_model("m", b'{"weights": %d}' % number)
    await latest.wait_for_newer(19)
    model, info = await latest.get()
    return {
        "available before": available_before,
        "followed": followed,
        "after many": [model["weights"], info.iteration],
        "unknown": await error_of(registry.track_latest_model("unknown")),
    }


async def iteration_updates(registry):
    sent = [await registry.publish_model("m", b"one"), await registry.publish_model("m", b"two", {"a": "b"})]
    async with aclosing(registry.iteration_updates("m")) as updates:
        received = [await anext(updates)]
        for send in (registry.publish_model, registry.store_model, registry.publish_model):
            sent.append(await send("m", b"more"))
            received.append(await anext(updates))
        await registry.remove_model("m")
        removed = await error_of(anext(updates))
    async with aclosing(registry.iteration_updates("unknown")) as updates:
        unknown = await error_of(anext(updates))
    return {
        "sent": [described(info) for info in sent],
        "received": [described(info) for info in received],
        "removed": removed,
        "unknown": unknown,
    }


async def large_models(registry):
    results = {}
    for size in (1, 2**21 - 1, 2**21, 2**21 + 1, 10_000_000):
        model = random.Random(size).randbytes(size)
        for send in (registry.publish_model, registry.store_model):
            info = await send("m", model)
            retrieved = await registry.retrieve_model("m", info.iteration)
            results[f"{send.__name__} {size}"] = {"reported size": info.size, "same": retrieved == model}
    return results


async def remove(registry):
    await registry.publish_model("m", b"one")
    await registry.store_model("m", b"two")
    await registry.store_model("m-v000001", b"a neighbour")
    await registry.remove_model("m")
    return {
        "models": [model.name for model in await registry.list_models()],
        "info": await registry.get_model_info("m"),
        "iterations": await error_of(registry.list_iterations("m")),
        "data": await error_of(registry.retrieve_model("m", 2)),
        "again": await error_of(registry.remove_model("m")),
        "recreated": (await registry.publish_model("m", b"three")).iteration,
        "recreated listed": [info.iteration for info in await registry.list_iterations("m")],
    }


async def earlier_client(context, endpoint):
    """Use the client that `get_model_registry_v2` replaced, which programs still use."""
    registry = await context.get_model_registry(endpoint)
    model = cogment.Model("m", b"initial", user_data={"type": "policy"}, version_user_data={"step": 1})
    infos = [await registry.store_initial_version(model)]
    model.serialized_model = b""
    infos.append(await registry.store_version(model, archived=True))
    retrieved = [await registry.retrieve_version("m", number) for number in (1, -1)]
    return {
        "infos": [[info.version_number, info.archived, info.data_size] for info in infos],
        "retrieved": [
            [model.serialized_model.decode(), dict(model.user_data), dict(model.version_user_data)]
            for model in retrieved
        ],
        "missing": await registry.retrieve_version("m", 3),
        "unknown": await registry.retrieve_version("unknown"),
    }


SCENARIOS = (
    list_models,
    list_iterations,
    publish_and_store,
    iteration_info,
    retrieve,
    model_info,
    track,
    iteration_updates,
    large_models,
    remove,
)


async def session(address, ca=None, key=None, certificate=None):
    """Return the results of each scenario; each begins with a registry without models."""
    context = cogment.Context(user_id="tests", cog_settings=None)
    endpoint = cogment.Endpoint(f"grpc://{address}", use_ssl=ca is not None)
    endpoint.set_from_files(key, ca, certificate)
    registry = await context.get_model_registry_v2(endpoint)

    async def run(scenario):
        try:
            return await asyncio.wait_for(scenario, SCENARIO_SECONDS)
        except Exception:
            return {"error": traceback.format_exc()}
        finally:
            for model in await registry.list_models():
                await registry.remove_model(model.name)

    report = {scenario.__name__: await run(scenario(registry)) for scenario in SCENARIOS}
    return {**report, "earlier_client": await run(earlier_client(context, endpoint))}


if __name__ == "__main__":
    logging.basicConfig(level="WARNING")
    json.dump(asyncio.run(session(*sys.argv[1:])), sys.stdout)
