"""Asks a server's broker which steps messages took, over its fabric, as an operator does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bester.bridge.cli.demo.routes import Step
from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Answer, Ask, Malformed, Message
from bester.broker.wire.party import Party

ASK_S = 10.0
"""How long a broker that has nothing else to do may take to answer."""


async def steps_at(config: Config, roots: Sequence[str]) -> list[list[Step]]:
    """Return the steps that a broker remembers of each message. Raises BesterError where it does not answer."""
    found: dict[int, list[Step]] = {}
    complete = asyncio.Event()

    def ask() -> None:
        for number, root in enumerate(roots):
            link.send(Ask(number, "trace", root))

    def hear(messages: list[Message | Malformed]) -> None:
        for message in messages:
            if isinstance(message, Answer) and message.status == 0:
                found[message.token] = [Step(*(row[key] for key in Step._fields)) for row in message.value]
        if len(found) == len(roots):
            complete.set()

    party = Party("operator", "demo", {})
    link = FabricLink(config.fabric.connect[0], party, on_messages=hear, on_ready=ask, on_lost=lambda _: None)
    link.start()
    try:
        async with asyncio.timeout(ASK_S):
            await complete.wait()
    except TimeoutError:
        refusal = party.refusal.text if party.refusal else "no answer"
        raise BesterError("timeout", f"{config.server.name} does not tell its traces: {refusal}") from None
    finally:
        await link.close(1.0)
    return [found[number] for number in range(len(roots))]
