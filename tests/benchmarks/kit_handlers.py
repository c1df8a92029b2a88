"""Echo handlers whose cost is compared: a hand-written loop over the wire codec, and apps with and without a contract.

`kit_handlers.py ENDPOINT` is the loop: it receives, answers and sends, and knows nothing else.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import zmq

from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import Command, Hello, Message, Reply, Request
from bester.handlers import App
from bester.handlers import Message as Received

CREDIT = 256
"""As the kit's."""


def loop(endpoint: str) -> None:
    """Serve the type echo until the process is ended."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    socket.send_multipart(encode([Hello(1, "handler", "loop", {"types": ["echo"], "credit": CREDIT})]))
    while True:
        replies: list[Message] = [
            Reply(each.token, 0, [Command("sendClients", [each.user or ""], each.body)])
            for each in decode(socket.recv_multipart())
            if type(each) is Request
        ]
        if replies:
            socket.send_multipart(encode(replies))


@dataclass
class Numbered:
    """Body of a message of the load generator."""

    n: str
    text: str


def _typed(*, contract: bool) -> App:
    app = App()

    @app.handler("echo", inline=True, contract=contract)
    def echo(message: Received, data: Numbered) -> Command:
        """Return the sender's own data."""
        return message.reply(raw=message.raw)

    return app


on, off = _typed(contract=True), _typed(contract=False)

if __name__ == "__main__":
    loop(sys.argv[1])
