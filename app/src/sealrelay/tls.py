"""An endpoint's leaf, key, CAs and CRLs as one set, and TLS contexts made of it for both hops.

TLS 1.3 and P-256 only, both sides show a leaf, and only our CA is trusted. OpenSSL's strict mode
also asks of certificates what RFC 5280 asks (key identifiers, critical constraints), forgiven
otherwise.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from sealrelay.identity import Identity, IdentityRefused, identify_certificate
from sealrelay.trust import CaRefused, CrlRefused, Trust, read_leaf


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an endpoint's own leaf, its key, the CAs that it trusts and their CRLs lie (PEM)."""

    cert: str
    key: str
    ca: str
    crl: str | None = None
    crl_expired: Literal["accept", "refuse"] = "accept"
    """What becomes of peers when the next CRL is due and has not come."""

    @property
    def paths(self) -> dict[str, str]:
        """The files, by their settings."""
        named = {"cert": self.cert, "key": self.key, "ca": self.ca, "crl": self.crl}
        return {key: path for key, path in named.items() if path is not None}

    def listed(self) -> list[Path]:
        """The same, without their settings."""
        return [Path(path) for path in self.paths.values()]


class TlsRefused(ValueError):
    """A file that cannot be used, or does not fit the others. Holds nothing of what is in it."""

    def __init__(self, setting: str, path: str, fact: str) -> None:
        """``setting``: which file of TlsFiles it is."""
        super().__init__(f"{path}: {fact}")
        self.setting, self.path, self.fact = setting, path, fact


class TlsSet:
    """TLS files as they were at one time. They fit together, or there is no set."""

    def __init__(self, files: TlsFiles) -> None:
        """Read them, each once. Raises TlsRefused, also for one that cannot be read."""
        self._files = files
        cert, key, ca = (self._read(setting) for setting in ("cert", "key", "ca"))
        crl = None if files.crl is None else self._read("crl")
        try:
            chain = x509.load_pem_x509_certificates(cert)
        except ValueError:
            raise self._refuse("cert", "not a certificate in PEM") from None
        self._check_key(key, chain[0])
        try:
            self.identity = identify_certificate(chain[0].public_bytes(Encoding.DER))
        except IdentityRefused as refused:
            raise self._refuse("cert", str(refused)) from None
        self.expires = chain[0].not_valid_after_utc.timestamp()
        """When the leaf expires, in seconds since the epoch."""
        try:
            self.trust = Trust(ca, crl, refuse_after_crl=files.crl_expired == "refuse")
        except CaRefused as refused:
            raise self._refuse("ca", str(refused)) from None
        except CrlRefused as refused:
            raise self._refuse("crl", str(refused)) from None
        self._chain = cert + b"\n" + key
        self.make_client_context()  # what OpenSSL does not take is told here

    def shows_the_same(self, other: TlsSet) -> bool:
        """Whether peers are shown the same leaf, of the same key."""
        return self._chain == other._chain

    def make_server_context(self) -> ssl.SSLContext:
        """A context for the accepting side, as of now."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session would skip the certificate check, and so outlive a revocation.
        context.num_tickets = 0
        self._load(context)
        return context

    def make_client_context(self, *, check_hostname: bool = True) -> ssl.SSLContext:
        """A context for the connecting side, as of now.

        ``check_hostname=False`` is for callers that compare the peer's whole identity instead.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = check_hostname
        self._load(context)
        return context

    def identify(self, sock: ssl.SSLSocket) -> Identity:
        """The identity at the other end of a connection whose handshake is done.

        Raises IdentityRefused when the peer showed no leaf, one that carries no identity of ours,
        or one that does not count just now.
        """
        der = peer_certificate(sock)
        self.trust.check(read_leaf(der), time.time())
        return identify_certificate(der)

    def rehearse(self) -> None:
        """Shake hands with itself, in memory: what peers would find wrong shows now.

        For a leaf that both accepts and connects, as services' do. A CRL plays no part. Raises
        TlsRefused.
        """
        accepting, connecting = self.make_server_context(), self.make_client_context()
        connecting.check_hostname = False
        for context in (accepting, connecting):
            context.verify_flags &= ~ssl.VERIFY_CRL_CHECK_LEAF
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        sides = [
            connecting.wrap_bio(back, there),
            accepting.wrap_bio(there, back, server_side=True),
        ]
        try:
            for side in sides * 2:
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        except ssl.SSLError as error:
            raise self._refuse("cert", f"peers would refuse it: {describe_tls_error(error)}") from (
                None
            )

    def _load(self, context: ssl.SSLContext) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The default has groups that nobody needs here. A context takes one, not a list (before
        # Python 3.15), and some Pythons no other kind; this one FIPS allows as well.
        context.set_ecdh_curve("prime256v1")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if self.trust.lets_tls_check_crls(time.time()):
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        with _keep_in_memory(self.trust.pem) as path:
            context.load_verify_locations(cafile=path)
        try:
            with _keep_in_memory(self._chain) as path:
                context.load_cert_chain(path)
        except ssl.SSLError as error:
            raise self._refuse("cert", describe_tls_error(error)) from None

    def _read(self, setting: str) -> bytes:
        path = self._files.paths[setting]
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise self._refuse(setting, error.strerror or "cannot be read") from None

    def _check_key(self, pem: bytes, leaf: x509.Certificate) -> None:
        try:
            key = load_pem_private_key(pem, password=None)
        except TypeError:  # a service has nobody to ask for a passphrase
            raise self._refuse("key", "the key is encrypted") from None
        except (ValueError, UnsupportedAlgorithm):
            raise self._refuse("key", "not a private key in PEM") from None
        if key.public_key() != leaf.public_key():
            raise self._refuse("key", "key and certificate do not fit")

    def _refuse(self, setting: str, fact: str) -> TlsRefused:
        return TlsRefused(setting, self._files.paths[setting], fact)


@contextmanager
def _keep_in_memory(data: bytes) -> Iterator[str]:
    """A path where OpenSSL, which takes no bytes, finds exactly these.

    The files themselves may have changed since they were checked.
    """
    descriptor = os.memfd_create("sealrelay")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def peer_certificate(sock: ssl.SSLSocket) -> bytes:
    """The certificate (DER) at the other end. Raises IdentityRefused when there is none."""
    der = sock.getpeercert(binary_form=True)
    if der is None:
        raise IdentityRefused("the peer showed no certificate")
    return der


def send_close_notify(sock: ssl.SSLSocket) -> None:
    """Say that nothing more comes (RFC 8446 §6.1), if that takes no waiting. Close it afterwards.

    So the peer knows an end that was meant from a connection that somebody cut. Its own
    close_notify is not waited for.
    """
    # ValueError: it is closed. OSError: no handshake was done, or the peer has left or takes no
    # more; or all is well, and OpenSSL has looked for the peer's close_notify in vain.
    with suppress(OSError, ValueError):
        sock.settimeout(0.0)
        sock.unwrap()


def describe_tls_error(error: ssl.SSLError) -> str:
    """An SSL error in words: OpenSSL's reason, and what it found wrong with the certificate."""
    # Which of them it is depends on Python's release.
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "closed during the handshake"
    reason = (error.reason or "TLS error").replace("_", " ").lower()
    detail = getattr(error, "verify_message", "")
    return f"{reason}: {detail}" if detail else reason
