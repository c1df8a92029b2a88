"""TLS contexts from the files of certificates and keys. Every fault of a file is a ConfigError that names the remedy.

Certificates are in PEM: the own one first, then those of the authorities between it and a root. Versions 1.2 and 1.3
are spoken, without renegotiation, compression and session tickets, and with keys agreed on P-256 alone: every peer has
it. Of all other groups OpenSSL would take the large ones of finite fields as well, of which the other side chooses: one
message of a kilobyte (ffdhe8192) would hold the loop for 200 ms, before any certificate and any login.
"""

from __future__ import annotations

import re
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bester.broker import plain_file
from bester.broker.wire.codes import ConfigError

ALPN = "bester/1"
"""Name of the protocol inside TLS; a peer that names none is accepted, as a proxy such as stunnel names none."""
FILE_BYTES = 4 * 1024 * 1024
"""Longest file; all public authorities together take a quarter of a MiB."""

_LABEL = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----")
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_INTEGER, _UTC_TIME, _LONG_TIME, _SEQUENCE, _VERSION = 0x02, 0x17, 0x18, 0x30, 0xA0


class Pair(NamedTuple):
    """Certificate and private key of this server: paths of PEM files, which may be the same file."""

    cert: Path
    key: Path


class NotYetValidError(ConfigError):
    """The certificate begins later, by this machine's clock: the same file can be used then."""


class Validity(NamedTuple):
    """Time in which a certificate is valid, in seconds since 1970."""

    begin: float
    end: float


