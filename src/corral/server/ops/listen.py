"""The port that a server listens on, and its certificate: looked at before anything is loaded."""

from __future__ import annotations

import errno
import socket
import ssl
from pathlib import Path

from corral.errors import ConfigError
from corral.server.settings import ServerSettings


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that is bound to the settings' address, and listens.

    Raises:
        ConfigError: the port is taken, not allowed, or the address is not one of this machine.
    """
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        raise ConfigError(f"host is {settings.host!r}, which is no address of this machine") from None
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)
        bound.setblocking(False)
    except OSError as error:
        bound.close()
        raise ConfigError(_in_words(settings, error)) from None
    return bound


def address_of(settings: ServerSettings, bound: socket.socket) -> str:
    """The address of a server as one writes it in a browser."""
    host, port = bound.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "localhost"
    scheme = "https" if settings.tls_cert is not None else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def check_certificate(cert: Path | None, key: Path | None) -> None:
    """Raises ConfigError where a certificate and its key cannot be used."""
    if cert is None or key is None:
        return
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{name}: {path} cannot be read: {error.strerror or error}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_password)
    except _PasswordError:
        raise ConfigError(f"tls_key: {key} is locked with a password; give one without") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"tls_key: {key} is not the key of the certificate {cert}") from None
        raise ConfigError(
            f"tls_cert, tls_key: {cert} and {key} are no PEM files of a certificate and its key"
        ) from None


class _PasswordError(Exception):
    pass


def _no_password() -> str:
    raise _PasswordError


def _in_words(settings: ServerSettings, error: OSError) -> str:
    where = f"port {settings.port} on {settings.host}"
    if error.errno == errno.EADDRINUSE:
        return f"{where} is taken by another program; choose another with --port"
    if error.errno == errno.EACCES:
        return f"{where} may only be used by the administrator; choose one above 1023 with --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host is {settings.host!r}, which is no address of this machine"
    return f"{where} cannot be used: {error.strerror or error}"
