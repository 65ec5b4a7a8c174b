"""Who is who, and who may call what."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from sealrelay.identity import (
    MAY_CALL,
    Endpoint,
    Identity,
    IdentityRefused,
    Role,
    identify_certificate,
    may_call,
    parse_identity,
)
from tests.support.pki import TRUST_DOMAIN, Authority, Leaf, spiffe_id

GOOD = "spiffe://sealrelay.internal/client/client1"


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("name", ["client1", "node1-5001", "a", "_x", "A.b_c-9", "n" * 63])
def test_canonical_identity_is_read_and_spelled_the_same(role: Role, name: str) -> None:
    uri = f"spiffe://sealrelay.internal/{role.value}/{name}"
    identity = parse_identity(uri)
    assert identity == Identity("sealrelay.internal", role, name)
    assert str(identity) == uri
    assert identity.label == f"{role.value}/{name}"


@pytest.mark.parametrize("domain", ["x", "a-b.c_d", "10.0.0.1", "d" * 255])
def test_trust_domain_may_be_what_the_standard_allows(domain: str) -> None:
    assert parse_identity(f"spiffe://{domain}/server/s1").trust_domain == domain


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "client1",
        "client/client1",
        "https://sealrelay.internal/client/client1",
        "SPIFFE://sealrelay.internal/client/client1",
        "spiffe:sealrelay.internal/client/client1",
        "spiffe:/sealrelay.internal/client/client1",
        "spiffe:///client/client1",
        "spiffe://Sealrelay.internal/client/client1",
        "spiffe://sealrelay.internal./client/client1",
        "spiffe://.sealrelay.internal/client/client1",
        "spiffe://-sealrelay.internal/client/client1",
        "spiffe://root@sealrelay.internal/client/client1",
        "spiffe://sealrelay.internal:443/client/client1",
        "spiffe://sealrelay%2einternal/client/client1",
        "spiffe://s\N{LATIN SMALL LETTER E WITH ACUTE}al/client/client1",
        f"spiffe://{'d' * 256}/client/client1",
        "spiffe://sealrelay.internal",
        "spiffe://sealrelay.internal/",
        "spiffe://sealrelay.internal/client",
        "spiffe://sealrelay.internal/client/",
        "spiffe://sealrelay.internal/client1",
        "spiffe://sealrelay.internal//client/client1",
        "spiffe://sealrelay.internal/client//client1",
        "spiffe://sealrelay.internal/client/client1/",
        "spiffe://sealrelay.internal/client/client1/more",
        "spiffe://sealrelay.internal/Client/client1",
        "spiffe://sealrelay.internal/clients/client1",
        "spiffe://sealrelay.internal/admin/client1",
        "spiffe://sealrelay.internal/client/..",
        "spiffe://sealrelay.internal/client/.hidden",
        "spiffe://sealrelay.internal/client/-v",
        "spiffe://sealrelay.internal/client/a/../client1",
        "spiffe://sealrelay.internal/client/client%31",
        "spiffe://sealrelay.internal/client/client 1",
        "spiffe://sealrelay.internal/client/client1?role=server",
        "spiffe://sealrelay.internal/client/client1#server",
        "spiffe://sealrelay.internal/client/client1\n",
        "\nspiffe://sealrelay.internal/client/client1",
        "spiffe://sealrelay.internal/client/client1\0",
        "spiffe://sealrelay.internal/client/cl\N{LATIN SMALL LETTER DOTLESS I}ent1",
        f"spiffe://sealrelay.internal/client/{'n' * 64}",
    ],
)
def test_any_other_spelling_is_refused(uri: str) -> None:
    assert parse_identity(GOOD)
    with pytest.raises(IdentityRefused):
        parse_identity(uri)


def test_every_endpoint_says_who_may_call_it() -> None:
    assert set(MAY_CALL) == set(Endpoint)
    assert all(MAY_CALL.values())


def test_no_two_endpoints_are_the_same() -> None:
    assert len({endpoint.value for endpoint in Endpoint}) == len(list(Endpoint))


ALLOWED = {
    (Endpoint.COORDINATOR_DATA, Role.CLIENT),
    (Endpoint.COORDINATOR_HEALTH, Role.COORDINATOR),
    (Endpoint.COORDINATOR_HEALTH, Role.OPERATOR),
    (Endpoint.COORDINATOR_STATUS, Role.OPERATOR),
    (Endpoint.COORDINATOR_PAGE, Role.OPERATOR),
    (Endpoint.COORDINATOR_METRICS, Role.OPERATOR),
    (Endpoint.SERVER_DATA, Role.COORDINATOR),
    (Endpoint.SERVER_BATCH, Role.COORDINATOR),
    (Endpoint.SERVER_HEALTH, Role.COORDINATOR),
    (Endpoint.SERVER_HEALTH, Role.SERVER),
    (Endpoint.SERVER_HEALTH, Role.OPERATOR),
    (Endpoint.SERVER_METRICS, Role.OPERATOR),
}


@pytest.mark.parametrize(("endpoint", "role"), list(itertools.product(Endpoint, Role)))
def test_a_role_may_call_what_the_design_says_and_nothing_else(
    endpoint: Endpoint, role: Role
) -> None:
    """The table once more: who widens it has to say so here too."""
    peer = Identity(TRUST_DOMAIN, role, "x")
    assert may_call(peer, endpoint, TRUST_DOMAIN) is ((endpoint, role) in ALLOWED)


@pytest.mark.parametrize(("endpoint", "role"), sorted(ALLOWED, key=str))
def test_a_role_counts_in_its_own_trust_domain_only(endpoint: Endpoint, role: Role) -> None:
    assert may_call(Identity(TRUST_DOMAIN, role, "x"), endpoint, TRUST_DOMAIN)
    assert not may_call(Identity("other.internal", role, "x"), endpoint, TRUST_DOMAIN)


def _der(folder: Path, *uris: str, hosts: tuple[str, ...] = ("localhost",)) -> bytes:
    Authority().issue(folder, Leaf(uris, hosts=hosts))
    pem = (folder / "cert.pem").read_bytes()
    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)


def test_certificate_names_its_peer_in_its_one_uri(tmp_path: Path) -> None:
    assert str(identify_certificate(_der(tmp_path, GOOD))) == GOOD


@pytest.mark.parametrize(
    ("uris", "hosts", "fact"),
    [
        ([], ("localhost",), "0 URI SANs"),
        ([], (), "no URI SAN"),
        ([GOOD, spiffe_id("client", "client2")], (), "2 URI SANs"),
        ([GOOD, GOOD], (), "2 URI SANs"),
        ([GOOD, "https://example.net/"], (), "2 URI SANs"),
        (["https://sealrelay.internal/client/client1"], (), "not of the form"),
        ([spiffe_id("root", "client1")], (), "no role"),
    ],
)
def test_certificate_without_exactly_one_identity_is_refused(
    tmp_path: Path, uris: list[str], hosts: tuple[str, ...], fact: str
) -> None:
    with pytest.raises(IdentityRefused, match=fact):
        identify_certificate(_der(tmp_path, *uris, hosts=hosts))


def test_what_is_no_certificate_is_refused() -> None:
    with pytest.raises(IdentityRefused, match="cannot be read"):
        identify_certificate(b"not a certificate")


def test_common_name_and_dns_name_give_no_identity(tmp_path: Path) -> None:
    """The subject of these leaves is their folder's name, here that of a client."""
    der = _der(tmp_path / "client1", spiffe_id("server", "s1"), hosts=("client1",))
    assert identify_certificate(der) == Identity(TRUST_DOMAIN, Role.SERVER, "s1")
