"""Who a peer is, and which endpoint its role may call. The one place where both are decided.

An identity is the single URI SAN of an X.509 leaf, ``spiffe://<trust domain>/<role>/<name>``, after
the SPIFFE-ID and X509-SVID standards, which also ask for exactly one URI. DNS names, addresses and
the subject say how to reach a peer and play no part here.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from cryptography import x509


class Role(str, enum.Enum):
    """What a peer is for; the first segment of its identity's path."""

    CLIENT = "client"
    COORDINATOR = "coordinator"
    SERVER = "server"
    OPERATOR = "operator"


class Endpoint(enum.Enum):
    """Every endpoint there is, as (service, method, path)."""

    COORDINATOR_DATA = (Role.COORDINATOR, "POST", "/api/data")
    COORDINATOR_HEALTH = (Role.COORDINATOR, "GET", "/healthz")
    COORDINATOR_STATUS = (Role.COORDINATOR, "GET", "/api/status")
    COORDINATOR_PAGE = (Role.COORDINATOR, "GET", "/status")
    COORDINATOR_METRICS = (Role.COORDINATOR, "GET", "/metrics")
    SERVER_DATA = (Role.SERVER, "POST", "/api/data")
    SERVER_BATCH = (Role.SERVER, "POST", "/api/batch")
    SERVER_HEALTH = (Role.SERVER, "GET", "/healthz")
    SERVER_METRICS = (Role.SERVER, "GET", "/metrics")


MAY_CALL: Mapping[Endpoint, frozenset[Role]] = MappingProxyType(
    {
        Endpoint.COORDINATOR_DATA: frozenset({Role.CLIENT}),
        # a service proves its own health to systemd with its own leaf
        Endpoint.COORDINATOR_HEALTH: frozenset({Role.COORDINATOR, Role.OPERATOR}),
        # how much traffic there is, and from where it is stored, is nobody else's business
        Endpoint.COORDINATOR_STATUS: frozenset({Role.OPERATOR}),
        Endpoint.COORDINATOR_PAGE: frozenset({Role.OPERATOR}),
        Endpoint.COORDINATOR_METRICS: frozenset({Role.OPERATOR}),
        Endpoint.SERVER_DATA: frozenset({Role.COORDINATOR}),
        Endpoint.SERVER_BATCH: frozenset({Role.COORDINATOR}),
        Endpoint.SERVER_HEALTH: frozenset({Role.COORDINATOR, Role.SERVER, Role.OPERATOR}),
        Endpoint.SERVER_METRICS: frozenset({Role.OPERATOR}),
    }
)

# Lower-case trust domain; a name is also a file name (a keyring's), so it cannot begin with a dot.
_TRUST_DOMAIN = r"[a-z0-9](?:[a-z0-9._-]{0,253}[a-z0-9])?"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}"
_SPIFFE_ID = re.compile(
    rf"spiffe://(?P<domain>{_TRUST_DOMAIN})/(?P<role>[a-z]+)/(?P<name>{_NAME})", re.ASCII
)
NAME = re.compile(_NAME, re.ASCII)
TRUST_DOMAIN = re.compile(_TRUST_DOMAIN, re.ASCII)


class IdentityRefused(Exception):
    """A certificate that carries no identity of ours; the text names the fact, not the remedy."""


class LeafRefused(IdentityRefused):
    """A leaf that does not count, or no longer: revoked, out of its time, of a CA not trusted."""


@dataclass(frozen=True)
class Identity:
    """A peer: ``spiffe://<trust_domain>/<role>/<name>``."""

    trust_domain: str
    role: Role
    name: str

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self.role.value}/{self.name}"

    @property
    def label(self) -> str:
        """The short form for logs, ``<role>/<name>``."""
        return f"{self.role.value}/{self.name}"


def parse_identity(uri: str) -> Identity:
    """Read a SPIFFE ID of ours, in its one canonical form.

    Raises IdentityRefused for any other text: another scheme, upper case in the trust domain, user
    info, port, percent-encoding, query, empty segments, an unknown role.
    """
    match = _SPIFFE_ID.fullmatch(uri)
    if match is None:
        raise IdentityRefused("the URI is not of the form spiffe://<trust domain>/<role>/<name>")
    try:
        role = Role(match["role"])
    except ValueError:
        raise IdentityRefused("the URI names no role of sealrelay") from None
    return Identity(match["domain"], role, match["name"])


@lru_cache(maxsize=4096)
def identify_certificate(der: bytes) -> Identity:
    """Read the identity of a leaf that TLS has already verified; ``der`` is its DER encoding.

    Raises IdentityRefused unless the leaf has exactly one URI SAN and that is an identity of ours,
    and for a CA's certificate: one key does not both make identities and have one (X509-SVID §4.1).
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        is_ca = any(
            isinstance(extension.value, x509.BasicConstraints) and extension.value.ca
            for extension in certificate.extensions
        )
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        raise IdentityRefused("the certificate has no URI SAN") from None
    except (
        ValueError,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ):
        raise IdentityRefused("the certificate cannot be read") from None
    if is_ca:
        raise IdentityRefused("the certificate is a CA's")
    if len(uris) != 1:
        raise IdentityRefused(f"the certificate has {len(uris)} URI SANs instead of one")
    return parse_identity(uris[0])


def may_call(peer: Identity, endpoint: Endpoint, trust_domain: str) -> bool:
    """Whether ``peer`` belongs to ``trust_domain`` and its role may call ``endpoint``."""
    return peer.trust_domain == trust_domain and peer.role in MAY_CALL[endpoint]
