"""`bester send`, `bester listen` and `bester outcome`, apart from their options.

Text of strangers is shown on a user's terminal: control characters are spelled out. Passwords and tracebacks are never
printed, and only a message that was shown is acknowledged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bester.broker.streams import plain
from bester.broker.wire import json_text
from bester.broker.wire.codes import CODES
from bester.broker.wire.outcomes import reason_of
from bester.client import Client, ClientError, Message, Report
from bester.client.following import Following, ends_badly
from bester.client.frames import NO_TERMS, Terms

DONE, FAILED, WRONG_USE = 0, 1, 2
"""Exit statuses."""
REPORT_S = 1.0
"""Seconds that a report may take once output has failed. A sender who is a recipient gets no report then: the report
waits until the sender's own copy was shown."""


class Echo(Protocol):
    """Prints one line, on standard error where `err` is true. An exception for standard output ends the command."""

    def __call__(self, message: str, /, *, err: bool = False) -> object: ...


def one_line(frame: bytes) -> str:
    """Return a frame as one line of JSON; a line break between tokens is white space."""
    return frame.replace(b"\r", b" ").replace(b"\n", b" ").decode(errors="backslashreplace")


def _shown(text: str | bytes) -> str:
    return plain(text if isinstance(text, str) else one_line(text))


def message_line(message: Message) -> str:
    """Return a message as one line for people: type, data, id, origin."""
    facts = [f"id {message.id}" if message.id else "", f"from {message.origin}" if message.origin else ""]
    facts.append("redelivered" if message.redelivered else "")
    details = ", ".join(filter(None, facts))
    later = message.outcome
    if later is not None:
        return outcome_line(later.message, later.recipient, later.outcome)
    return _shown(message.type) + " " + _shown(message.raw) + (f"  ({_shown(details)})" if details else "")


def outcome_line(message: str, recipient: str, outcome: str) -> str:
    """Return a later outcome of a message for one recipient as one line for people."""
    code = reason_of(outcome)
    meaning = f" ({CODES[code].meaning})" if code in CODES else ""
    return _shown(f"later: {_result(recipient, outcome)}{meaning}, message {message}")


def _result(recipient: str, outcome: str) -> str:
    """Return the outcome for a recipient in two words; an empty name, as a careless handler gives it, shows as ''."""
    return f"{recipient or repr(recipient)} {outcome}"


def report_line(report: Report) -> str:
    """Return a report as one line for people: good or bad, reason, recipients."""
    parts = ["good" if report.good else "bad"]
    if report.reason:
        meaning = CODES[report.reason].meaning if report.reason in CODES else ""
        meaning = report.note or meaning
        parts.append(f"{report.reason} ({meaning})" if meaning else report.reason)
    parts += [_result(name, outcome) for name, outcome in report.recipients.items()]
    if report.message:
        parts.append(f"message {report.message}")
    return _shown(f"{parts[0]}: {', '.join(parts[1:])}" if parts[1:] else parts[0])


class _Show:
    """Prints messages and reports: for people, or with `on_frame` as one line of JSON each."""

    def __init__(self, echo: Echo, on_frame: Callable[[str], None] | None) -> None:
        self._echo = echo
        self._on_frame = on_frame

    def value(self, value: Message | Report) -> None:
        if self._on_frame is not None:
            self._line(one_line(value.frame))
        else:
            self._line(message_line(value) if isinstance(value, Message) else report_line(value))

    def outcomes(self, message: str, recipients: dict[str, str]) -> None:
        if self._on_frame is not None:
            self._line(json.dumps({"message": message, "recipients": recipients}))
        else:
            for recipient, outcome in recipients.items():
                self._line(outcome_line(message, recipient, outcome))

    def _line(self, line: str) -> None:
        try:
            (self._on_frame or self._echo)(line)
        except Exception as error:
            raise _UnshownError from error

    async def messages(self, client: Client, following: Following) -> None:
        """Show messages as they arrive, and acknowledge each then."""
        async for message in client:
            if following.is_new(message):
                self.value(message)
            await client.ack(message)


class _UnshownError(Exception):
    """A line could not be written; the cause is the error of `echo`. `report`: a report that was not shown yet."""

    report: Report | None = None


def _failed(error: ClientError | ValueError, echo: Echo) -> int:
    """Show an error, and return the exit status: of a client that failed, or of an invalid value."""
    echo(_shown(str(error)), err=True)
    return FAILED if isinstance(error, ClientError) else WRONG_USE


async def _receive_unacked(client: Client) -> None:
    """Receive messages, so that they are not in the way of an answer, without an ack: the server keeps them."""
    async for _ in client:
        pass


