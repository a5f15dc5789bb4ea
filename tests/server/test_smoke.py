from tests.client import Client, next_version


async def test_publish_watch_retrieve(client: Client) -> None:
    await client.create_model("m", a="b")
    watch = client.watching("m")
    info = await client.publish("m", b"x" * 3_000_000)
    assert (await next_version(watch)).version_number == info.version_number == 1
    assert await client.data("m") == b"x" * 3_000_000
    info = await client.store("m", b"y" * 5_000_000)
    assert (await next_version(watch)).version_number == info.version_number == 2
    assert await client.data("m", 2) == b"y" * 5_000_000
    assert await client.data("m", -2) == b"x" * 3_000_000
    watch.cancel()
