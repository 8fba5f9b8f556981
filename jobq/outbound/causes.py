"""Why a request got no answer: a stable class, and the likely cause in words for the person who reads the job.

The words name the host, its addresses and its port, never a path, a query or a header: those can hold secrets.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Sequence

from jobq.errors import JobQError
from jobq.net import Address, Target

_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE})
_NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL"})
_UNKNOWN_ISSUER = "is signed by an authority that this worker does not know, or its chain is incomplete"
_VERIFY = {  # OpenSSL's X509_V_ERR_…
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: _UNKNOWN_ISSUER,
    20: _UNKNOWN_ISSUER,
    21: _UNKNOWN_ISSUER,
    62: "is for another host name",
    64: "is for another address",
}


class RequestFailed(JobQError):
    """No answer came, and why. ``code``: blocked, connection_lost, dns, invalid_response, no_resources, refused,
    timed_out, tls or unreachable.
    """  # fmt: skip

    def __init__(self, code: str, message: str, *, retry: bool = True) -> None:
        super().__init__(message, code=code)
        self.retry = retry
        """False: the same request cannot succeed later."""


def dns_failed(host: str, error: OSError) -> RequestFailed:
    """The resolver gave no address."""
    if error.errno in _NO_SUCH_NAME:
        return RequestFailed("dns", f"the name {host} does not exist, or has no address")
    if error.errno == socket.EAI_AGAIN:
        return RequestFailed("dns", f"the name {host} could not be resolved: no name server answered")
    return RequestFailed("dns", f"the name {host} could not be resolved: {error.strerror or error}")


def connect_failed(error: OSError, target: Target, tried: Sequence[Address]) -> RequestFailed:
    """None of the addresses took a connection; the error is that of the last one."""
    where = f"{' or '.join(str(address) for address in tried)} port {target.port}"
    if isinstance(error, ConnectionRefusedError):
        return RequestFailed("refused", f"{where} refused the connection: nothing listens there")
    if error.errno in _NO_RESOURCES:
        how = "raise its limit of open files (ulimit -n), or give it fewer slots"
        return RequestFailed("no_resources", f"this worker cannot open a connection ({words(error)}): {how}")
    how = ": it has no free local port or no such address family" if error.errno == errno.EADDRNOTAVAIL else ""
    return RequestFailed("unreachable", f"{where} cannot be reached from this worker: {words(error)}{how}")


def tls_failed(error: ssl.SSLError, target: Target) -> RequestFailed:
    """The handshake, or what was said after it, is not acceptable."""
    if isinstance(error, ssl.SSLCertVerificationError):
        how = _VERIFY.get(error.verify_code, f"was not accepted: {error.verify_message}")
        return RequestFailed("tls", f"the certificate of {target.host} {how}")
    if error.reason in _NOT_TLS:
        return RequestFailed("tls", f"port {target.port} does not speak TLS: the endpoint may be http://")
    return RequestFailed("tls", f"TLS failed: {(error.reason or 'unknown reason').lower().replace('_', ' ')}")


def answer_invalid(problem: str, target: Target) -> RequestFailed:
    """What came back is no HTTP."""
    if target.scheme == "http" and problem.startswith(r"it begins with b'\x15\x03"):  # a TLS alert
        message = f"port {target.port} speaks TLS: the endpoint may be https://"
    else:
        message = f"the answer is no valid HTTP: {problem}"
    return RequestFailed("invalid_response", message)


def words(error: BaseException) -> str:
    """The system's words for an error, without the addresses that Python adds to them."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or "no answer in its share of the time"