async def send_once(
    address: str,
    user: str,
    password: str,
    type_: str,
    json_text_: bytes | str,
    *,
    ca: Path | None = None,
    terms: Terms = NO_TERMS,
    wait_s: float,
    timeout_s: float,
    on_frame: Callable[[str], None] | None = None,
    echo: Echo,
) -> int:
    """Send one message; show its report, and messages for the sender before it and within `wait_s` after it.

    Messages that were not shown stay with the server. With `terms.outcome`, later outcomes of queued recipients are
    shown until all are known. `on_frame` is called with each frame as one line of JSON, in place of lines for people.
    Returns 0 for a good report and good outcomes, 1 for a bad one or no report within `timeout_s`, 2 for an invalid
    address, type, JSON or terms. An error of `echo` or `on_frame` is raised at once, with the report, or its absence,
    as a note.
    """
    body = json_text_.encode(errors="surrogateescape") if isinstance(json_text_, str) else json_text_
    fault = json_text.fault(body)
    if fault is not None:
        hint = "quote strings twice, for the shell and for JSON: '\"hello\"'"
        if not isinstance(json_text_, str):  # no shell has seen it
            hint = 'write one JSON value there, as "hello" in quotes, in UTF-8'
        echo(f"the message is not JSON: {_shown(fault)}; {hint}", err=True)
        return WRONG_USE
    show = _Show(echo, on_frame)
    report: Report | None = None
    stage = "connection"
    try:
        terms.check()
        following = Following()
        client = Client(
            address, user=user, password=password, ca=ca, ack=True, manual_ack=True, on_link=following.on_link
        )
        async with asyncio.timeout(timeout_s) as deadline, client:
            stage = "report"
            showing = asyncio.create_task(show.messages(client, following))
            try:
                reporting = client.submit(type_, raw=body, dedup=terms.dedup, ttl_s=terms.ttl_s, outcome=terms.outcome)
                report = await _reported(reporting, showing)
                deadline.reschedule(None)
                show.value(report)
                if terms.outcome:
                    good = await following.until_settled(client, report, showing, show.outcomes)
                else:
                    good = report.good
                    await following.linger(showing, wait_s)
                _check_showing(showing)
            finally:
                showing.cancel()
                await asyncio.gather(showing, return_exceptions=True)
    except _UnshownError as unshown:
        cause = unshown.__cause__
        assert cause is not None
        report = report or unshown.report
        status = "its report had not come by then" if report is None else f"its report is {report_line(report)}"
        cause.add_note(f"the message was sent, and {status}")
        raise cause from None
    except (ClientError, ValueError) as error:
        return _failed(error, echo)
    except TimeoutError:
        doubt = "; the message may have been delivered or not" if stage == "report" else "; is it a Bester server?"
        echo(f"no {stage} with {address} within {timeout_s:g} s{doubt}", err=True)
        return FAILED
    return DONE if good else FAILED


async def _reported(reporting: asyncio.Future[Report], showing: asyncio.Task[None]) -> Report:
    """Wait for the report. Raises _UnshownError where `showing` has ended by one, with the report if it comes soon."""
    try:
        both: list[asyncio.Future[Any]] = [showing, reporting]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        try:
            _check_showing(showing)
        except _UnshownError as error:
            await asyncio.wait([reporting], timeout=REPORT_S)
            if reporting.done() and reporting.exception() is None:
                error.report = reporting.result()
            raise
        return await reporting
    finally:
        reporting.cancel()


def _check_showing(showing: asyncio.Task[None]) -> None:
    """Raise _UnshownError where `showing` has ended by one."""
    if showing.done() and not showing.cancelled() and isinstance(error := showing.exception(), _UnshownError):
        raise error


async def show_outcome(
    address: str, user: str, password: str, message: str, *, ca: Path | None = None, json_lines: bool, timeout_s: float,
    echo: Echo,
) -> int:  # fmt: skip
    """Show the outcomes of a message up to now, one recipient a line.

    Messages for the asker stay with the server. With `json_lines` the answer is one line of JSON. Returns 0 where the
    outcomes are known and none is a failure, 1 otherwise, 2 for an invalid address or message id.
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            Client(address, user=user, password=password, ca=ca, ack=True, manual_ack=True, give_up_s=0) as client,
        ):
            leaving = asyncio.create_task(_receive_unacked(client))
            try:
                recipients = await client.outcome(message)
            finally:
                leaving.cancel()
                await asyncio.gather(leaving, return_exceptions=True)
    except (ClientError, ValueError) as error:
        return _failed(error, echo)
    except TimeoutError:
        echo(f"no answer from {address} within {timeout_s:g} s; is it a Bester server?", err=True)
        return FAILED
    if recipients is None:
        echo(
            f"nothing is known of message {_shown(message)}: {_shown(user)} did not send it, or it was never queued, "
            "or the server has forgotten it",
            err=True,
        )
        return FAILED
    if json_lines:
        echo(json.dumps({"message": message, "recipients": recipients}))
    else:
        for name, outcome in recipients.items():
            echo(_shown(_result(name, outcome)))
    return FAILED if any(map(ends_badly, recipients.values())) else DONE


async def listen(
    address: str,
    user: str,
    password: str,
    *,
    ca: Path | None = None,
    json_lines: bool,
    echo: Echo,
    count: int | None = None,
    ack: bool = True,
) -> int:
    """Show messages as they arrive, reconnecting for ever, until cancelled or after `count` messages.

    With `json_lines` each is the received frame as one line of JSON. With `ack` a message counts as delivered once
    `echo` has returned, and the server keeps the others; without, once it has left the server. Returns 0, 1 where the
    server refuses or cannot be reached at first, 2 for an invalid address.
    """
    lost = False

    def on_link(connected: bool, why: str) -> None:
        nonlocal lost
        if connected:
            echo(f"listening at {address} as {_shown(user)}", err=True)
        elif not lost:  # only the first loss of a row is shown
            echo(f"{_shown(why)}; trying again", err=True)
        lost = not connected

    try:
        client = Client(address, user=user, password=password, ca=ca, ack=ack, on_link=on_link)
        async with client:
            shown = 0
            while count is None or shown < count:
                message = await client.receive()
                echo(one_line(message.frame) if json_lines else message_line(message))
                shown += 1
    except (ClientError, ValueError) as error:
        return _failed(error, echo)
    return DONE
