"""A message to hundreds of users who are away: each of them gets it, in every kind of store, and others meanwhile."""

from __future__ import annotations

from contextlib import closing

import pytest

from bester.broker import accounts, accounts_postgres, users
from tests.live import LAYOUTS, LiveServer, RawClient, head, short_directory
from tests.stores import accounts_of

pytestmark = pytest.mark.stores
CROWD = [f"u{number}" for number in range(400)]
HANDLERS = """
from bester.handlers import App, Message
app = App()

@app.handler("tell")
def tell(message: Message) -> object:
    return message.send_clients(message.data["to"], message.data["text"])
"""


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_message_to_hundreds_who_are_away_reaches_each_behind_nothing_newer(
    layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = users.hashed("secret")  # once: to check a password takes long, and so does this
    for kind in (accounts, accounts_postgres):
        monkeypatch.setattr(kind, "hashed", lambda password: hashed)
    async with short_directory() as directory:
        (directory / "tell.py").write_text(HANDLERS)
        with closing(accounts_of(directory)) as known:
            for name in ("alice", *CROWD):
                known.add(name, "secret")
        server = await LiveServer.start(directory, head(), layout, ("tell:app",))
        try:
            alice = await RawClient.login(server, "alice")
            alice.submit("tell", {"to": CROWD, "text": "first"}, "1")
            alice.submit("tell", {"to": [CROWD[-1], "alice"], "text": "second"}, "2")
            for id_, recipients in (
                ("1", dict.fromkeys(CROWD, "queued")),
                ("2", {CROWD[-1]: "queued", "alice": "delivered"}),
            ):
                report, _ = await alice.until_report(id_)
                assert (report["header"]["status"], report["payload"]["recipients"]) == ("good", recipients)
            for user, texts in ((CROWD[200], ["first"]), (CROWD[-1], ["first", "second"])):
                away = await RawClient.login(server, user)
                assert [(await away.receive())["payload"]["data"] for _ in texts] == texts
                await away.close()
            await alice.close()
        finally:
            statuses = await server.stop()
        assert statuses == [0] * len(statuses)
