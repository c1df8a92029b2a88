"""Programs that the benchmark needs beside this project: a compiler, the peers and their clients. Missing ones are
installed.

Debian's packages through apt-get, where we are root; the clients from PyPI into this very environment. Each step is
bounded in time; a missing program ends the benchmark with one line that says how to get it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALL_TIMEOUT_S = 300.0  # a slow mirror; a hanging one is given up
COMPILE_TIMEOUT_S = 60.0  # takes one second; a loaded machine many
OPENSSL = Path("/usr/include/openssl/ssl.h")
RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # Debian's directories for servers, outside many users' PATH


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text is one line: the fault and its mend."""


def _succeeds(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=INSTALL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), ADMIN_PATH)))


def _debian_program(name: str, *packages: str) -> str:
    """Return the path of a program; install Debian's packages for a missing one."""
    found = _program(name)
    if not found:
        _install(name, packages)
        found = _program(name)
    if not found:
        raise BenchmarkError(f"{name} is missing although {' '.join(packages)} was installed")
    return found


def _debian_file(path: Path, package: str) -> None:
    """Install Debian's package for a file that is missing."""
    if not path.exists():
        _install(path.name, (package,))


def _install(name: str, packages: Sequence[str]) -> None:
    by_hand = f"apt-get install {' '.join(packages)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise BenchmarkError(f"{name} is missing and only root on Debian can add it here: {by_hand}")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if not _succeeds(install):
        _succeeds(["apt-get", "update"])  # a machine that has never looked knows no packages
        if not _succeeds(install):
            raise BenchmarkError(f"{name} is missing and could not be installed; try by hand: {by_hand}")


def nats_server() -> str:
    """Return the path of nats-server."""
    return _debian_program("nats-server", "nats-server")


def rabbitmq_server() -> str:
    """Return the path of rabbitmq-server: the program itself, where Debian's script before it would change the user."""
    found = _debian_program("rabbitmq-server", "rabbitmq-server")
    return str(RABBITMQ) if RABBITMQ.exists() else found


def epmd() -> str:
    """Return the path of epmd, the name server of Erlang's nodes; it comes with rabbitmq-server."""
    return _debian_program("epmd", "erlang-base")


def require_clients() -> None:
    """Make sure that this environment can import the peers' clients, in the versions that pyproject.toml asks for."""
    if all(importlib.util.find_spec(module) for module in ("nats", "aio_pika")):
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted: list[str] = project["project"]["optional-dependencies"]["bench"]
    # An environment made without pip uses the pip of the Python that made the environment.
    outer = getattr(sys, "_base_executable", sys.executable)
    inside = [sys.executable, "-m", "pip", "install", *wanted]
    outside = [outer, "-m", "pip", "--python", sys.executable, "install", *wanted]
    if not (_succeeds(inside) or _succeeds(outside)):
        by_hand = " ".join(f"'{each}'" for each in wanted)
        raise BenchmarkError(f"nats-py or aio-pika is missing and could not be installed: pip install {by_hand}")
    importlib.invalidate_caches()


def load_generator(folder: Path, name: str = "loadgen", *, tls: bool = False) -> Path:
    """Compile a load generator (`loadgen`, `flood` or `honest`) into `folder` and return its path."""
    if not tls:
        return compiled(folder, name, ())
    _debian_file(OPENSSL, "libssl-dev")
    return compiled(folder, name, ("-DWITH_TLS",), ("-lssl", "-lcrypto"))


def compiled(folder: Path, name: str, flags: Sequence[str], libraries: Sequence[str] = ()) -> Path:
    """Compile `name`.c of this package into `folder`, with more flags and libraries; return the result's path."""
    compiler = _debian_program("gcc", "gcc", "libc6-dev")
    target = folder / name
    source = Path(__file__).with_name(f"{name}.c")
    command = [compiler, "-O2", "-Wall", "-Wextra", *flags, "-o", str(target), str(source), *libraries]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{compiler} did not finish within {COMPILE_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        first = next(iter(done.stderr.splitlines()), f"exit status {done.returncode}")
        raise BenchmarkError(f"{name}.c does not compile (apt-get install gcc libc6-dev?): {first}")
    return target
