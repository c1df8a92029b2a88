"""Listeners of a configuration that would take each other's place, found before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bester.broker import config_file
from bester.broker.config_listeners import listeners_of
from bester.broker.wire.codes import ConfigError


@pytest.fixture
def directory() -> Iterator[Path]:
    """Return a directory whose path is short enough for sockets."""
    with TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        yield Path(name)


def load(directory: Path, text: str) -> list[str]:
    """Return the listeners, as their keys."""
    file = directory / "bester.toml"
    file.write_text(text)
    return [str(each) for each in listeners_of(config_file.load(file))]


TCP4 = '[native]\ntcp4 = "127.0.0.1:7001"\n'
TLS = '[native.tls]\ncert = "c"\nkey = "k"\nlisten = '


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'{TCP4}websocket = "127.0.0.1:7001"\n', "3: [native] websocket: is where [native] tcp4 listens already"),
        (f'{TCP4}[operator]\nhttp = "127.0.0.1:7001"\n', "4: [operator] http: is where [native] tcp4 listens already"),
        (f'{TCP4}{TLS}"0.0.0.0:7001"\n', "6: [native.tls] listen: is where [native] tcp4 listens already"),
        (f'{TLS}["a:7001", "a:7001"]\n', "4: [native.tls] listen: 'a:7001' is named twice; remove one"),
        (f'{TCP4}[fabric]\nlisten = ["tcp://127.0.0.1:7001"]\n', "2: [native] tcp4: is where [fabric] listen listens"),
        (
            '[native]\nunix = "x"\n[informer]\nunix = "x"\n',
            "4: [informer] unix: is where [native] unix listens already",
        ),
        ('[native]\nunix = "bester-data/fabric.sock"\n', "2: [native] unix: is where [fabric] listen listens already"),
    ],
)
def test_listeners_at_one_place_are_one_line_that_names_both(directory: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(directory, text)
    assert str(caught.value).startswith(f"{directory}/bester.toml:{expected}")


@pytest.mark.parametrize(
    "text",
    [
        '[native]\ntcp4 = "127.0.0.1:0"\nwebsocket = "127.0.0.1:0"\n',
        '[native]\ntcp4 = "127.0.0.1:7001"\nwebsocket = "127.0.0.2:7001"\n',
        '[native]\ninsecure = true\ntcp4 = "0.0.0.0:7001"\ntcp6 = "[::]:7001"\n',
    ],
    ids=["any port", "another address", "another family"],
)
def test_listeners_that_do_not_meet_may_have_one_port(directory: Path, text: str) -> None:
    assert len(load(directory, text)) == 3
