"""The way to another server, shared: who floods it stands behind nobody's back, and nobody behind all of the flood."""

from __future__ import annotations

from tests.e2e.stock_stand import pair

CODE = """
import asyncio
from bester.handlers import App

app = App(credit=2000)
come = []
last = asyncio.Event()

@app.handler("post")
async def post(message):
    if message.data == "all of it":
        return message.send_clients(["u"], message.data)
    if message.user is not None:
        return message.send_servers(["s2"], message.data)
    come.append(message.data)
    if message.data == "behind":
        last.set()
    await last.wait()  # until the one behind the flood is here
    return message.send_clients(["g"], {"before": come.index("behind")} if message.data == "behind" else message.data)
"""
FLOOD = 400


async def test_message_of_one_user_is_not_behind_all_that_another_sends_to_the_same_server() -> None:
    async with pair("post", "s2", "s1", code=CODE) as servers:
        await servers.servers["s1"].processes[0].says("server-reached")
        t, u, g = [await servers.seat(*place) for place in (("s1", "t"), ("s1", "u"), ("s2", "g"))]
        t.client.submit("post", "first", "first")
        for number in range(FLOOD):
            u.client.submit("post", number, str(number))
        u.client.submit("post", "all of it")
        while (await u.client.receive())["payload"].get("data") != "all of it":
            pass  # the flood is on its way by then
        t.client.submit("post", "behind", "behind")
        before = (await g.gets(lambda data: type(data) is dict))["before"]
        assert before < FLOOD * 3 / 4
        for number in range(FLOOD):  # the flood goes on, in its order
            assert await g.gets(lambda data: type(data) is int) == number
