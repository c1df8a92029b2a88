"""What `bester send` and `bester listen` do, apart from reading their options.

They show what strangers wrote on somebody's terminal: nothing that a terminal
would obey passes through. They must never print a password, nor a traceback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from bester.bridge.client import Client, ClientError, Message, Report
from bester.broker.wire import json_text
from bester.broker.wire.codes import CODES

DONE, FAILED, WRONG_USE = 0, 1, 2
"""Exit statuses."""


class Echo(Protocol):
    """Prints one line, to standard error where `err` is true; `click.echo` is one."""

    def __call__(self, message: str, /, *, err: bool = False) -> object: ...


def one_line(frame: bytes) -> str:
    """Return a frame as one line of JSON; between tokens a line break is but white space."""
    return frame.replace(b"\r", b" ").replace(b"\n", b" ").decode(errors="backslashreplace")


def _shown(text: str | bytes) -> str:
    text = text if isinstance(text, str) else one_line(text)
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def message_line(message: Message) -> str:
    """Describe a message in one line for people: type, data, and what else is known of it."""
    known = [f"id {message.id}" if message.id else "", f"from {message.origin}" if message.origin else ""]
    known.append("perhaps a repeat" if message.redelivered else "")
    details = ", ".join(filter(None, known))
    return _shown(message.type) + " " + _shown(message.raw) + (f"  ({_shown(details)})" if details else "")


def report_line(report: Report) -> str:
    """Describe a report in one line for people: good or bad, why, and who got it."""
    parts = ["good" if report.good else "bad"]
    if report.reason:
        meaning = CODES[report.reason].meaning if report.reason in CODES else ""
        parts.append(f"{report.reason} ({meaning})" if meaning else report.reason)
    parts += [f"{name} {outcome}" for name, outcome in report.recipients.items()]
    if report.message:
        parts.append(f"message {report.message}")
    return _shown(f"{parts[0]}: {', '.join(parts[1:])}" if parts[1:] else parts[0])


async def send_once(
    address: str,
    user: str,
    password: str,
    type_: str,
    json_text_: str,
    *,
    wait_s: float,
    timeout_s: float,
    on_frame: Callable[[str], None] | None = None,
    echo: Echo,
) -> int:
    """Send one message; show its report, what came for the sender before it, and within `wait_s` after it.

    With `on_frame` each frame goes there as one line of JSON, in place of what is for people. Returns 0 for a good
    report, 1 for a bad one or none within `timeout_s`, 2 where address, type or JSON cannot be.
    """
    fault = json_text.fault(json_text_.encode(errors="surrogateescape"))
    if fault is not None:
        hint = "quote strings twice, for the shell and for JSON: '\"hello\"'"
        echo(f"the message is not JSON: {_shown(fault)}; {hint}", err=True)
        return WRONG_USE

    def show(value: Message | Report) -> None:
        if on_frame is not None:
            on_frame(one_line(value.frame))
        else:
            echo(message_line(value) if isinstance(value, Message) else report_line(value))

    stage = "connection"
    try:
        client = Client(address, user=user, password=password, give_up_s=0)
        async with asyncio.timeout(timeout_s) as deadline, client:
            stage = "report"
            showing = asyncio.create_task(_show_messages(client, show))
            try:
                report = await client.submit(type_, raw=json_text_)
                deadline.reschedule(None)
                show(report)
                await asyncio.wait([showing], timeout=wait_s)
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
    except ClientError as error:
        echo(_shown(str(error)), err=True)
        return FAILED
    except ValueError as error:
        echo(_shown(str(error)), err=True)
        return WRONG_USE
    except TimeoutError:
        doubt = "; the message may have been delivered or not" if stage == "report" else "; is it a Bester server?"
        echo(f"no {stage} with {address} within {timeout_s:g} s{doubt}", err=True)
        return FAILED
    return DONE if report.good else FAILED


async def _show_messages(client: Client, show: Callable[[Message], None]) -> None:
    async for message in client:
        show(message)


async def listen(
    address: str,
    user: str,
    password: str,
    *,
    json_lines: bool,
    echo: Echo,
    count: int | None = None,
) -> int:
    """Show what arrives, reconnecting for ever, until cancelled or after `count` messages.

    With `json_lines` each is the frame it came in, as one line of JSON. Returns 0, 1 where the server would not have
    us or cannot be reached at first, 2 where the address cannot be.
    """

    def tell(connected: bool, why: str) -> None:
        echo(f"listening at {address} as {_shown(user)}" if connected else f"{_shown(why)}; trying again", err=True)

    try:
        client = Client(address, user=user, password=password, on_link=tell)
        async with client:
            shown = 0
            while count is None or shown < count:
                message = await client.receive()
                echo(one_line(message.frame) if json_lines else message_line(message))
                shown += 1
    except ClientError as error:
        echo(_shown(str(error)), err=True)
        return FAILED
    except ValueError as error:
        echo(_shown(str(error)), err=True)
        return WRONG_USE
    return DONE
