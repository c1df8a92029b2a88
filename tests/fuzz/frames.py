"""Fuzzes the readers of the native protocol: the splitter, and every reader of a frame, of either side."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import count
from random import Random
from typing import Any

from bester.bridge import native, native_reports, native_writing
from bester.bridge.broker_link import BrokerLink
from bester.bridge.frames import Splitter
from bester.bridge.informer import read_question
from bester.bridge.limits import Limits
from bester.bridge.senders import Sender
from bester.bridge.session import Session
from bester.bridge.steps import Step
from bester.bridge.submissions import Submissions
from bester.bridge.window import Window
from bester.broker.wire import json_text
from bester.broker.wire.codes import CODES
from bester.broker.wire.json_text import DEPTH_LIMIT
from bester.broker.wire.messages import MAX_DEDUP, MAX_TOKEN, MAX_TTL_S
from bester.client import frames as client
from tests.fuzz.odd import Odd
from tests.fuzz.odd_json import OddJson, frame, read_frames
from tests.fuzz.play import Told, must

LIMITS = Limits(max_frame=4000, first_frame=600, unreported=6, unreported_bytes=6000, questions=2, ahead_bytes=3000)
REPORTS = (
    '{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"1"}}',
    '{"header":{"messageType":"statusReport","status":"bad"},"payload":{"id":"1","reason":"overloaded","note":"n"}}',
    '{"header":{"messageType":"statusReport","status":"bad"},"payload":{"reason":"x","recipients":{"a":"failed:x"}}}',
    '{"header":{"messageType":"receivedMessage","id":"i","origin":"s"},"payload":{"data":1,"type":"t"}}',
    '{"header":{"status":"0"},"payload":{"data":null,"id":"1","type":"dummy"}}',
    '{"command":{"type":"isClient","data":"eve"}}',
)
"""Frames that servers send to clients and to each other, and handlers to the informer."""


def play(steps: Sequence[int], told: Told) -> int:
    """Read the frames that each step draws. Returns the number of frames."""
    chance = Random()
    odd = Odd(chance)
    json_ = OddJson(odd)
    tried = 0
    for step in steps:
        chance.seed(step)
        if odd.one_in(4):
            tried += _stream(json_, told)
            continue
        body = json_.first() if odd.one_in(3) else json_.later()
        if odd.one_in(3):
            body = odd.spoiled(odd.pick(REPORTS).encode())
        told(f"read {body[:300]!r}")
        tried += 1
        check_body(body)
    return tried


# --- one frame ---


def check_body(body: bytes) -> None:
    """Check that every reader takes every body: each returns a value for any bytes."""
    later = native.later(body)
    if isinstance(later, native.Sent):
        _check_sent(later, body)
    else:
        _check_fault(later)
    first = native.first(body)
    if isinstance(first, native.Server):
        _check_sent(first.sent, body)
        _check_claims(first.claims)
    elif isinstance(first, native.Client):
        must(bool(first.user and first.password), "who logs in has a name and a password")
        (first.user + first.password).encode()
    else:
        _check_fault(first)
        must(first.fatal, "who cannot be told ends the connection")
    question = read_question(body)
    must(question is None or question.question is None or type(question.question) is str, "a question is a name")
    became = native_reports.outcome(body)
    if became is not None:
        word, meta = became
        must(word in ("delivered", "queued", "sent") or word.removeprefix("failed:") in CODES, f"no outcome: {word}")
        must(len(repr(meta)) < 2000, "what is passed on of a report is short")
    client.parse(body)
    client.max_frame(body)


def _check_sent(sent: native.Sent, body: bytes) -> None:
    frame = _last_object(body)
    payload = frame.get("payload")
    must(type(payload) is dict, "a message is in a payload")
    must(sent.type == payload["type"], "its type is the one that was said")
    must(json_text.fault(sent.data) is None, f"its data is JSON, {DEPTH_LIMIT} deep at most")
    must(sent.data in body, "and stands as it stood")
    must(repr(_loads(sent.data)) == repr(payload["data"]), "and is all of it")
    must(_loads(sent.id) == payload.get("id"), "its id is the one that was said")
    must(type(_loads(sent.id)) in (str, type(None)), "and is a string, or none")
    for key, value in sent.meta.items():
        must(key in ("dedup", "ttl_s", "outcome", "resent"), f"{key} is nothing a client may say")
        must(key != "dedup" or 0 < len(value) <= MAX_DEDUP, "a key is short")
        must(key != "ttl_s" or 0 < value <= MAX_TTL_S, "a time to live is a time")
        must(key not in ("outcome", "resent") or value is True, "what is false is not said")


def _check_claims(claims: Any) -> None:
    for key, value in claims.items():
        must(type(key) is str, "claims have names")
        if key == "lane":
            name, number, floor = value
            must(type(name) is str and 0 <= number <= MAX_TOKEN and 0 <= floor <= MAX_TOKEN, "a lane is a place")


def _check_fault(fault: native.Fault) -> None:
    must(fault.reason in CODES, f"a code of the table, not {fault.reason!r}")
    must(type(_loads(fault.id)) in (str, type(None)), "a fault is reported under a string, or null")
    (report,) = read_frames(native_writing.report(fault.id, 1, fault.reason))
    must(report["header"]["status"] == "bad", "and the report can be read")


def _loads(text: bytes) -> Any:
    return json.loads(text, parse_int=str, parse_float=str)


def _last_object(body: bytes) -> Any:
    """Return the value that Python's own reader gives for a body; of a repeated key, the last counts."""
    object_ = _loads(body)
    must(type(object_) is dict, "a frame is an object")
    must(not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]", body), "and has no control characters")
    return object_


