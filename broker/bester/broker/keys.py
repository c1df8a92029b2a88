"""CURVE key pairs in files: one line with the secret key, mode 0600. The public key follows from the secret one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq

from bester.broker.new_file import write
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.keys import key_fault, must_encrypt, parse_key

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

MAX_FILE = 4096
"""Bytes read of a key file: far more than a key and its line end."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A pair of keys, each 40 characters of Z85."""

    public: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """Keys of the connecting side of an encrypted link: the own pair, and the public key of the other side."""

    pair: KeyPair
    server: str

    def set_on(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket, not connected yet, speak CURVE with these keys."""
        socket.curve_publickey = self.pair.public.encode()
        socket.curve_secretkey = self.pair.secret.encode()
        socket.curve_serverkey = self.server.encode()


def new_pair() -> KeyPair:
    """Return a new pair. Raises ConfigError where this machine's ZeroMQ has no CURVE."""
    _require_curve()
    public, secret = zmq.curve_keypair()
    return KeyPair(public.decode(), secret.decode())


def read_pair(path: Path) -> KeyPair:
    """Read the pair of a key file. Raises ConfigError for a missing or damaged file, and for one that others can
    read."""
    _require_curve()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        remedy = (
            "`bester keys new FILE` makes a pair" if isinstance(error, FileNotFoundError) else "see that it is yours"
        )
        raise ConfigError(f"{path}: {error.strerror}; {remedy}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is no file, so it holds no key; name the file of the secret key")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise ConfigError(f"{path}: other users may open this secret key (mode {mode:04o}); chmod 600 it")
        text = os.read(descriptor, MAX_FILE).decode("ascii", "replace").strip()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; see that the disk is well") from None
    finally:
        os.close(descriptor)
    fault = "the file is empty" if not text else key_fault(text)
    if fault is not None:
        raise ConfigError(
            f"{path}: holds no secret key: {fault}; restore it from a backup, or remove it for a new "
            "pair, whose public key the other sides then need"
        )
    return KeyPair(zmq.curve_public(text.encode()).decode(), text)


def server_pair(path: Path) -> KeyPair:
    """Return the pair of a server's key file, made now where there is none. Raises ConfigError."""
    with contextlib.suppress(FileExistsError):
        if not os.path.lexists(path):
            write_secret(path, new_pair().secret)
    return read_pair(path)


def write_secret(path: Path, secret: str) -> None:
    """Write a new key file, whole or not at all. Raises FileExistsError where there is one, ConfigError where none can
    be written."""
    try:
        write(f"{secret}\n".encode("ascii"), path)
    except FileExistsError:
        raise
    except OSError as error:
        remedy = _remedy(error, "name a file of your own")
        raise ConfigError(f"{path}: the key cannot be written: {error.strerror}; {remedy}") from None


def write_public(path: Path, public: str) -> None:
    """Write the file of a public key, in place of an older one. Raises ConfigError."""
    try:
        path.write_text(f"{public}\n", encoding="ascii")
    except OSError as error:
        if error.errno in NO_ROOM:  # the file is there, and holds nothing
            path.unlink(missing_ok=True)
        remedy = _remedy(error, "see that the path is yours")
        raise ConfigError(f"{path}: the public key cannot be written: {error.strerror}; {remedy}") from None


def _remedy(error: OSError, other: str) -> str:
    return "make room on its disk" if error.errno in NO_ROOM else other


def link_keys(endpoint: str, key_file: Path | None, server_key: str | None, names: tuple[str, str]) -> LinkKeys | None:
    """Return the keys for a link to an endpoint, None where the link is not encrypted.

    `names` are the user's words for `key_file` and `server_key`. Raises ConfigError where keys are missing or damaged.
    """
    key_name, server_name = names
    if server_key is None and (key_file is None or not must_encrypt(endpoint)):
        if must_encrypt(endpoint):
            text = f"{endpoint} is beyond this machine, where links are encrypted; give {key_name} and {server_name}"
            raise ConfigError(text)
        return None
    if endpoint.startswith("ipc://"):
        return None  # keys may stand in an environment that several programs share
    if server_key is None:
        raise ConfigError(f"{key_name} without {server_name}: give the server's public key, which `bester keys` prints")
    if key_file is None:
        raise ConfigError(f"{server_name} without {key_name}: name a key file, which `bester keys new FILE` makes")
    try:
        public = parse_key(server_key)
    except ValueError as error:
        raise ConfigError(f"{server_name}: {error}; `bester keys` prints the key at the server") from None
    return LinkKeys(read_pair(key_file), public)


def refuse_unused(endpoints: Iterable[str], key: str | None, server_key: str | None, *, known: bool) -> None:
    """Raise ConfigError for keys of the command line that encrypt nothing. `known`: the environment or the
    configuration has the server's key."""
    given = [name for name, value in (("--key", key), ("--server-key", server_key)) if value is not None]
    if given and all(endpoint.startswith("ipc://") for endpoint in endpoints):
        text = f"{' and '.join(given)}: links over ipc:// stay on this machine, and are never encrypted"
        raise ConfigError(f"{text}; leave the option out, or name a tcp:// address with --fabric")
    if key is not None and server_key is None and not known:
        raise ConfigError("--key FILE without --server-key KEY (or BESTER_SERVER_KEY) encrypts nothing; give both")


def _require_curve() -> None:
    if not zmq.has("curve"):
        raise ConfigError(
            "ZeroMQ on this machine was built without CURVE; install pyzmq with libsodium, as PyPI has it"
        )
