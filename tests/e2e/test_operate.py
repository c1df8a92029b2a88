"""Commands that operate a running server: questions, output, and errors without an answer.

The other end is a scripted broker.
"""

import asyncio
import json
import re
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from bester.broker.config import Config, FabricConfig, defaults
from bester.broker.keys import new_pair, write_secret
from bester.broker.wire.codes import BesterError
from bester.broker.wire.messages import Answer, Ask, Error
from bester.cli import operate
from bester.cli.operate import Session, ask_all, endpoint_of, knock
from tests.e2e.broker_stand_in import StandIn
from tests.live import BESTER, Process

DEADLINE_S = 30.0
NOWHERE = "nosuch.invalid"
"""Name that no name server knows (RFC 6761), whether there is one or not."""
LETTER: dict[str, Any] = {
    "id": "s1/b/7.0.0",
    "type": "chat",
    "reason": "handler-lost",
    "at_ms": 1_700_000_000_000,
    "attempts": 3,
    "bytes": 21,
    "path": ["s1/in", "s1/chat"],
    "server": None,
}
WHOLE = LETTER | {
    "body": '{"text":"\x9b2J \u202etxet",\n"n":1}',
    "user": "alice",
    "origin": "s1",
    "root": "s1/b/7",
    "scope": "client",
    "peer": None,
}


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        (Path(name) / "bester-data").mkdir(mode=0o700)
        yield Path(name)


@pytest.fixture
async def broker(directory: Path) -> AsyncIterator[StandIn]:
    async with StandIn(defaults(directory).fabric.listen[0]) as broker:
        yield broker