# --- streams ---


def _session() -> Session:
    submissions = Submissions(LIMITS, BrokerLink(LIMITS, count(1), lambda text: None), lambda: None)
    return Session(
        1, "10.0.0.7", LIMITS, count(1), Window(LIMITS, submissions, Sender(("user", "alice"))), 0.0, LIMITS.first_frame
    )


def _stream(json_: OddJson, told: Told) -> int:
    """Check that a stream gives the same result however the stream is split."""
    odd = json_.odd
    data = json_.stream(first=not odd.one_in(8))
    if odd.one_in(10):
        data = odd.chance.randbytes(odd.chance.randrange(200))
    pieces = json_.pieces(data)
    told(f"a stream {data[:300]!r} in {len(pieces)} pieces")
    return check_stream(data, pieces)


def check_stream(data: bytes, pieces: list[bytes]) -> int:
    """Check that `data` gives the same in one piece and in `pieces`. Returns the number of frames."""
    whole, split = Splitter(LIMITS.max_frame, LIMITS.first_frame), Splitter(LIMITS.max_frame, LIMITS.first_frame)
    bodies = [body for piece in pieces for body in split.feed(piece)]
    must(whole.feed(data) == bodies, "a splitter cuts the same however a stream is split")
    must(whole.refused == split.refused, "and refuses the same")
    must(split.waiting_bytes <= 4 + LIMITS.max_frame, "and holds no more than a frame")
    if split.refused is None:
        taken = b"".join(frame(body) for body in bodies)
        must(data.startswith(taken), "what is cut is what came")
        must(split.waiting_bytes == len(data) - len(taken), "and nothing is lost")
    must(_session_output([data]) == _session_output(pieces), "a session does the same however its stream is split")
    return len(bodies)


def _session_output(pieces: list[bytes]) -> tuple[bytes, list[Any], str]:
    """Return the bytes that a session writes and the messages it sends for a stream; its login is accepted at the
    end."""
    session = _session()
    written, sent = b"", []
    steps: list[Step] = [session.on_bytes(piece, 0.0) for piece in pieces]
    steps.append(session.on_login_answer(0, None, 0.0))
    for step in steps:
        written += b"".join(step.write)
        sent += step.send
    read_frames(written)
    return written, sent, session.state.value
