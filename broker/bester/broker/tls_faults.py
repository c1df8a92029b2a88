"""Faults of TLS in one sentence each, for the log and for the errors of clients."""

from __future__ import annotations

import ssl

PLAIN_TEXT = "plain text is spoken there, and not TLS: leave tls:// out, or tls = true"
NO_ROOM = "the other side broke the handshake off: no room for a connection, or a fault there"

_EXPIRED, _NOT_YET, _PURPOSE = 10, 9, 26
_UNTRUSTED = frozenset({2, 18, 19, 20, 21})
_OTHER_NAME = frozenset({62, 63, 64})
"""Results of OpenSSL's verification (X509_V_ERR_…)."""

_REFUSED = {
    "UNKNOWN_CA": "its authority is not trusted there",
    "CERTIFICATE_EXPIRED": "it has expired",
    "CERTIFICATE_REVOKED": "it is revoked",
    "CERTIFICATE_UNKNOWN": "it is not accepted there",
    "UNSUPPORTED_CERTIFICATE": "it is not made for this use (extendedKeyUsage)",
    "BAD_CERTIFICATE": "it is for another name, or not valid there",
    "CERTIFICATE_REQUIRED": "there is none, and one is required",
    "ACCESS_DENIED": "access is denied",
}
"""Alerts by which the other side refuses a certificate; such a peer has read nothing of the stream."""
_OTHERS = {
    "PROTOCOL_VERSION": "no version of TLS in common; 1.2 and 1.3 are spoken here",
    "UNSUPPORTED_PROTOCOL": "no version of TLS in common; 1.2 and 1.3 are spoken here",
    "HANDSHAKE_FAILURE": "no cipher in common",
    "NO_SHARED_CIPHER": "no cipher in common",
    "WRONG_VERSION_NUMBER": PLAIN_TEXT,
    "INTERNAL_ERROR": NO_ROOM,
}


class TlsError(ConnectionError):
    """Connection that TLS ended; `str()` is one sentence. `unread`: the other side has read nothing of the stream."""

    def __init__(self, text: str, *, unread: bool = False) -> None:
        super().__init__(text)
        self.unread = unread


def fault_of(error: ssl.SSLError, host: str | None) -> TlsError:
    """Return the fault of a failed handshake or stream; `host` is the server's name, None at the server's side."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsError(_unverified(error, host), unread=True)
    reason = error.reason or ""
    alert = reason.rpartition("ALERT_")[2]
    refused = _REFUSED.get(alert)
    if refused is not None:
        whose = "this server's certificate" if host is None else "this side's certificate"
        return TlsError(f"the other side refuses {whose}: {refused}", unread=True)
    text = _OTHERS.get(alert) or (reason or str(error)).replace("_", " ").lower()
    return TlsError(text, unread=alert in _OTHERS)


def _unverified(error: ssl.SSLCertVerificationError, host: str | None) -> str:
    whose = "its certificate" if host is None else f"the certificate of {host}"
    match error.verify_code:
        case code if code in _OTHER_NAME:
            return f"the certificate there is for another host, and not for {host}"
        case code if code in _UNTRUSTED:
            where = "in client_ca" if host is None else "trusted here; name the file of that authority as ca (--ca)"
            return f"{whose} is signed by no authority {where}"
        case code if code == _EXPIRED:
            return f"{whose} has expired"
        case code if code == _NOT_YET:
            return f"{whose} is not valid yet; see that the clocks of both machines are right"
        case code if code == _PURPOSE:
            return f"{whose} is not made for a {'client' if host is None else 'server'} (extendedKeyUsage)"
    return f"{whose} is refused: {error.verify_message}"