class Shell:
    """Runs a command of `bester`, while the test answers its questions."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def begin(self, *arguments: str) -> Process:
        return await Process.start(BESTER, *arguments, cwd=self._directory, env={"TZ": "UTC"})

    async def ended(self, process: Process) -> tuple[int, list[str]]:
        status = await asyncio.wait_for(process.process.wait(), DEADLINE_S)
        await process.end()
        return status, process.lines


@pytest.fixture
def shell(directory: Path) -> Shell:
    return Shell(directory)


async def next_question(broker: StandIn) -> Ask:
    while not isinstance(message := await broker.next(), Ask):
        pass
    return message


async def answered(
    shell: Shell, broker: StandIn, command: str, question: str, argument: object, value: object, status: int = 0
) -> tuple[int, list[str]]:
    """Run a command, check its question, answer, and return its exit status and lines."""
    process = await shell.begin("dead", *command.split())
    asked = await next_question(broker)
    assert asked[1:] == (question, argument)
    broker.send(Answer(asked.token, status, value))
    return await shell.ended(process)


async def test_list_is_a_table(shell: Shell, broker: StandIn) -> None:
    to_server = LETTER | {"id": "s1/b/9.0.0", "type": "news\x1b[2J", "server": "s2", "reason": "expired", "bytes": 5}
    status, lines = await answered(shell, broker, "list", "deadList", {"limit": 101}, [LETTER, to_server])
    assert (status, lines) == (
        0,
        [
            "AT                        REASON        TYPE                 BYTES  TRIED  ID",
            "2023-11-14T22:13:20+0000  handler-lost  chat                 21     3      s1/b/7.0.0",
            "2023-11-14T22:13:20+0000  expired       news\\u001b[2J to s2  5      3      s1/b/9.0.0",
        ],
    )
    assert broker.hellos[0].role == "operator"


async def test_list_is_limited_and_names_the_rest(shell: Shell, broker: StandIn) -> None:
    rows = [LETTER | {"id": str(number)} for number in range(3)]
    command = "list --type chat --limit 2 --json"
    status, lines = await answered(shell, broker, command, "deadList", {"type": "chat", "limit": 3}, rows)
    assert status == 0
    assert [json.loads(line) for line in lines[:2]] == rows[:2]
    assert lines[2:] == ["bester: there are more; --limit 20 shows more of them"]


async def test_empty_list_is_a_line(shell: Shell, broker: StandIn) -> None:
    printed = await answered(shell, broker, "list --type news", "deadList", {"type": "news", "limit": 101}, [])
    assert printed == (0, ["no dead letters of type news"])


async def test_shown_dead_letter_is_whole_without_control_characters(shell: Shell, broker: StandIn) -> None:
    status, lines = await answered(shell, broker, "show s1/b/7.0.0", "deadShow", "s1/b/7.0.0", WHOLE)
    assert (status, lines) == (
        0,
        [
            "id          s1/b/7.0.0",
            "type        chat",
            "reason      handler-lost: every handler that was given the message died with it",
            "at          2023-11-14T22:13:20+0000",
            "attempts    3",
            "from        user alice",
            "entered at  s1",
            "root        s1/b/7",
            "path        s1/in > s1/chat",
            "bytes       21",
            "",
            '{"text":"\\u009b2J \\u202etxet",',
            '"n":1}',
        ],
    )
    assert json.loads("".join(lines[11:])) == json.loads(WHOLE["body"], strict=False)


async def test_dead_letter_as_json_is_whole(shell: Shell, broker: StandIn) -> None:
    status, lines = await answered(shell, broker, "show --json x", "deadShow", "x", WHOLE)
    assert (status, [json.loads(line) for line in lines]) == (0, [WHOLE])


@pytest.mark.parametrize(
    ("command", "question", "argument", "value", "status", "printed"),
    [
        ("replay x", "deadReplay", {"id": "x"}, {"replayed": 1}, 0, "replayed 1 dead letter"),
        (
            "replay --type t --as u",
            "deadReplay",
            {"type": "t", "as": "u"},
            {"replayed": 9},
            0,
            "replayed 9 dead letters",
        ),
        ("replay --all", "deadReplay", {}, {"replayed": 0}, 0, "replayed 0 dead letters"),
        (
            "replay x",
            "deadReplay",
            {"id": "x"},
            {"replayed": 0},
            1,
            "bester: no dead letter x, or it is being replayed already;",
        ),
        ("drop x", "deadDrop", {"id": "x"}, {"dropped": 1}, 0, "dropped 1 dead letter"),
        ("drop --type t --yes", "deadDrop", {"type": "t"}, {"dropped": 2}, 0, "dropped 2 dead letters"),
        ("drop --type t --yes", "deadDrop", {"type": "t"}, {"dropped": 0}, 1, "bester: no dead letter of type t;"),
        ("drop --all --yes", "deadDrop", {}, {"dropped": 0}, 0, "dropped 0 dead letters"),
    ],
)
async def test_replay_and_drop(
    shell: Shell,
    broker: StandIn,
    command: str,
    question: str,
    argument: object,
    value: object,
    status: int,
    printed: str,
) -> None:
    ended, lines = await answered(shell, broker, command, question, argument, value)
    assert ended == status
    assert lines[0].startswith(printed)


async def test_unknown_dead_letter_or_question_is_one_line(shell: Shell, broker: StandIn) -> None:
    unknown = await answered(shell, broker, "show x", "deadShow", "x", None, status=1)
    assert unknown == (1, ["bester: no dead letter x; `bester dead list` shows those there are"])
    ended, lines = await answered(shell, broker, "list", "deadList", {"limit": 101}, None, status=1)
    assert (ended, len(lines)) == (1, 1)
    assert "does not know deadList" in lines[0]


async def test_refusal_is_one_line_with_the_servers_text(shell: Shell, broker: StandIn) -> None:
    why = "no handler of type 'u' was ever here;\n\x1b[2Jgive another"
    asked = {"type": "t", "as": "u"}
    refused = await answered(shell, broker, "replay --type t --as u", "deadReplay", asked, why, status=1)
    assert refused == (1, ["bester: no handler of type 'u' was ever here;\\n\\u001b[2Jgive another"])


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("dead show", "Missing argument 'ID'"),
        ("dead replay x y", "unexpected extra argument (y); see `bester dead replay --help`"),
        ("dead replay", "no letters selected; give an ID, --type TYPE or --all"),
        ("dead replay x --all", "ID and --all select different letters; give one of them"),
        ("dead drop --type t --all", "--type and --all select different letters"),
        ("dead replay x --as bester.auth", "'bester.auth' is reserved for Bester itself; choose another type"),
        ("dead drop --all", "--yes confirms"),
        ("dead list --limit 0", "0 is not in the range"),
        ("dead list -c none.toml", "none.toml: cannot read it"),
    ],
)
async def test_wrong_use_is_one_line(shell: Shell, command: str, printed: str) -> None:
    status, lines = await shell.ended(await shell.begin(*command.split()))
    assert (status, len(lines)) == (2, 1)
    assert printed in lines[0]


async def test_missing_server_is_one_line_with_the_remedy(shell: Shell, directory: Path) -> None:
    status, lines = await shell.ended(await shell.begin("dead", "list"))
    assert (status, len(lines)) == (1, 1)
    assert re.search(
        r"no server runs in .*fabric\.sock; start it with `bester up`, or name its file with -c$", lines[0]
    )
    (directory / "other.toml").write_text('[fabric]\nlisten = ["tcp://127.0.0.1:1"]\n')
    status, lines = await shell.ended(await shell.begin("dead", "list", "-c", "other.toml"))
    assert (status, len(lines)) == (1, 1)
    assert "no server runs with other.toml: nobody listens on tcp://127.0.0.1:1;" in lines[0]
    (directory / "several.toml").write_text(
        '[fabric]\nconnect = ["ipc://DATA_DIR/fabric.sock", "ipc://DATA_DIR/other.sock"]\n'
    )
    status, lines = await shell.ended(await shell.begin("dead", "list", "-c", "several.toml"))
    assert (status, len(lines)) == (1, 1)
    assert "start it with `bester broker`, or name its file with -c" in lines[0]
    key = new_pair()
    write_secret(directory / "far.key", key.secret)
    far = (
        f'listen = ["tcp://127.0.0.1:1"]\nconnect = ["tcp://{NOWHERE}:1"]\nkey = "far.key"\nserver_key = "{key.public}"'
    )
    (directory / "far.toml").write_text(f"[fabric]\n{far}\n")
    status, lines = await shell.ended(await shell.begin("dead", "list", "-c", "far.toml"))
    assert (status, len(lines)) == (1, 1)
    assert f"the name {NOWHERE} cannot be looked up: " in lines[0]


async def test_stale_socket_is_no_server(directory: Path) -> None:
    config = defaults(directory)
    async with StandIn(endpoint_of(config)):
        knock(config)
    (directory / "bester-data/fabric.sock").touch()
    with pytest.raises(BesterError, match="no server runs in"):
        knock(config)


async def test_refusing_broker_is_one_line(shell: Shell, directory: Path) -> None:
    refusal = Error("not-allowed", "not on this listener", 1)
    async with StandIn(endpoint_of(defaults(directory)), refuse=refusal):
        status, lines = await shell.ended(await shell.begin("dead", "list"))
    assert (status, len(lines)) == (1, 1)
    assert lines[0].endswith("refuses an operator: not on this listener")


async def test_lost_broker_is_not_asked_again(shell: Shell, broker: StandIn) -> None:
    process = await shell.begin("dead", "replay", "--all")
    await next_question(broker)
    broker.send(Error("hello-first", "who are you?"))
    status, lines = await shell.ended(process)
    assert (status, len(lines)) == (1, 1)
    assert "went away before its answer (the broker does not know this link any more); check the result" in lines[0]


async def test_interrupt_ends_the_wait(shell: Shell, broker: StandIn) -> None:
    process = await shell.begin("dead", "list")
    await next_question(broker)
    assert await process.end(signal.SIGINT) == 130
    assert [line for line in process.lines if line] == []


async def test_question_that_cannot_be_sent_or_read_is_an_error(directory: Path, broker: StandIn) -> None:
    for argument in ("a\udcff", 2**64):
        with pytest.raises(BesterError, match="cannot be asked: "):
            await asyncio.wait_for(ask_all(defaults(directory), [("trace", argument)]), DEADLINE_S)
    asking = asyncio.create_task(ask_all(defaults(directory), [("trace", "a")]))
    broker.send(Error("malformed", "not like this", 16, (await next_question(broker)).token))
    with pytest.raises(BesterError, match="cannot be asked: not like this"):
        await asking


async def test_answers_are_in_the_order_of_the_questions(directory: Path, broker: StandIn) -> None:
    asking = asyncio.create_task(ask_all(defaults(directory), [("trace", "a"), ("trace", "b")]))
    asked = [await next_question(broker) for _ in range(2)]
    broker.send(*(Answer(each.token, 0, each.argument) for each in reversed(asked)))
    assert [answer.value for answer in await asking] == ["a", "b"]


def config(listen: tuple[str, ...], connect: tuple[str, ...]) -> Config:
    base = defaults(Path("/nowhere"))
    return Config(base.directory, base.server, base.native, FabricConfig(listen, connect))


def test_ipc_endpoint_is_preferred() -> None:
    assert endpoint_of(config(("tcp://127.0.0.1:1", "ipc:///a"), ("tcp://127.0.0.1:1",))) == "ipc:///a"
    assert endpoint_of(config(("ipc:///a",), ("ipc:///b",))) == "ipc:///b"
    assert endpoint_of(config(("ipc:///a",), ("ipc:///b", "ipc:///a"))) == "ipc:///a", "this broker of two"
    assert endpoint_of(config(("tcp://127.0.0.1:1",), ("tcp://127.0.0.1:1",))) == "tcp://127.0.0.1:1"


def test_file_of_one_of_several_brokers_is_about_that_broker() -> None:
    paths, ports = ("ipc:///b1", "ipc:///b2"), ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    assert endpoint_of(config(("ipc:///b2",), paths)) == "ipc:///b2"
    assert endpoint_of(config(("tcp://127.0.0.1:2",), ports)) == "tcp://127.0.0.1:2"
    assert endpoint_of(config(("tcp://127.0.0.1:2", "ipc:///own"), (*paths, *ports))) == "ipc:///own"
    assert endpoint_of(config(("ipc:///of-none",), paths)) == "ipc:///b1", "a bridge's own file"


async def test_question_that_cannot_be_sent_is_not_waited_for(
    directory: Path, broker: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operate, "ANSWER_S", 0.1)
    async with Session(defaults(directory)) as session:
        monkeypatch.setattr(session._link, "send", lambda _: False)
        with pytest.raises(
            BesterError, match="cannot be asked now: the link to it is lost or full; ask again"
        ) as refused:
            await session.ask(("status", None))
    assert refused.value.code == "unreachable"
