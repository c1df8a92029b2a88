"""Access to the operator's side: its token, its certificate, and the authorities of operators' certificates.

The files are read at the start, where a fault is a ConfigError, and again after a change. A file that has a fault then
changes nothing, and the log says why.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

from bester.broker import plain_file
from bester.broker.config import OperatorConfig
from bester.broker.descriptors import is_scarce
from bester.broker.logs import facts
from bester.broker.renewal import Reminder, signature
from bester.broker.tls_files import NotYetValidError, Pair, Validity, server_context
from bester.broker.wire.codes import ConfigError

SECTION = "[operator]"
PROTOCOL = "http/1.1"
"""Name of the protocol inside TLS."""
TOKEN_BYTES = 64 * 1024
"""Longest file of a token; more than any header that could carry it."""
OPERATOR = "an operator"
"""Name of somebody whose certificate has none."""

log = logging.getLogger("bester.operator")


class Secrets(NamedTuple):
    """Contents of the files at one reading. `context` is None without TLS."""

    token: str | None
    context: ssl.SSLContext | None
    validity: Validity | None


class Access:
    """The token and the context in use. Raises ConfigError where a file cannot be used. `clock` returns seconds since
    1970; `changed` is called after other files were taken into use."""

    def __init__(self, config: OperatorConfig, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._seen = signature(self._files())
        self._secrets = self._read()
        self._reminder = Reminder()
        self.changed: Callable[[], None] = lambda: None

    @property
    def token(self) -> str | None:
        """Secret that lets in; None where there is none."""
        return self._secrets.token

    @property
    def context(self) -> ssl.SSLContext | None:
        """Context of new connections; None where they are in plain text."""
        return self._secrets.context

    @property
    def is_open(self) -> bool:
        """Return whether everybody who can connect may look."""
        return self._config.token is None and self._config.client_ca is None

    def reload(self) -> None:
        """Read all files again, if there are any. A file that cannot be used keeps those before in use."""
        self._seen = signature(self._files())
        try:
            found = self._read()
        except ConfigError as error:
            text = "the files of the operator's page were not read again, and those before stay in use: %s"
            log.error(text, error, extra=facts("operator-files-refused", why=str(error)))
            if is_scarce(error) or isinstance(error, NotYetValidError):
                self._seen = ()  # the next look tries again
            return
        if self._files():
            self._secrets = found
            self._reminder.begin_anew()
            log.info("the files of the operator's page were read again", extra=facts("operator-files-read"))
            self.changed()

    def look(self) -> None:
        """Read the files again if one has changed, and warn before the certificate ends; call once a minute."""
        if signature(self._files()) != self._seen:
            self.reload()
        due = self._reminder.due(self._secrets.validity, self._clock())
        if due is not None:
            state, until = due
            text = "the certificate of the operator's page %s on %s; renew it"
            log.warning(text, state, until, extra=facts("certificate-expires", until=until))

    def _read(self) -> Secrets:
        token, context, validity = read_token(self._config.token), None, None
        if self._config.cert is not None and self._config.key is not None:
            pair = Pair(self._config.cert, self._config.key)
            context, validity = server_context(pair, self._config.client_ca, self._clock(), SECTION)
            context.set_alpn_protocols([PROTOCOL])
        return Secrets(token, context, validity)

    def _files(self) -> list[Path]:
        config = self._config
        return [each for each in (config.token, config.cert, config.key, config.client_ca) if each is not None]


def read_token(path: Path | None) -> str | None:
    """Return the token in a file. Raises ConfigError where there is none, or where others can read the file."""
    if path is None:
        return None
    try:
        text, mode = plain_file.read(path, TOKEN_BYTES).decode().strip(), path.stat().st_mode
    except OSError as error:
        remedy = f"make it: (umask 077; openssl rand -hex 24 > {path})" if isinstance(error, FileNotFoundError) else ""
        why = f"{error.strerror}; {remedy or 'name the file, or let this user read it'}"
        raise ConfigError(f"[operator] token: {path} cannot be read: {why}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"[operator] token: {path} holds no text; try: openssl rand -hex 24") from None
    if mode & 0o077:
        raise ConfigError(f"[operator] token: {path} can be read by others; chmod 600 {path}")
    if len(text) < 16 or not text.isprintable():
        raise ConfigError(
            f"[operator] token: {path} holds no secret of 16 characters or more; try: openssl rand -hex 24"
        )
    return text


def name_in_certificate(connection: object) -> str | None:
    """Return the name in the certificate that the other side of a TLS connection has shown, and that was verified.

    None where it has shown none, or where `connection` is no connection of TLS.
    """
    shown = connection.getpeercert() if isinstance(connection, ssl.SSLObject | ssl.SSLSocket) else None
    if not shown:
        return None
    rows = cast("tuple[tuple[tuple[str, str], ...], ...]", shown.get("subject", ()))
    names = [value for row in rows for kind, value in row if kind == "commonName"]
    names += [value for _, value in cast("tuple[tuple[str, str], ...]", shown.get("subjectAltName", ()))]
    return names[0] if names else OPERATOR