def server_context(
    pair: Pair, client_ca: Path | None, now: float, section: str = "[native.tls]"
) -> tuple[ssl.SSLContext, Validity]:
    """Return the context of a listener, and the validity of its certificate. Raises ConfigError.

    With `client_ca`, a peer may show a certificate of one of these authorities; a peer with another one is refused.
    `section` is that of the configuration, for errors.
    """
    context = _with_defaults(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    validity = load_pair(context, pair, now, section)
    if client_ca is not None:
        _trust(context, f"{section} client_ca", client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context, validity


def client_context(key: str, ca: Path | None, pair: Pair | None = None, now: float = 0.0) -> ssl.SSLContext:
    """Return the context of a connection to a server; the server's certificate must be for the host's name.

    `ca` holds the authorities that are trusted, None: those of the system. `key` names `ca` in errors. The pair is
    shown to a server that asks for a certificate. Raises ConfigError.
    """
    context = _with_defaults(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.hostname_checks_common_name = False
    curves = [name for each in context.get_ciphers() if (name := str(each["name"])).startswith("ECDHE-")]
    if curves:  # of TLS 1.2; those of 1.3 stay
        context.set_ciphers(":".join(curves))
    if ca is None:
        _trust_system(context)
    else:
        _trust(context, key, ca)
    if pair is not None:
        load_pair(context, pair, now)
    return context


def _with_defaults(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    context.set_ecdh_curve("prime256v1")
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # `ca` may hold the other side's own certificate
    context.set_alpn_protocols([ALPN])
    return context


def load_pair(context: ssl.SSLContext, pair: Pair, now: float, section: str = "[native.tls]") -> Validity:
    """Load this server's certificate and key into a context; return the certificate's validity. Raises ConfigError."""
    cert, key = f"{section} cert = {str(pair.cert)!r}", f"{section} key = {str(pair.key)!r}"
    validity = _validity_of(cert, pair.cert, now)
    _check_key(key, pair.key)
    try:
        context.load_cert_chain(pair.cert, pair.key, password="")  # a key with a passphrase was refused
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            why = "is not the certificate of that key; name a pair, with this server's own certificate first"
        else:
            why = f"cannot be used with {pair.key}: {_words(error)}; make both anew"
        raise ConfigError(f"{cert}: {why}") from None
    except OSError as error:
        raise ConfigError(f"{cert}: cannot read it: {error.strerror}") from None
    return validity


def _trust(context: ssl.SSLContext, key: str, path: Path) -> None:
    """Trust the authorities in a file."""
    what = f"{key} = {str(path)!r}"
    _check_certificate(what, _read(what, path), path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigError(f"{what}: cannot be read as certificates: {_words(error)}; copy the file once more") from None
    except OSError as error:
        raise ConfigError(f"{what}: cannot read it: {error.strerror}") from None


def _trust_system(context: ssl.SSLContext) -> None:
    """Trust the system's authorities, whose file the ssl module silently leaves out where it cannot be opened."""
    context.load_default_certs()
    file = ssl.get_default_verify_paths().cafile
    if file and not context.cert_store_stats()["x509"]:
        _read(f"authorities of the system in {file!r}", Path(file))


def _validity_of(what: str, path: Path, now: float) -> Validity:
    """Return the validity of the first certificate in a file. Raises ConfigError where it is not valid now."""
    text = _read(what, path)
    _check_certificate(what, text, path)
    first = _CERTIFICATE.search(text)
    try:
        if first is None:
            raise ValueError("it has no end")
        validity = validity_of(ssl.PEM_cert_to_DER_cert(first[0].decode("ascii").replace("\r", "")))
    except (ValueError, IndexError):
        raise ConfigError(f"{what}: the certificate is damaged; copy the file once more") from None
    if now > validity.end:
        raise ConfigError(f"{what}: the certificate has expired on {day(validity.end)}; have it renewed")
    if now < validity.begin:
        when = f"is not valid before {day(validity.begin)}, and the clock shows {day(now)}"
        raise NotYetValidError(f"{what}: the certificate {when}; set the clock, or wait")
    return validity


def _read(what: str, path: Path) -> bytes:
    try:
        text = plain_file.read(path, FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{what}: cannot read it: {error.strerror}; name the file, or let this user read it"
        ) from None
    if len(text) > FILE_BYTES:
        raise ConfigError(f"{what}: longer than {FILE_BYTES} bytes; this is no file of certificates")
    return text


def _labels(text: bytes) -> list[str]:
    return [label.decode("ascii") for label in _LABEL.findall(text)]


def _check_certificate(what: str, text: bytes, path: Path) -> None:
    labels = _labels(text)
    if "CERTIFICATE" in labels:
        return
    if any(label.endswith("CERTIFICATE REQUEST") for label in labels):
        why = "is the request for a certificate; name the certificate that the authority has made of it"
    elif any(label.endswith("PRIVATE KEY") for label in labels):
        why = "is a private key; name the certificate here, and the key as key"
    elif text[:1] == b"\x30":
        why = f"is a certificate in DER; convert it: openssl x509 -inform der -in {path} -out {path.stem}.pem"
    else:
        why = "holds no certificate in PEM (-----BEGIN CERTIFICATE-----); name another file"
    raise ConfigError(f"{what}: {why}")


def _check_key(what: str, path: Path) -> None:
    """Check that a file holds a private key that is without passphrase, and that nobody else reads."""
    text = _read(what, path)
    status = path.stat()
    # A key of root may be read by a group, as packages of Debian keep it; otherwise only by its owner.
    forbidden = 0o037 if status.st_uid == 0 else 0o077
    if stat.S_ISREG(status.st_mode) and status.st_mode & forbidden:
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(f"{what}: other users may read the private key (mode {mode:04o}); chmod 600 {path}")
    labels = _labels(text)
    if any(label == "ENCRYPTED PRIVATE KEY" for label in labels) or b"Proc-Type: 4,ENCRYPTED" in text:
        raise ConfigError(f"{what}: the key has a passphrase; write it without: openssl pkey -in {path} -out NEW")
    if not any(label.endswith("PRIVATE KEY") for label in labels):
        why = "is a certificate, and not its private key" if "CERTIFICATE" in labels else "holds no private key in PEM"
        raise ConfigError(f"{what}: {why}; name the key that was made for the certificate")


def _words(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()


def day(seconds: float) -> str:
    """Return a time as people read it, in UTC."""
    return f"{datetime.fromtimestamp(min(max(seconds, 0.0), 253402300799.0), UTC):%Y-%m-%d %H:%M} UTC"


# --- the dates in a certificate -----------------------------------------------------------------------------------


def validity_of(der: bytes) -> Validity:
    """Return the validity of a certificate in DER, which the ssl module shows of verified certificates alone.

    Raises ValueError or IndexError for other bytes.
    """
    _, at, _ = _element(der, 0)  # the certificate
    _, at, _ = _element(der, at)  # the part of it that is signed
    tag, _, end = _element(der, at)
    if tag == _VERSION:
        at = end
    for expected in (_INTEGER, _SEQUENCE, _SEQUENCE):  # serial number, algorithm, issuer
        tag, _, at_next = _element(der, at)
        if tag != expected:
            raise ValueError("it is no certificate")
        at = at_next
    _, at, _ = _element(der, at)
    begin_tag, start, end = _element(der, at)
    end_tag, last_start, last_end = _element(der, end)
    return Validity(_time(begin_tag, der[start:end]), _time(end_tag, der[last_start:last_end]))


def _element(der: bytes, at: int) -> tuple[int, int, int]:
    """Return the tag of the element at an offset, and the offsets of its content's beginning and end."""
    tag, length, start = der[at], der[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        length = int.from_bytes(der[start : start + count], "big")
        start += count
    if start + length > len(der):
        raise ValueError("it is cut off")
    return tag, start, start + length


def _time(tag: int, value: bytes) -> float:
    text = value.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    elif tag != _LONG_TIME:
        raise ValueError("it holds no time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
