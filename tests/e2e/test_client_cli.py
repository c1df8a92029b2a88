"""Output and exit status of `bester send`, `bester listen` and `bester outcome`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from bester.cli.messaging import listen, send_once, show_outcome
from bester.client.frames import Terms
from bester.client.window import DEFAULTS
from tests.e2e.fake_native_server import FakeServer, Json, Peer, free_port, message_frame, outcome_frame, within


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


class Terminal:
    """Records printed lines."""

    def __init__(self) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.printed = asyncio.Event()

    def echo(self, message: str, /, *, err: bool = False) -> None:
        assert "\n" not in message
        assert "secret" not in message
        (self.err if err else self.out).append(message)
        self.printed.set()

    async def shows(self, line: str) -> None:
        """Wait until a line is printed."""
        while line not in self.out:
            self.printed.clear()
            await within(self.printed.wait())


async def send(
    address: str,
    terminal: Terminal,
    text: bytes | str = '{"text":"hello"}',
    type_: str = "chat",
    *,
    wrong: bool = False,
) -> int:
    sending = send_once(
        address, "bob", "wrong" if wrong else "secret", type_, text, wait_s=0, timeout_s=5, echo=terminal.echo
    )
    status = await within(sending)
    assert isinstance(status, int)
    return status


class TestSend:
    async def test_messages_before_the_report_are_shown_first(self, server: FakeServer) -> None:
        def to_oneself(peer: Peer, payload: Json) -> None:
            peer.send(message_frame(payload["data"], "7.0", origin="s1"))
            peer.report(payload["id"], message="m7")

        server.on_message = to_oneself
        terminal = Terminal()
        assert await send(server.address, terminal) == 0
        assert terminal.out == ['chat {"text": "hello"}  (id 7.0, from s1)', "good: message m7"]
        assert terminal.err == []

    async def test_messages_within_wait_are_shown(self, server: FakeServer) -> None:
        def late(peer: Peer, payload: Json) -> None:
            peer.report(payload["id"])
            asyncio.get_running_loop().call_soon(peer.send, message_frame("late"))

        server.on_message = late
        terminal = Terminal()
        sending = asyncio.create_task(
            send_once(server.address, "bob", "secret", "chat", "1", wait_s=60, timeout_s=5, echo=terminal.echo)
        )
        await terminal.shows('chat "late"')
        (await server.peer()).transport.close()
        assert await within(sending) == 0, "a server that leaves cuts the waiting short"

    async def test_only_shown_messages_are_acked(self, server: FakeServer) -> None:
        def some(peer: Peer, payload: Json) -> None:
            peer.send(message_frame("before", "0.0"))
            peer.report(payload["id"])
            asyncio.get_running_loop().call_soon(peer.send, message_frame("behind", "1.0"))

        server.on_message = some
        terminal = Terminal()
        assert await send(server.address, terminal) == 0
        assert {'chat "before"  (id 0.0)', "good"} <= set(terminal.out)
        peer = await server.peer()
        assert peer.login is not None
        assert peer.login["header"]["ack"] is True
        await within(peer.gone.wait())
        acked: list[str] = []
        while not peer.acks.empty():
            acked += peer.acks.get_nowait()
        assert acked == [f"{number}.0" for number in range(len(terminal.out) - 1)]

    async def test_message_with_a_failed_write_is_not_acked(self, server: FakeServer) -> None:
        def some(peer: Peer, payload: Json) -> None:
            peer.send(message_frame(1, "1.0"), message_frame(2, "2.0"))
            peer.report(payload["id"])

        server.on_message = some
        lines: list[str] = []

        def cut(line: str) -> None:
            if lines:
                raise BrokenPipeError
            lines.append(line)

        with pytest.raises(BrokenPipeError):
            await within(
                send_once(
                    server.address, "bob", "secret", "chat", "1", wait_s=0, timeout_s=5, on_frame=cut,
                    echo=Terminal().echo,
                )
            )  # fmt: skip
        peer = await server.peer()
        assert await peer.acknowledged() == ["1.0"]
        await within(peer.gone.wait())
        assert peer.acks.empty()

    @pytest.mark.parametrize(("recipient", "shown"), [("g", "g"), ("", "''")])
    async def test_bad_report(self, server: FakeServer, recipient: str, shown: str) -> None:
        server.on_message = lambda peer, payload: peer.report(
            payload["id"], "bad", reason="not-connected", recipients={recipient: "failed:not-connected"}
        )
        terminal = Terminal()
        assert await send(server.address, terminal) == 1
        meaning = "the user has no connection to the server"
        assert terminal.out == [f"bad: not-connected ({meaning}), {shown} failed:not-connected"]

    @pytest.mark.parametrize(
        ("reason", "note", "line"),
        [
            ("refused", "too many", "bad: refused (too many)"),
            ("schema", "data.to[1]: expected a string", "bad: schema (data.to[1]: expected a string)"),
            ("refused", None, "bad: refused (the handler refused the message)"),
            ("refused", "\x1b[2Jno\n", "bad: refused (\\u001b[2Jno\\n)"),
            ("made-up", "who knows", "bad: made-up (who knows)"),
        ],
    )
    async def test_refusal_shows_the_note(self, server: FakeServer, reason: str, note: str | None, line: str) -> None:
        server.on_message = lambda peer, payload: peer.report(payload["id"], "bad", reason=reason, note=note)
        terminal = Terminal()
        assert await send(server.address, terminal) == 1
        assert terminal.out == [line]

    async def test_json_prints_one_frame_a_line(self, server: FakeServer) -> None:
        def with_breaks(peer: Peer, payload: Json) -> None:
            peer.send_body(b'{"header":null,\r\n"payload":{"data":[1,\n0.10],"type":"chat"}}')
            peer.report(payload["id"])

        server.on_message = with_breaks
        lines: list[str] = []
        terminal = Terminal()
        status = await within(
            send_once(
                server.address,
                "bob",
                "secret",
                "chat",
                "1",
                wait_s=0,
                timeout_s=5,
                on_frame=lines.append,
                echo=terminal.echo,
            )
        )
        assert status == 0
        assert [line.count("\n") + line.count("\r") for line in lines] == [0, 0]
        assert "0.10" in lines[0]
        assert json.loads(lines[1])["header"]["status"] == "good"
        assert terminal.out == []

    async def test_control_characters_are_escaped(self, server: FakeServer) -> None:
        def hostile(peer: Peer, payload: Json) -> None:
            peer.send_body('{"header":null,"payload":{"data":"\x9b2J\u202e","type":"\\u001b[31m"}}'.encode())
            peer.report(payload["id"], "bad", reason="\x1b[2J\n")

        server.on_message = hostile
        terminal = Terminal()
        assert await send(server.address, terminal) == 1
        assert terminal.out == ['\\u001b[31m "\\u009b2J\\u202e"', "bad: \\u001b[2J\\n"]

    async def test_wrong_use(self, server: FakeServer) -> None:
        for address, text, type_, what in (
            (f"unix:{'x' * 200}", "1", "chat", "a Unix socket's path has 107 bytes at most; name a shorter one"),
            (server.address, "hello", "chat", "for the shell and for JSON"),
            (server.address, "\udcff", "chat", "not UTF-8; quote strings twice"),
            (server.address, b"hello", "chat", "write one JSON value there"),
            (server.address, "1", "builtin", "not a type"),
            ("nowhere", "1", "chat", "HOST:PORT"),
        ):
            terminal = Terminal()
            assert await send(address, terminal, text, type_) == 2
            assert len(terminal.err) == 1
            assert what in terminal.err[0]

    async def test_failure_is_one_line(self, server: FakeServer) -> None:
        terminal = Terminal()
        assert await send(f"127.0.0.1:{free_port()}", terminal) == 1
        assert await send(server.address, terminal, wrong=True) == 1
        server.on_message = lambda peer, payload: peer.transport.abort()
        assert await send(server.address, terminal) == 1
        connect, password, lost = terminal.err
        assert "connection refused" in connect
        assert "does not accept user 'bob'" in password
        assert "may have been delivered or not" in lost
        assert terminal.out == []

    async def test_port_of_a_web_server_is_named_as_such(self) -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await writer.drain()
            writer.close()

        terminal = Terminal()
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as web:
            host, port = web.sockets[0].getsockname()
            assert await send(f"{host}:{port}", terminal) == 1
        (line,) = terminal.err
        assert line == f"cannot connect to {host}:{port}: HTTP is spoken there: name the port of a native listener"

    @pytest.mark.parametrize(("stage", "doubt"), [("on_login", "no connection"), ("on_message", "no report")])
    async def test_silent_server_is_one_line(self, server: FakeServer, stage: str, doubt: str) -> None:
        setattr(server, stage, lambda peer, payload: None)
        terminal = Terminal()
        status = await within(
            send_once(server.address, "bob", "secret", "chat", "1", wait_s=0, timeout_s=0.1, echo=terminal.echo)
        )
        assert status == 1
        assert doubt in terminal.err[0]


class TestLaterOutcomes:
    """`bester send --outcome` and `bester outcome`."""

    @staticmethod
    def sending(
        server: FakeServer, terminal: Terminal, on_frame: Callable[[str], None] | None = None
    ) -> asyncio.Task[int]:
        def queue(peer: Peer, payload: Json) -> None:
            assert payload["outcome"] is True
            peer.report(payload["id"], message="m7", recipients={"bob": "queued", "eve": "queued", "g": "delivered"})

        server.on_message = queue
        return asyncio.create_task(
            send_once(
                server.address,
                "bob",
                "secret",
                "chat",
                "1",
                terms=Terms(outcome=True),
                wait_s=0,
                timeout_s=5,
                on_frame=on_frame,
                echo=terminal.echo,
            )
        )

    async def test_send_waits_until_every_outcome_is_known(self, server: FakeServer) -> None:
        terminal = Terminal()
        sending = self.sending(server, terminal)
        peer = await server.peer()
        await terminal.shows("good: bob queued, eve queued, g delivered, message m7")
        peer.send(outcome_frame("m7", "bob", "delivered"), outcome_frame("m7", "bob", "delivered"))
        peer.send(outcome_frame("another", "eve", "delivered"), message_frame("chatter"))
        await terminal.shows('chat "chatter"')
        assert not sending.done()
        peer.send(outcome_frame("m7", "eve", "delivered"))
        assert await within(sending) == 0
        assert terminal.out[1:] == [
            "later: bob delivered, message m7",
            "later: eve delivered, message another",
            'chat "chatter"',
            "later: eve delivered, message m7",
        ]

    async def test_failed_outcome_is_status_1(self, server: FakeServer) -> None:
        terminal = Terminal()
        sending = self.sending(server, terminal)
        peer = await server.peer()
        peer.send(outcome_frame("m7", "bob", "failed:expired"), outcome_frame("m7", "eve", "delivered"))
        assert await within(sending) == 1
        assert "later: bob failed:expired (not delivered within its time to live), message m7" in terminal.out

    async def test_outcomes_missed_while_disconnected_are_asked_for(self, server: FakeServer) -> None:
        terminal = Terminal()
        asked: asyncio.Queue[str] = asyncio.Queue()

        def tell(peer: Peer, id_: str, message: str) -> None:
            asked.put_nowait(message)
            peer.answer(id_, {"message": message, "recipients": {"bob": "delivered", "eve": "queued"}})

        server.on_outcome = tell
        sending = self.sending(server, terminal)
        await terminal.shows("good: bob queued, eve queued, g delivered, message m7")
        (await server.peer()).transport.abort()
        second = await server.peer()
        assert await within(asked.get()) == "m7"
        await terminal.shows("later: bob delivered, message m7")
        second.send(outcome_frame("m7", "bob", "delivered"), outcome_frame("m7", "eve", "delivered"))
        assert await within(sending) == 0
        assert terminal.out[1:] == ["later: bob delivered, message m7", "later: eve delivered, message m7"]

    async def test_server_without_the_outcome(self, server: FakeServer) -> None:
        terminal = Terminal()
        sending = self.sending(server, terminal)
        await terminal.shows("good: bob queued, eve queued, g delivered, message m7")
        (await server.peer()).transport.abort()
        assert await within(sending) == 1
        assert "knows nothing of message m7" in terminal.err[0]

    async def test_server_that_refuses_the_next_login(self, server: FakeServer) -> None:
        terminal = Terminal()
        sending = self.sending(server, terminal)
        await terminal.shows("good: bob queued, eve queued, g delivered, message m7")
        server.on_login = lambda peer, _: peer.report("auth_special", "bad", reason="authentication-failed")
        (await server.peer()).transport.abort()
        assert await within(sending) == 1
        assert "password" in terminal.err[0]

    async def test_send_with_nothing_queued_does_not_wait(self, server: FakeServer) -> None:
        terminal = Terminal()
        sending = self.sending(server, terminal)
        server.on_message = lambda peer, payload: peer.report(payload["id"], message="m7")
        assert await within(sending) == 0

    async def test_json_prints_one_frame_a_line(self, server: FakeServer) -> None:
        lines: list[str] = []
        sending = self.sending(server, Terminal(), lines.append)
        pushed = [outcome_frame("m7", name, "delivered") for name in ("bob", "eve")]
        (await server.peer()).send(*pushed)
        assert await within(sending) == 0
        assert [line for line in map(json.loads, lines) if line in pushed] == pushed

    @pytest.mark.parametrize("wrong", [Terms(ttl_s=-1), Terms(dedup="x" * 65)])
    async def test_invalid_terms_are_wrong_use_without_a_server(self, wrong: Terms) -> None:
        terminal = Terminal()
        nowhere = f"127.0.0.1:{free_port()}"
        sending = send_once(
            nowhere, "bob", "secret", "chat", "1", terms=wrong, wait_s=0, timeout_s=5, echo=terminal.echo
        )
        assert await within(sending) == 2
        assert len(terminal.err) == 1

    async def asked(self, server: FakeServer, message: str, *, json_lines: bool = False) -> tuple[int, Terminal]:
        terminal = Terminal()
        status = await within(
            show_outcome(
                server.address, "bob", "secret", message, json_lines=json_lines, timeout_s=5, echo=terminal.echo
            )
        )
        return status, terminal

    async def test_outcome_of_a_message(self, server: FakeServer) -> None:
        recipients = {"bob": "queued", "eve": "delivered"}
        server.on_outcome = lambda peer, id_, message: peer.answer(id_, {"message": message, "recipients": recipients})
        status, terminal = await self.asked(server, "m7")
        assert (status, terminal.out) == (0, ["bob queued", "eve delivered"])
        status, terminal = await self.asked(server, "m7", json_lines=True)
        assert [json.loads(line) for line in terminal.out] == [{"message": "m7", "recipients": recipients}]
        recipients["bob"] = "failed:expired"
        status, terminal = await self.asked(server, "m7")
        assert (status, terminal.out[0]) == (1, "bob failed:expired")

    async def test_outcome_acks_no_pending_message(self, server: FakeServer) -> None:
        """Any number of pending messages may precede the answer."""

        def pending_first(peer: Peer, id_: str, message: str) -> None:
            peer.send(*(message_frame(number, f"{number}.0") for number in range(2 * DEFAULTS.queue)))
            peer.answer(id_, {"message": message, "recipients": {"eve": "delivered"}})

        server.on_outcome = pending_first
        status, terminal = await self.asked(server, "m7")
        assert (status, terminal.out) == (0, ["eve delivered"])
        peer = await server.peer()
        assert peer.login is not None
        assert peer.login["header"]["ack"] is True
        await within(peer.gone.wait())
        assert peer.acks.empty()

    async def test_outcome_of_an_unknown_message(self, server: FakeServer) -> None:
        status, terminal = await self.asked(server, "m7")
        assert (status, terminal.out) == (1, [])
        assert "nothing is known of message m7" in terminal.err[0]
        status, terminal = await self.asked(server, "")
        assert (status, len(terminal.err)) == (2, 1)


class TestListen:
    async def test_listen_counts_messages_over_a_reconnect(self, server: FakeServer) -> None:
        terminal = Terminal()
        listening = asyncio.create_task(
            listen(server.address, "bob", "secret", json_lines=False, echo=terminal.echo, count=2)
        )
        first = await server.peer()
        first.send(message_frame(1, "1.0"))
        await terminal.shows("chat 1  (id 1.0)")
        first.transport.abort()
        (await server.peer()).send(message_frame(1, "1.0"), message_frame(2, redelivered=True))
        assert await within(listening) == 0
        assert terminal.out == ["chat 1  (id 1.0)", "chat 2  (redelivered)"]
        assert [("listening" in line, "trying again" in line) for line in terminal.err] == [
            (True, False),
            (False, True),
            (True, False),
        ]

    async def test_loss_is_shown_once(self, server: FakeServer) -> None:
        terminal = Terminal()
        listening = asyncio.create_task(
            listen(server.address, "bob", "secret", json_lines=False, echo=terminal.echo, count=1)
        )
        await server.peer()
        accept, refused = server.on_login, asyncio.Event()

        def busy(peer: Peer, _: Json) -> None:
            peer.report("auth_special", "bad", reason="overloaded")
            if len(server.peers) > 2:
                server.on_login = accept
                refused.set()

        await server.stop()
        server.on_login = busy
        await server.listen()
        await within(refused.wait())
        (await server.peer()).send(message_frame(1))
        assert await within(listening) == 0
        connected, lost, again = terminal.err
        assert connected == again == f"listening at {server.address} as bob"
        assert lost.startswith(f"the connection to {server.address} is lost: ")
        assert lost.endswith("; trying again")

    async def test_json_prints_one_frame_a_line(self, server: FakeServer) -> None:
        terminal = Terminal()
        listening = asyncio.create_task(
            listen(server.address, "bob", "secret", json_lines=True, echo=terminal.echo, count=1)
        )
        (await server.peer()).send(message_frame([1, 2], "1.0"))
        assert await within(listening) == 0
        assert [json.loads(line) for line in terminal.out] == [message_frame([1, 2], "1.0")]

    async def test_failure_is_one_line(self, server: FakeServer) -> None:
        terminal = Terminal()
        assert await listen(server.address, "bob", "wrong", json_lines=False, echo=terminal.echo) == 1
        assert await listen("nowhere", "bob", "secret", json_lines=False, echo=terminal.echo) == 2
        assert len(terminal.err) == 2
        assert "password" in terminal.err[0]
        assert "HOST:PORT" in terminal.err[1]

    async def test_shown_message_is_acked(self, server: FakeServer) -> None:
        terminal = Terminal()
        listening = asyncio.create_task(
            listen(server.address, "bob", "secret", json_lines=False, echo=terminal.echo, count=2)
        )
        peer = await server.peer()
        peer.send(message_frame(1, "1.0"))
        assert await peer.acknowledged() == ["1.0"]
        assert terminal.out == ["chat 1  (id 1.0)"]
        peer.send(message_frame(2, "2.0"))
        assert await within(listening) == 0
        assert await peer.acknowledged() == ["2.0"]

    async def test_message_with_a_failed_write_is_not_acked(self, server: FakeServer) -> None:
        terminal = Terminal()

        def cut(message: str, /, *, err: bool = False) -> None:
            if len(terminal.out) == 1:
                raise BrokenPipeError
            terminal.echo(message, err=err)

        listening = asyncio.create_task(listen(server.address, "bob", "secret", json_lines=False, echo=cut))
        peer = await server.peer()
        peer.send(message_frame(1, "1.0"), message_frame(2, "2.0"))
        with pytest.raises(BrokenPipeError):
            await within(listening)
        assert await peer.acknowledged() == ["1.0"]
        await within(peer.gone.wait())
        assert peer.acks.empty()

    async def test_no_ack_option(self, server: FakeServer) -> None:
        listening = asyncio.create_task(
            listen(server.address, "bob", "secret", json_lines=False, echo=Terminal().echo, count=1, ack=False)
        )
        peer = await server.peer()
        assert peer.login is not None
        assert "ack" not in peer.login["header"]
        peer.send(message_frame(1, "1.0"))
        assert await within(listening) == 0
        await within(peer.gone.wait())
        assert peer.acks.empty()

    async def test_interrupt_closes_the_connection(self, server: FakeServer) -> None:
        listening = asyncio.create_task(listen(server.address, "bob", "secret", json_lines=False, echo=Terminal().echo))
        peer = await server.peer()
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(listening)
        await within(peer.gone.wait())
