"""The native protocol's JSON: values read from frames, and the bytes of written frames."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge import native, native_writing
from bester.bridge.native import Builtin, Client, Fault, Sent, Server
from bester.broker.wire.json_text import DEPTH_LIMIT, LONG_BYTES, UNPAIRED, fault

ODD_DATA = [
    b"0.1",
    b"-0",
    b"1e400",
    b"-1E-999",
    b"123456789012345678901234567890",
    b'{"a":1,"a":2}',
    rb'"\u0061\/\n\ud83d\ude00"',
    '"\N{SNOWMAN} \x7f"'.encode(),
    b"[ 1 , 2 ]",
    b"null",
    b"true",
    b'{"data":{"data":null}}',
    b'""',
]


def body_of(frame: bytes) -> bytes:
    assert int.from_bytes(frame[:4], "little") == len(frame) - 4
    return frame[4:]


def written(frame: bytes) -> Any:
    return json.loads(body_of(frame))


class TestLaterFrames:
    @pytest.mark.parametrize("data", ODD_DATA)
    @pytest.mark.parametrize("header", [b"null", b"{}", b'{"any":[1]}', b"5"])
    def test_data_comes_out_byte_for_byte(self, data: bytes, header: bytes) -> None:
        body = b'{"header":%b,"payload":{"type":"chat","data": %b ,"id":"i1"}}' % (header, data)
        assert native.later(body) == Sent("chat", data, b'"i1"')

    @pytest.mark.parametrize(
        "body", [b'{"payload":{"data":1,"type":"t"}}', b'{"payload":{"id":null,"data":1,"type":"t"}}']
    )
    def test_id_may_be_missing(self, body: bytes) -> None:
        assert native.later(body) == Sent("t", b"1", b"null")

    def test_id_is_echoed_as_written(self) -> None:
        sent = native.later(rb'{"payload":{"id":"\u00e4 \"x\"","data":1,"type":"t"}}')
        assert isinstance(sent, Sent)
        assert sent.id == rb'"\u00e4 \"x\""'
        assert b'"id":' + sent.id in native_writing.report(sent.id, 0)

    @pytest.mark.parametrize(
        ("body", "id_"),
        [
            (b"{}", b"null"),
            (b'{"payload":null}', b"null"),
            (b'{"payload":[1]}', b"null"),
            (b'{"payload":{"id":"x","data":1}}', b'"x"'),
            (b'{"payload":{"id":"x","type":"t"}}', b'"x"'),
            (b'{"payload":{"id":"x","type":5,"data":1}}', b'"x"'),
            (b'{"payload":{"type":null,"data":1,"id":"x"}}', b'"x"'),
            (b'{"payload":{"id":5,"type":"t","data":1}}', b"null"),
            (b'{"payload":{"id":{},"type":"t","data":1}}', b"null"),
            (b'{"payload":{"id":5,"type":"t"}}', b"null"),
        ],
    )
    def test_bad_payload_ends_only_the_message(self, body: bytes, id_: bytes) -> None:
        read = native.later(body)
        assert isinstance(read, Fault)
        assert (read.fatal, read.id, read.reason) == (False, id_, "malformed")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"[]",
            b'"payload"',
            b"null",
            b"5",
            b"nonsense",
            b"{",
            b'{"payload":{"type":"t","data":1,"id":"x"}} x',
            b'{"payload":{"type":"t","data":01,"id":"x"}}',
            b'{"payload":{"type":"t","data":1,"id":"x",}}',
            b'{"payload":{"type":"t","data":NaN,"id":"x"}}',
            b'{"payload":{"type":"t","data":"\xff","id":"x"}}',
            b'{"payload":{"type":"t","data":1,"id":"\xc3"}}',
            b'{"payload":{"type":"\xff","data":1,"id":"x"}}',
            b'{"\xff":1,"payload":{"type":"t","data":1,"id":"x"}}',
            rb'{"payload":{"type":"t","data":"\ud800","id":"x"},}',
            rb'["\ud800"]',
            b'{"payload":{"type":"t","id":"x","data":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"payload":{"type":"t","id":"x","data":"\xff' + b"[" * 900 + b'"}}',
        ],
    )
    def test_frame_that_is_no_json_object_is_fatal(self, body: bytes) -> None:
        for read in (native.later(body), native.first(body)):
            assert isinstance(read, Fault)
            assert (read.fatal, read.id, read.reason) == (True, b"null", "malformed")

    @pytest.mark.parametrize(("open_", "close"), [(b"[", b"]"), (b'{"a":', b"}"), (b'{"[":[', b"]}")])
    def test_data_is_at_most_sixty_four_deep(self, open_: bytes, close: bytes) -> None:
        most = DEPTH_LIMIT // len(close)
        data = open_ * most + b"1" + close * most
        deep = b"[" + data + b"]"
        assert native.later(b'{"payload":{"type":"t","id":"x","data":%b}}' % data) == Sent("t", data, b'"x"')
        server = b'{"header":{"scope":"server","x":%b},"payload":{"type":"t","data":%b}}'
        assert native.first(server % (deep, data)) == Server(Sent("t", data, b"null"), {})
        for body in (b'{"payload":{"type":"t","id":"x","data":%b}}', b'{"payload":{"data":%b,"id":"x","type":"t"}}'):
            read = native.later(body % deep)
            assert isinstance(read, Fault)
            assert (read.fatal, read.id, read.reason) == (False, b'"x"', "malformed")
        assert native.later(b'{"payload":{"data":%b,"id":"x","type":"t","data":1}}' % deep) == Sent("t", b"1", b'"x"')
        refused = native.first(server % (b"1", deep))
        assert isinstance(refused, Fault)
        assert (refused.fatal, refused.id, refused.reason) == (True, b"null", "malformed")

    @pytest.mark.parametrize(
        ("body", "id_"),
        [
            (rb'{"payload":{"type":"t","data":"\ud800","id":"x\u00e9"}}', '"x\u00e9"'.encode()),
            (rb'{"payload":{"type":"t","data":[{"\uDFFF":1e999}],"id":"x"},"header":{}}', b'"x"'),
            (rb'{"payload":{"type":"t","data":1,"id":"\ud83d"}}', b"null"),
            (rb'{"payload":{"type":"\ud83d ","data":1,"id":5}}', b"null"),
            (rb'{"payload":null,"a":"\ud83d\ud83d"}', b"null"),
        ],
    )
    def test_unpaired_surrogate_ends_only_the_message(self, body: bytes, id_: bytes) -> None:
        read = native.later(body)
        assert isinstance(read, Fault)
        assert (read.fatal, read.id, read.reason) == (False, id_, "malformed")
        assert native.first(body) == read._replace(fatal=True)

    @pytest.mark.parametrize(
        ("id_", "told"), [(b'"x"', b'"x"'), (rb'"\ud83d"', b"null"), (rb'"\ud83d\ude00"', b"null"), (b"5", b"null")]
    )
    def test_unpaired_surrogate_ends_only_a_long_message_that_is_not_made_into_values(
        self, id_: bytes, told: bytes, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(native, "with_unpaired", None)
        data = b"[" + b"[]," * LONG_BYTES + rb'"\udc00"]'
        body = b'{"payload":{"type":"t","data":%b,"id":%b}}' % (data, id_)
        assert native.later(body) == Fault(told, False, UNPAIRED)
        broken = native.later(body + b",")
        assert isinstance(broken, Fault) and broken.fatal

    @given(st.binary(max_size=60), st.integers(0, 60))
    def test_decoder_takes_json_and_nothing_else(self, noise: bytes, at: int) -> None:
        good = b'{"header":{},"payload":{"type":"t","data":[1],"id":"x"}}'
        body = good[:at] + noise + good[at:]
        read = native.later(body)
        if isinstance(read, Sent):
            assert fault(body) is None
            assert fault(read.data) is None
        elif not read.fatal:
            assert fault(body) in (None, UNPAIRED)
            assert isinstance(json.loads(body), dict)

    @pytest.mark.parametrize(
        ("data", "command"),
        [
            (b'{"command":{"type":"close"}}', Builtin("close", b"null")),
            (b'{"command":{"type":"ack","data":["a"]}, "x":1}', Builtin("ack", b'["a"]')),
            (b"null", None),
            (b'{"command":null}', None),
            (b'{"command":{"type":5}}', None),
            (b'{"command":{}}', None),
            (b"[]", None),
        ],
    )
    def test_builtin_reads_a_command(self, data: bytes, command: Builtin | None) -> None:
        assert native.builtin(data) == command

    @pytest.mark.parametrize(
        ("data", "texts"),
        [(b'["a","\\u0062"]', ["a", "b"]), (b"[]", []), (b'["a",1]', None), (b"null", None), (b'"a"', None)],
    )
    def test_texts_reads_a_list_of_strings(self, data: bytes, texts: list[str] | None) -> None:
        assert native.texts(data) == texts

    @pytest.mark.parametrize(("data", "text"), [(b'"a\\n"', "a\n"), (b"null", None), (b"5", None), (b'["a"]', None)])
    def test_text_reads_a_string(self, data: bytes, text: str | None) -> None:
        assert native.text(data) == text

    @pytest.mark.parametrize(
        ("said", "meta"),
        [
            ('"dedup":"a"', {"dedup": "a"}),
            (f'"dedup":"{"é" * 64}"', {"dedup": "é" * 64}),
            ('"ttl_s":1', {"ttl_s": 1.0}),
            ('"ttl_s":0.001', {"ttl_s": 0.001}),
            ('"ttl_s":2592000', {"ttl_s": 2592000.0}),
            ('"outcome":true', {"outcome": True}),
            ('"resent":true,"outcome":false', {"resent": True}),
            ('"outcome":false', {}),
            ('"dedup":null,"ttl_s":null,"outcome":null,"resent":null', {}),
            ('"dedup":"a","ttl_s":5,"outcome":true,"resent":true,"more":1',
             {"dedup": "a", "ttl_s": 5.0, "outcome": True, "resent": True}),
        ],
    )  # fmt: skip
    def test_options_of_a_message_are_read(self, said: str, meta: dict[str, Any]) -> None:
        body = f'{{"payload":{{{said},"type":"t","data":1,"id":"i"}}}}'
        assert native.later(body.encode()) == Sent("t", b"1", b'"i"', meta)

    @pytest.mark.parametrize(
        "said",
        [
            '"dedup":""', f'"dedup":"{"x" * 65}"', '"dedup":5', '"dedup":["a"]',
            '"ttl_s":0', '"ttl_s":-1', '"ttl_s":2592001', '"ttl_s":1e999', '"ttl_s":"5"', '"ttl_s":true',
            '"outcome":1', '"outcome":"true"', '"resent":0', '"resent":[]',
        ],
    )  # fmt: skip
    def test_bad_option_ends_only_the_message(self, said: str) -> None:
        read = native.later(f'{{"payload":{{"type":"t","data":1,"id":"i",{said}}}}}'.encode())
        assert isinstance(read, Fault)
        assert (read.fatal, read.id, read.reason) == (False, b'"i"', "malformed")


def login(header: str, payload: str = "null") -> Client | Server | Fault:
    return native.first(f'{{"header":{header},"payload":{payload}}}'.encode())


GOOD = '{"scope":"client","authentication":{"username":"alice","password":"p"}}'


class TestFirstFrame:
    @pytest.mark.parametrize(
        ("payload", "says_something"),
        [
            ('{"data":null,"type":"dummy"}', False),
            ('{"data":null,"type":"dummy","id":"1"}', False),
            ("null", False),
            ("[]", False),
            ("{}", False),
            ('{"type":"chat","data":1}', False),
            ('{"type":null,"data":1,"id":"1"}', False),
            ('{"type":"chat","data":1,"id":null}', False),
            ('{"type":"chat","data":1,"id":"1"}', True),
            ('{"type":"chat","id":"1"}', True),
            ('{"type":5,"id":"1"}', True),
        ],
    )
    def test_login_with_and_without_a_message(self, payload: str, says_something: bool) -> None:
        assert login(GOOD, payload) == Client("alice", "p", says_something)

    @pytest.mark.parametrize(
        ("said", "acks"), [("true", True), (" true ", True), ("false", False), ("1", False), ('"true"', False)]
    )
    def test_login_of_an_acknowledging_client(self, said: str, acks: bool) -> None:
        assert login(f'{GOOD[:-1]},"ack":{said}}}') == Client("alice", "p", False, acks)

    def test_login_without_a_payload(self) -> None:
        assert native.first(b'{"header":%b}' % GOOD.encode()) == Client("alice", "p", False)

    @pytest.mark.parametrize(
        "authentication",
        [
            "null",
            "{}",
            '"alice"',
            '{"username":"alice"}',
            '{"password":"p"}',
            '{"username":"","password":"p"}',
            '{"username":"alice","password":""}',
            '{"username":5,"password":"p"}',
            '{"username":"alice","password":["p"]}',
        ],
    )
    def test_login_without_name_or_password_is_refused(self, authentication: str) -> None:
        read = login(f'{{"scope":"client","authentication":{authentication}}}')
        assert isinstance(read, Fault)
        assert (read.id, read.reason) == (native.AUTH_ID, "authentication-failed")

    @pytest.mark.parametrize(
        "header", ["null", "[]", "5", "{}", '{"scope":"operator"}', '{"scope":5}', '{"scope":null}']
    )
    def test_unknown_scope_is_fatal(self, header: str) -> None:
        read = login(header)
        assert isinstance(read, Fault)
        assert read.reason == "malformed"

    def test_claims_of_a_server_are_read(self) -> None:
        read = login(
            '{"scope":"server","server":"s2","id":"s2/1","root":5,"origin":"s1","path":["s1/m1"],"ttl_s":1.5,"peer":"s3"}',
            '{"data":0.10,"type":"m1","id":"x"}',
        )
        claims = {"server": "s2", "id": "s2/1", "origin": "s1", "path": ["s1/m1"], "ttl_s": 1.5}
        assert read == Server(Sent("m1", b"0.10", b'"x"'), claims)

    @pytest.mark.parametrize(
        ("said", "claims"),
        [
            ('"lane":["e",7,5],"again":true', {"lane": ["e", 7, 5], "again": True}),
            ('"lane":["e",7]', {}),
            ('"lane":["e",7,5,1]', {}),
            ('"lane":["e",-1,0]', {}),
            (f'"lane":["e",{2**53},0]', {}),
            (f'"lane":["e",{10**30},0]', {}),
            ('"lane":[1,7,5],"again":1', {}),
        ],
    )
    def test_lane_of_a_server_is_read(self, said: str, claims: dict[str, Any]) -> None:
        read = login(f'{{"scope":"server",{said}}}', '{"data":1,"type":"m1"}')
        assert isinstance(read, Server)
        assert read.claims == claims

    def test_reference_server_sends_no_id(self) -> None:
        assert login('{"scope":"server"}', '{"data":1,"type":"m1"}') == Server(Sent("m1", b"1", b"null"), {})

    def test_fault_of_a_server_has_its_id(self) -> None:
        read = login('{"scope":"server"}', '{"id":"x","type":"m1"}')
        assert isinstance(read, Fault)
        assert (read.fatal, read.id, read.reason) == (True, b'"x"', "malformed")


class TestWriting:
    def test_good_report_is_written(self) -> None:
        assert body_of(native_writing.report(b'"i1"', 0)) == (
            b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"i1"}}'
        )

    def test_auth_answer_is_written(self) -> None:
        assert body_of(native_writing.logged_in(4096)) == (
            b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special","max_frame":4096}}'
        )

    def test_bad_report_with_every_field(self) -> None:
        frame = native_writing.report(
            b"null", 1, "unknown-user", 's1/b-"1/7', {"bob": "delivered", "d\n": "failed:unknown-user"}
        )
        assert written(frame) == {
            "header": {"messageType": "statusReport", "status": "bad"},
            "payload": {
                "id": None,
                "message": 's1/b-"1/7',
                "reason": "unknown-user",
                "recipients": {"bob": "delivered", "d\n": "failed:unknown-user"},
            },
        }

    def test_refusal_with_a_note(self) -> None:
        note = 'data["to"]: é 😀 \\'
        assert written(native_writing.report(b'"i"', 1, "refused", "m", None, note))["payload"] == {
            "id": "i",
            "message": "m",
            "reason": "refused",
            "note": note,
        }
        assert "note" not in written(native_writing.report(b'"i"', 0, None, "m", None, note))["payload"]

    def test_pong_is_written(self) -> None:
        assert (
            body_of(native_writing.pong(b'"i"'))
            == b'{"header":{"status":"0"},"payload":{"data":null,"id":"i","type":"dummy"}}'
        )

    @pytest.mark.parametrize("data", ODD_DATA)
    def test_delivery_holds_data_byte_for_byte(self, data: bytes) -> None:
        head, tail = native_writing.envelope('s"1/e/1.0', 'a"type', data, {"origin": "s2"})
        frame = b"".join(native_writing.delivered(head, 12, tail))
        assert b'"payload":{"data":%b,"type":' % data in frame
        read = written(frame)
        assert read["header"] == {"messageType": "receivedMessage", "id": 's"1/e/1.0.12', "origin": "s2"}
        assert read["payload"]["type"] == 'a"type'

    def test_repeated_delivery_is_marked(self) -> None:
        frame = b"".join(
            native_writing.delivered(*_around(native_writing.envelope("i", "t", b"1", {"redelivered": True})))
        )
        assert written(frame)["header"] == {"messageType": "receivedMessage", "id": "i.0", "redelivered": True}

    def test_message_to_another_server_is_written(self) -> None:
        meta = {
            "server": "s1",
            "id": "s1/e/1.0.0",
            "root": "s1/e/1",
            "origin": "s1",
            "path": ["s1/m1"],
            "peer": "x",
            "attempt": 1,
        }
        frame = native_writing.to_server(7, "m1", b"-0", meta)
        assert written(frame) == {
            "header": {
                "scope": "server",
                "server": "s1",
                "id": "s1/e/1.0.0",
                "root": "s1/e/1",
                "origin": "s1",
                "path": ["s1/m1"],
            },
            "payload": {"data": 0, "type": "m1", "id": "s1/e/1.0.0"},
        }
        read = native.first(body_of(frame))
        assert isinstance(read, Server)
        assert read.sent.data == b"-0"

    def test_lane_is_sent_to_another_server(self) -> None:
        frame = native_writing.to_server(7, "m1", b"1", {"id": "i", "lane": ["e", 7, 5], "again": True, "ttl_s": 3.5})
        assert written(frame)["header"] == {
            "scope": "server", "id": "i", "lane": ["e", 7, 5], "again": True, "ttl_s": 3.5,
        }  # fmt: skip
        read = native.first(body_of(frame))
        assert isinstance(read, Server)
        assert (read.claims["lane"], read.claims["again"]) == (["e", 7, 5], True)

    def test_outcomes_are_written(self) -> None:
        assert body_of(native_writing.outcomes(b'"i"', "s1/e/1", {"bob": "delivered"})) == (
            b'{"header":{"status":"0"},"payload":'
            b'{"data":{"message":"s1/e/1","recipients":{"bob":"delivered"}},"id":"i","type":"builtin"}}'
        )
        assert body_of(native_writing.outcomes(b"null", "s1/e/1", None)) == (
            b'{"header":{"status":"1"},"payload":{"data":null,"id":null,"type":"builtin"}}'
        )

    def test_message_to_another_server_always_has_an_id(self) -> None:
        assert written(native_writing.to_server(7, "m1", b"1", {}))["payload"]["id"] == "7"


def _around(parts: tuple[bytes, bytes]) -> tuple[bytes, int, bytes]:
    return parts[0], 0, parts[1]
