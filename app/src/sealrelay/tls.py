"""TLS contexts for both ends of both hops, and the identity at the other end.

TLS 1.3 only, both sides show a leaf, and only our CA is trusted. OpenSSL's strict mode also asks
of certificates what RFC 5280 asks (key identifiers, critical constraints), forgiven otherwise.
"""

from __future__ import annotations

import ssl

import msgspec

from sealrelay.identity import Identity, IdentityRefused, identify_certificate


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an endpoint's own leaf, its key and the CA that it trusts lie (PEM)."""

    cert: str
    key: str
    ca: str


class KeyLocked(ValueError):
    """A private key that asks for a passphrase: a service has nobody to ask."""


def make_server_context(files: TlsFiles) -> ssl.SSLContext:
    """Context for the accepting side. Raises OSError (ssl.SSLError included) and KeyLocked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would skip the certificate check, and so outlive a revocation.
    context.num_tickets = 0
    _load(context, files)
    return context


def make_client_context(files: TlsFiles, *, check_hostname: bool = True) -> ssl.SSLContext:
    """Context for the connecting side. Raises OSError (ssl.SSLError included) and KeyLocked.

    ``check_hostname=False`` is for callers that compare the peer's whole identity instead.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = check_hostname
    _load(context, files)
    return context


def _load(context: ssl.SSLContext, files: TlsFiles) -> None:
    def refuse_passphrase() -> str:
        raise KeyLocked("the private key is encrypted")

    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key, password=refuse_passphrase)


def peer_identity(sock: ssl.SSLSocket) -> Identity:
    """The identity at the other end of a connection whose handshake is done.

    Raises IdentityRefused when the peer showed no leaf, or one that carries no identity of ours.
    """
    der = sock.getpeercert(binary_form=True)
    if der is None:
        raise IdentityRefused("the peer showed no certificate")
    return identify_certificate(der)


def describe_tls_error(error: ssl.SSLError) -> str:
    """An SSL error in words: OpenSSL's reason, and what it found wrong with the certificate."""
    if isinstance(error, ssl.SSLEOFError):
        return "closed during the handshake"
    reason = (error.reason or "TLS error").replace("_", " ").lower()
    detail = getattr(error, "verify_message", "")
    return f"{reason}: {detail}" if detail else reason
