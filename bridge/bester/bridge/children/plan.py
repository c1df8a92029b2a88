"""The child processes that a configuration asks for: one for each worker of each handler."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from bester.broker.config import Config, HandlerConfig
from bester.broker.postgres import SECRET_VARIABLES
from bester.broker.wire.codes import ConfigError

TYPES = "BESTER_TYPES"
"""The variable that names the message types of a handler, separated by commas."""

SHADOW = "BESTER_SHADOW"
"""The variable that makes a handler a shadow; a program that does not know the variable is one by its name."""


@dataclass(frozen=True, slots=True)
class Child:
    """Process to keep running: `argv` with these variables added to the environment, and without those `withheld`.

    With `lifeline` its standard input is a pipe that ends when this process does, else empty. `serves` is the Unix
    socket that the child will serve: the child is not started while another process serves that socket.
    Messages never wait for a `shadow`. A child `elsewhere` serves another broker than this process.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    lifeline: bool = False
    shadow: bool = False
    serves: Path | None = None
    withheld: Collection[str] = ()
    elsewhere: bool = False

    @property
    def types(self) -> frozenset[str]:
        """Message types that the child serves."""
        return frozenset(filter(None, self.environment.get(TYPES, "").split(",")))


def plan(config: Config, fabric: str) -> list[Child]:
    """Return a child for each worker of each handler. The children connect to `fabric`, the URL of this broker, or to
    all brokers of `[fabric] connect` where the server has several: Bester's own program is linked to all of them, this
    one first, and of any other program, which may know one URL alone, a process runs for each broker.

    Raises ConfigError for a command whose program is missing, and for an app whose module is missing.
    """
    children: list[Child] = []
    several = len(config.fabric.connect) > 1
    brokers = sorted(config.fabric.connect, key=lambda broker: broker != fabric) if several else [fabric]
    # Without a store in PostgreSQL such a variable is meant for the handlers.
    withheld = SECRET_VARIABLES if config.store.database is not None else ()
    for handler in config.handlers:
        command = _command(config, handler)
        fault = None if handler.app is None else module_fault(handler.app, config.directory)
        if fault is not None:
            raise ConfigError(f"{config.path}: [handlers.{handler.name}] app: {fault}")
        for index, name in enumerate(handler.process_names):
            environment = {
                "BESTER_FABRIC": ",".join(brokers),
                TYPES: ",".join(handler.types),
                "BESTER_NAME": name,
                "BESTER_DATA": str(config.server.data_dir.absolute() / "handlers" / handler.name),
            }
            if handler.shadow:
                environment[SHADOW] = "1"
            if several and config.fabric.server_key is not None:
                environment |= {"BESTER_KEY": str(config.key_file), "BESTER_SERVER_KEY": config.fabric.server_key}
            shadow = handler.shadow
            if not command:
                argv = _python(handler, index)
                children.append(Child(name, argv, environment, lifeline=True, shadow=shadow, withheld=withheld))
                continue
            for number, broker in enumerate(brokers, 1):
                known = environment | {"BESTER_FABRIC": broker}
                label, elsewhere = (name, False) if number == 1 else (f"{name}@{number}", True)
                children.append(Child(label, command, known, shadow=shadow, withheld=withheld, elsewhere=elsewhere))
        if handler.program:
            name = f"{handler.name}.program"
            children.append(Child(name, handler.program, {}, serves=handler.socket, withheld=withheld))
    return children


def _python(handler: HandlerConfig, index: int) -> tuple[str, ...]:
    what = (handler.app,) if handler.app else ("--socket", str(handler.socket), "--order", handler.order)
    level = ("--log-level", "debug") if logging.getLogger().isEnabledFor(logging.DEBUG) else ()
    return (sys.executable, "-m", "bester.handlers", *what, "--log", "json", *level, "--child", str(index))


def _command(config: Config, handler: HandlerConfig) -> tuple[str, ...]:
    if not handler.command:
        return ()
    program, *arguments = handler.command
    # As a shell in the configuration's directory would find it.
    found = shutil.which(str(config.directory / program) if os.sep in program else program)
    if found is None:
        where = f"{config.path}: [handlers.{handler.name}] command"
        raise ConfigError(f"{where}: no program {program!r} is found; install it, or write its path")
    return (found, *arguments)


def module_fault(app: str, directory: Path) -> str | None:
    """Return the fault of an app whose module is missing, None where it is there; the child itself reports a fault
    inside the module."""
    module = app.partition(":")[0]
    if _is_there(module, directory):
        return None
    return f"there is no module {module!r} in {directory} or among the installed ones; correct its name, or install it"


def _is_there(module: str, directory: Path) -> bool:
    """Return whether Python would find a module from `directory`, without an import; True when in doubt."""
    importlib.invalidate_caches()
    top, *inner = module.split(".")
    try:
        spec = PathFinder.find_spec(top, [str(directory), *sys.path]) or importlib.util.find_spec(top)
        for part in inner:
            if spec is None or spec.submodule_search_locations is None:
                return False
            spec = PathFinder.find_spec(f"{spec.name}.{part}", spec.submodule_search_locations)
    except (ImportError, KeyError, ValueError):  # such as a folder without __init__.py inside another
        return True
    return spec is not None
