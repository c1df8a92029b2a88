"""TLS of one bridge: the contexts of its listeners and of its connections to other servers, read again after changes.

Files with a fault are refused at the start; later the contexts that are in use stay, and the log says why. Connections
keep the context that they began with.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bester.broker.config import Config, PeerConfig
from bester.broker.descriptors import is_scarce
from bester.broker.logs import facts
from bester.broker.renewal import LOOK_S, Reminder, signature
from bester.broker.tls_faults import TlsError
from bester.broker.tls_files import NotYetValidError, Pair, Validity, client_context, day, server_context
from bester.broker.wire.address import canonical
from bester.broker.wire.codes import ConfigError

log = logging.getLogger("bester.bridge")


class Contexts(NamedTuple):
    """Contexts of one reading: of the listeners, and of each server with TLS by its address."""

    listener: ssl.SSLContext | None
    validity: Validity | None
    servers: dict[str, ssl.SSLContext]


class Certificates:
    """Contexts in use. Raises ConfigError where a file cannot be used. `clock` returns seconds since 1970."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        self._seen = signature(_files(config))
        self._contexts = self._read(config)
        self._reminder = Reminder()
        self._any_server: ssl.SSLContext | None = None

    def figures(self) -> dict[str, int]:
        """Return the end of the own certificate, in seconds since 1970, by its name among the bridge's figures; nothing
        where there is none."""
        validity = self._contexts.validity
        return {} if validity is None else {"certificate_end_seconds": int(validity.end)}

    @property
    def listener(self) -> ssl.SSLContext:
        """Context of new connections to the TLS listeners, which there are."""
        assert self._contexts.listener is not None
        return self._contexts.listener

    def of_server(self, address: str, tls: bool) -> ssl.SSLContext | None:
        """Return the context for a server at `host:port`; None where it speaks plain text. `tls` is the broker's word,
        for a server that this bridge's own configuration does not list. Raises TlsError where the system's authorities
        cannot be read now."""
        context = self._contexts.servers.get(address)
        if context is None and tls:
            if self._any_server is None:
                try:
                    self._any_server = client_context("", None)
                except ConfigError as error:  # no descriptor now; a later message may find one
                    raise TlsError(str(error), unread=True) from None
            context = self._any_server
        return context

    def prepare(self, config: Config) -> Callable[[], None]:
        """Return a function that takes in the list of servers of a configuration that was read again, and all files;
        the paths of this server's own files stay.

        Raises ConfigError where a file cannot be used and a server with TLS is new, or has changed: the server would
        have no context. Without such a server, a file that cannot be used keeps those before in use, as in `reload`.
        """
        before, servers = self._config.servers, config.servers
        new = replace(self._config, servers=servers)
        needed = any(peer.tls and peer != before.get(name) for name, peer in servers.items())
        seen, contexts = signature(_files(new)), self._read(new) if needed else None

        def apply() -> None:
            """Use the servers and files that were read."""
            self._config = new
            used = {address: each for address, each in self._contexts.servers.items() if address in _addresses(new)}
            self._contexts = self._contexts._replace(servers=used)
            if contexts is not None:
                self._seen = seen
                self._use(contexts)
            elif self.is_used:
                self.reload()
            else:
                self._seen = seen

        return apply

    def reload(self) -> bool:
        """Read all files again. Return False, and keep everything as it was, where a file cannot be used."""
        self._seen = signature(_files(self._config))
        try:
            contexts = self._read(self._config)
        except ConfigError as error:
            text = "the certificates were not read again, and those before stay in use: %s"
            log.error(text, error, extra=facts("certificates-refused", why=str(error)))
            if is_scarce(error) or isinstance(error, NotYetValidError):
                self._seen = ()  # the next look tries again
            return False
        self._use(contexts)
        return True

    def _use(self, contexts: Contexts) -> None:
        """Take the contexts of a new reading into use."""
        self._contexts = contexts
        self._reminder.begin_anew()
        validity = self._contexts.validity
        until = "" if validity is None else f"; this server's is valid until {day(validity.end)}"
        log.info("the certificates were read again%s", until, extra=facts("certificates-read"))
        self._remind()

    def look(self) -> None:
        """Read the files again if one has changed, and warn before the own certificate ends; call once a minute."""
        if signature(_files(self._config)) != self._seen:
            self.reload()
        self._remind()

    @property
    def is_used(self) -> bool:
        """Return whether there is any file to read."""
        return bool(_files(self._config))

    def _read(self, config: Config) -> Contexts:
        tls, now = config.native.tls, self._clock()
        pair = None if tls is None else Pair(tls.cert, tls.key)
        listener = validity = None
        if tls is not None and pair is not None:
            listener, validity = server_context(pair, tls.client_ca, now)
        servers = {
            address: client_context(f"[servers.{peer.name}] ca", peer.ca, pair, now)
            for address, peer in _addresses(config).items()
        }
        return Contexts(listener, validity, servers)

    def _remind(self) -> None:
        due = self._reminder.due(self._contexts.validity, self._clock())
        if due is not None:
            state, until = due
            extra = facts("certificate-expires", until=until)
            log.warning("this server's certificate %s on %s; renew it", state, until, extra=extra)


def _addresses(config: Config) -> dict[str, PeerConfig]:
    """Return the servers with TLS by address."""
    return {
        str(canonical(peer.native)): peer for peer in config.servers.values() if peer.tls and peer.native is not None
    }


def _files(config: Config) -> list[Path]:
    tls = config.native.tls
    own = [] if tls is None else [tls.cert, tls.key, *([] if tls.client_ca is None else [tls.client_ca])]
    return own + [peer.ca for peer in config.servers.values() if peer.ca is not None]


class Watch:
    """Looks at the files every `look_s` seconds, until `stop`."""

    def __init__(self, certificates: Certificates, look_s: float = LOOK_S) -> None:
        self._certificates = certificates
        self._look_s = look_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._timer = self._loop.call_later(self._look_s, self._look)
        self._certificates.look()

    def stop(self) -> None:
        """Look no more."""
        self._timer.cancel()
