"""Questions to a server's broker for the trace of messages."""

from __future__ import annotations

from collections.abc import Sequence

from bester.broker.config import Config
from bester.cli.demo.routes import Step
from bester.cli.operate import ask_all


async def steps_at(config: Config, roots: Sequence[str]) -> list[list[Step]]:
    """Return the traced steps of each message at one broker. Raises BesterError where it does not answer."""
    answers = await ask_all(config, [("trace", root) for root in roots])
    return [[Step(*(row[key] for key in Step._fields)) for row in answer.value] for answer in answers]
