"""Lines of keys in a configuration file: mistakes are named with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bester.broker.toml_table import Source


@pytest.mark.parametrize(
    ("text", "section", "key", "line"),
    [
        ("\n[types.'my chat']\nusers = 1\n", "types.my chat", "users", 3),
        ('\n[types."a\\u0062c"]\nusers = 1\n', "types.abc", "users", 3),
        ('[servers . "s1.example"]\nnative = 1\n', "servers.s1.example", "native", 2),
        ("[handlers.'x y']\n", "handlers.x y", None, 1),
        ("# none\nnative.max_frame = 1\n", "native", "max_frame", 2),
        ("handlers = {x = {app = 5}}\n", "handlers.x", "app", 1),
        ("[handlers]\nx = {app = 5}\ny = {app = 5}\n", "handlers.y", "app", 3),
        ('[native]\n# max_frame = 5\n"max_frame"\t= 5\n', "native", "max_frame", 3),
        ("[native.tls]\n[sever.x]\n", "", "sever", 2),
        ("# a\x0cb\u2028c\u0085d\n[server]\nname = 1\n", "server", "name", 3),
        ("[server]\r\nname = 1\r\n", "server", "name", 2),
        ('[log]\ntext = """\n[a = {} #]\n"""\n[server]\nname = 1\n', "server", "name", 6),
        ("[server]\n", "server", "name", None),
    ],
)
def test_line_of_a_key(tmp_path: Path, text: str, section: str, key: str | None, line: int | None) -> None:
    file = tmp_path / "bester.toml"
    file.write_bytes(text.encode())
    assert Source(file).line(section, key) == line
