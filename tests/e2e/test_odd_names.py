"""Names of files and servers with control characters, and very long ones, on the command line: each line that is
printed about them is one line, shows them spelled out, and has an end."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from bester.broker.streams import plain
from bester.cli import main
from bester.cli.errors import LINE_CHARACTERS, describe
from bester.cli.messaging import message_line
from bester.client import Message

ODD = ("\x1b[31mred", "\u202ecod", "a\r\nbester: done", "\x9b2J", "a\u200db", "\U000e0041")


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        monkeypatch.chdir(name)
        yield Path(name)


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize(
    "arguments",
    [
        ["user", "list", "-c", "@"],
        ["status", "-c", "@"],
        ["backup", "@/copy"],
        ["replay", "@", "bester.handlers.stock.echo:app"],
        ["send", "--to", "@", "--user", "tom", "echo", "{}"],
        ["peers", "retry", "@"],
    ],
)
def test_odd_name_is_one_printable_line(
    directory: Path,
    name: str,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BESTER_PASSWORD", "secret")
    assert main([each.replace("@", name) for each in arguments]) in (1, 2)
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = printed.err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("name", ODD)
def test_copies_in_an_odd_directory_are_a_line_each(
    directory: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (directory / "bester-data").mkdir(mode=0o700)
    (directory / "bester-data" / "password").write_text("secret\n")
    with (directory / "bester-data" / "password").open() as given, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", given)
        assert main(["user", "add", "--password-stdin", "tom"]) == 0
    capsys.readouterr()
    assert main(["backup", name]) == 0
    (line,) = capsys.readouterr().out.split("\n")[:-1]
    assert line.isprintable()
    assert line.startswith(f"{plain(name)}/accounts.db  ")


def test_invisible_character_is_spelled_out_as_in_json() -> None:
    assert plain("a\U000e0041\n\u202e") == "a\\udb40\\udc41\\n\\u202e"
    assert message_line(Message("\U000e0041", msgspec.Raw(b"1"))).startswith("\\udb40\\udc41 1")


def test_very_long_name_leaves_the_remedy_in_sight() -> None:
    text, _ = describe(ValueError("x" * 100_000))
    assert len(text) < LINE_CHARACTERS + 10
    assert text.endswith("BESTER_TRACEBACK=1 shows where")
