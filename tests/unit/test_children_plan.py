"""The children of a configuration whose server has several brokers."""

from __future__ import annotations

from pathlib import Path

from bester.bridge.children.plan import plan
from bester.broker import config_file

SEVERAL = """
[fabric]
connect = ["tcp://127.0.0.1:7001", "ipc://fabric.sock", "tcp://b3:7001"]
server_key = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
[handlers.echo]
app = "bester.handlers.stock.echo:app"
[handlers.node]
types = ["a", "b"]
command = ["true", "x"]
workers = 2
[handlers.old]
socket = "old.sock"
"""


def test_handlers_are_linked_to_every_broker_the_own_one_first(tmp_path: Path) -> None:
    (tmp_path / "bester.toml").write_text(SEVERAL)
    config = config_file.load(tmp_path / "bester.toml")
    own = config.fabric.connect[1]
    others = [config.fabric.connect[0], config.fabric.connect[2]]
    children = {child.name: child for child in plan(config, own)}
    names = ["echo", "node.0", "node.0@2", "node.0@3", "node.1", "node.1@2", "node.1@3", "old"]
    assert list(children) == names
    every = ",".join([own, *others])
    fabrics = [children[name].environment["BESTER_FABRIC"] for name in names]
    assert fabrics == [every, own, *others, own, *others, every]
    assert [name for name in names if children[name].elsewhere] == [name for name in names if "@" in name]
    assert {children[name].environment["BESTER_NAME"] for name in names[1:4]} == {"node.0"}
    for child in children.values():
        assert child.environment["BESTER_KEY"] == str(config.key_file)
        assert child.environment["BESTER_SERVER_KEY"] == config.fabric.server_key


def test_keys_are_left_out_where_links_need_none(tmp_path: Path) -> None:
    text = "\n".join(line for line in SEVERAL.splitlines() if not line.startswith("server_key"))
    (tmp_path / "bester.toml").write_text(text)
    config = config_file.load(tmp_path / "bester.toml")
    assert not any("BESTER_KEY" in child.environment for child in plan(config, "ipc://elsewhere"))


def test_one_broker_is_where_this_process_listens(tmp_path: Path) -> None:
    (tmp_path / "bester.toml").write_text(SEVERAL.replace(', "ipc://fabric.sock", "tcp://b3:7001"', ""))
    config = config_file.load(tmp_path / "bester.toml")
    children = plan(config, "ipc:///x")
    assert [child.name for child in children] == ["echo", "node.0", "node.1", "old"]
    assert {child.environment["BESTER_FABRIC"] for child in children} == {"ipc:///x"}
    assert not any("BESTER_KEY" in child.environment for child in children)
