"""The RabbitMQ side: rabbitmq-server on ports and in a folder of its own, and an aio-pika consumer.

The server takes no configuration of this machine, and its Erlang node is known to an epmd that ends with the side.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.benchmarks.processes import Running, free_port
from tests.benchmarks.programs import epmd, rabbitmq_server
from tests.benchmarks.sides import Side

SHARE = 10
"""A run has a tenth of the messages: at some thousand a second the whole would take minutes."""


@contextmanager
def rabbitmq(folder: Path) -> Iterator[Side]:
    """Run rabbitmq-server with messages in memory alone, and an aio-pika consumer without acknowledgements."""
    port, names, distribution = free_port(), free_port(), free_port()
    (folder / "plugins").write_text("[].")
    settings = {
        "HOME": folder,
        "ERL_EPMD_PORT": names,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": distribution,
        "RABBITMQ_MNESIA_BASE": folder / "data",
        "RABBITMQ_LOG_BASE": folder / "log",
        "RABBITMQ_LOGS": "-",
        "RABBITMQ_ENABLED_PLUGINS_FILE": folder / "plugins",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": folder / "none",
    }
    environment = ["env", *(f"{name}={value}" for name, value in settings.items())]
    with ExitStack() as stack:
        stack.enter_context(Running("epmd", [epmd(), "-port", str(names), "-address", "127.0.0.1"], folder))
        server = stack.enter_context(Running("rabbitmq-server", [*environment, rabbitmq_server()], folder))
        server.wait_until(lambda: "Server startup complete" in server.log())
        script = str(Path(__file__).with_name("amqp_echo.py"))
        command = [sys.executable, script, f"amqp://guest:guest@127.0.0.1:{port}/"]
        handler = stack.enter_context(Running("aio-pika", command, folder))
        handler.wait_until(lambda: "consuming" in handler.log())
        yield Side("rabbitmq", "amqp", port, {"server": server, "handler": handler}, part=SHARE)
