"""A matrix of bad peers, on both hops: each is refused, for its own reason.

Beside each, a good one is let in that differs from it in that one thing.
"""

from __future__ import annotations

import datetime
import ssl
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from sealrelay.identity import Role
from tests.integration.test_access import (
    COORDINATOR_URI,
    GOOD_URI,
    assert_good_peer_gets_in,
    forwarded,
    good_leaf,
    refused_in_handshake,
    send_to,
    service_of,
)
from tests.integration.test_messages import assert_problem, seal
from tests.integration.test_reload import Told
from tests.support.deployment import Deployment, Service
from tests.support.http import ask, make_context, post_json
from tests.support.pki import BOTH, TRUST_DOMAIN, Authority, Leaf, spiffe_id

_HOUR = datetime.timedelta(hours=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Nothing of it runs: dozens of mutations start what their test needs, and no more."""
    made = Deployment(tmp_path_factory.mktemp("bad-peers") / "deployment")
    revoked = [
        made.authority.issue(made.folder / "revoked" / role, Leaf([uri]))
        for role, uri in (("client", GOOD_URI), ("coordinator", COORDINATOR_URI))
    ]
    made.publish_crl(*revoked)
    yield made
    made.stop()


def start(*services: Service) -> None:
    starting = [service for service in services if not service.is_running]
    for service in starting:
        service.start(wait=False)
    for service in starting:
        service.wait()


@pytest.fixture
def deployed(prepared: Deployment) -> Deployment:
    """One server runs, and the coordinator."""
    start(prepared.servers[0], prepared.coordinator)
    return prepared


@pytest.fixture(params=[Role.COORDINATOR, Role.SERVER], ids=["coordinator", "server"])
def service(request: pytest.FixtureRequest, prepared: Deployment) -> Service:
    """It runs, and so does a server that a coordinator needs."""
    chosen = service_of(prepared, request.param)
    start(*{prepared.servers[0], chosen})
    return chosen


@dataclass(frozen=True)
class Case:
    """What a bad peer is made from."""

    deployment: Deployment
    folder: Path
    role: str
    uri: str
    """The identity of a good one."""

    @property
    def authority(self) -> Authority:
        return self.deployment.authority

    def issue(self, leaf: Leaf, authority: Authority | None = None) -> ssl.SSLContext:
        """A peer with this leaf, who lets weak things pass that it is to be refused for."""
        (authority or self.authority).issue(self.folder, leaf)
        (self.folder / "ca.pem").write_bytes(self.authority.pem)
        return self.connect()

    def connect(self, *, with_leaf: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        context.set_ciphers("ALL:@SECLEVEL=0")
        if with_leaf:
            context.load_cert_chain(self.folder / "cert.pem", self.folder / "key.pem")
        return context


Make = Callable[[Case], ssl.SSLContext]


@pytest.fixture
def case(prepared: Deployment, service: Service, tmp_path: Path) -> Case:
    is_client = service is prepared.coordinator
    role, uri = ("client", GOOD_URI) if is_client else ("coordinator", COORDINATOR_URI)
    return Case(prepared, tmp_path / "bad", role, uri)


def assert_same_peer_without_the_fault_gets_in(case: Case, service: Service) -> None:
    good = case.authority.issue(case.folder.with_name("good"), Leaf([case.uri]))
    assert send_to(case.deployment, service, good).status == 200


# Refused in the handshake


def no_certificate(case: Case) -> ssl.SSLContext:
    case.issue(Leaf([case.uri]))
    return case.connect(with_leaf=False)


def foreign_ca_of_our_cas_name(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri]), Authority(name=case.authority.name))


def foreign_ca_of_another_name(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri]), Authority(name="Another CA"))


def self_signed(case: Case) -> ssl.SSLContext:
    own = Authority(name="client1")
    case.folder.mkdir()
    (case.folder / "cert.pem").write_bytes(own.pem)
    (case.folder / "key.pem").write_bytes(
        own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (case.folder / "ca.pem").write_bytes(case.authority.pem)
    return case.connect()


def expired(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], starts=-2 * _HOUR, ends=-_HOUR / 60))


def not_yet_valid(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], starts=_HOUR, ends=2 * _HOUR))


def revoked(case: Case) -> ssl.SSLContext:
    return make_context(case.deployment.folder / "revoked" / case.role)


def usage_of_servers_only(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], usages=[ExtendedKeyUsageOID.SERVER_AUTH]))


def usage_of_something_else(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], usages=[ExtendedKeyUsageOID.CODE_SIGNING]))


def certificate_of_a_ca(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], is_ca=True))


def signed_by_a_leaf(case: Case) -> ssl.SSLContext:
    issuer = Authority("a leaf")
    chain = case.authority.issue(case.folder.with_name("issuer"), Leaf([case.uri], key=issuer.key))
    issuer.certificate = x509.load_pem_x509_certificate((chain / "cert.pem").read_bytes())
    return with_chain(case, issuer, (chain / "cert.pem").read_bytes())


def signed_by_a_ca_below_ours(case: Case) -> ssl.SSLContext:
    below = Authority("intermediate")
    return with_chain(case, below, case.authority.sign_authority(below))


def with_chain(case: Case, issuer: Authority, chain: bytes) -> ssl.SSLContext:
    case.issue(Leaf([case.uri]), issuer)
    with (case.folder / "cert.pem").open("ab") as file:
        file.write(chain)
    return case.connect()


def altered(case: Case) -> ssl.SSLContext:
    """Another name under the signature of a good one."""
    case.issue(Leaf([spiffe_id("operator", "operator1")]))
    certificate = x509.load_pem_x509_certificate((case.folder / "cert.pem").read_bytes())
    der = certificate.public_bytes(Encoding.DER).replace(b"/operator1", b"/operator2")
    (case.folder / "cert.pem").write_text(ssl.DER_cert_to_PEM_cert(der))
    return case.connect()


def weak_key(case: Case) -> ssl.SSLContext:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - is to be refused
    return case.issue(Leaf([case.uri], key=key))


def weak_signature(case: Case) -> ssl.SSLContext:
    """SHA-1, which the cryptography package no longer makes."""
    case.issue(Leaf([case.uri]))
    folder = case.folder
    authority = case.authority.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "ca.key").write_bytes(authority)
    keep = ["-copy_extensions", "copyall", "-out"]
    ask_for = ["-x509toreq", "-in", "cert.pem", "-signkey", "key.pem", *keep, "request.pem"]
    sign = ["-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-sha1"]
    sign += ["-set_serial", "4711", "-days", "1", *keep, "sha1.pem"]
    for command in (ask_for, sign):
        subprocess.run(["openssl", "x509", *command], cwd=folder, check=True, capture_output=True)
    (folder / "sha1.pem").replace(folder / "cert.pem")
    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    assert certificate.signature_hash_algorithm is not None
    assert certificate.signature_hash_algorithm.name == "sha1"
    return case.connect()


def issuers_key_not_named(case: Case) -> ssl.SSLContext:
    return case.issue(Leaf([case.uri], names_issuer=False))


def unknown_critical_extension(case: Case) -> ssl.SSLContext:
    extension = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
    return case.issue(Leaf([case.uri], critical=extension))


def _at_most(version: ssl.TLSVersion) -> Make:
    def make(case: Case) -> ssl.SSLContext:
        context = case.issue(Leaf([case.uri]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that is why it is refused
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        return context

    return make


def another_group(case: Case) -> ssl.SSLContext:
    """For the key exchange."""
    context = case.issue(Leaf([case.uri]))
    context.set_ecdh_curve("secp521r1")
    return context


IN_HANDSHAKE: dict[str, tuple[Make, str, str]] = {
    "no certificate": (no_certificate, "CERTIFICATE_REQUIRED", "peer did not return"),
    "foreign CA": (foreign_ca_of_another_name, "UNKNOWN_CA", "unable to get local issuer"),
    "foreign CA, our name": (foreign_ca_of_our_cas_name, "UNKNOWN_CA", "unable to get local"),
    "self-signed": (self_signed, "UNKNOWN_CA", "self-signed certificate"),
    "expired": (expired, "CERTIFICATE_EXPIRED", "certificate has expired"),
    "not yet valid": (not_yet_valid, "BAD_CERTIFICATE", "certificate is not yet valid"),
    "revoked": (revoked, "CERTIFICATE_REVOKED", "certificate revoked"),
    "usage of servers only": (usage_of_servers_only, "UNSUPPORTED_CERTIFICATE", "purpose"),
    "usage of something else": (usage_of_something_else, "UNSUPPORTED_CERTIFICATE", "purpose"),
    "certificate of a CA": (certificate_of_a_ca, "UNSUPPORTED_CERTIFICATE", "purpose"),
    "signed by a leaf": (signed_by_a_leaf, "UNKNOWN_CA", "invalid CA certificate"),
    "signed by a CA below ours": (signed_by_a_ca_below_ours, "UNKNOWN_CA", "path length"),
    "altered": (altered, "DECRYPT_ERROR", "certificate signature failure"),
    "weak key": (weak_key, "BAD_CERTIFICATE", "EE certificate key too weak"),
    "weak signature": (weak_signature, "BAD_CERTIFICATE", "CA signature digest algorithm too weak"),
    "issuer's key not named": (
        issuers_key_not_named,
        "CERTIFICATE_UNKNOWN",
        "Missing Authority Key Identifier",
    ),
    "unknown critical extension": (
        unknown_critical_extension,
        "CERTIFICATE_UNKNOWN",
        "unhandled critical extension",
    ),
    "another group": (another_group, "HANDSHAKE_FAILURE", "no suitable key share"),
    "TLS 1.2": (_at_most(ssl.TLSVersion.TLSv1_2), "PROTOCOL_VERSION", "unsupported protocol"),
    "TLS 1.1": (_at_most(ssl.TLSVersion.TLSv1_1), "PROTOCOL_VERSION", "unsupported protocol"),
    "TLS 1.0": (_at_most(ssl.TLSVersion.TLSv1), "PROTOCOL_VERSION", "unsupported protocol"),
}


@pytest.mark.parametrize("fault", list(IN_HANDSHAKE))
def test_peer_is_refused_in_the_handshake(case: Case, service: Service, fault: str) -> None:
    make, alert, fact = IN_HANDSHAKE[fault]
    told = Told(service)
    refusal = refused_in_handshake(service, make(case))
    assert str(refusal.reason).endswith(f"ALERT_{alert}")
    told.wait_for("Refused 127.0.0.1: ", 1)
    assert fact in told.text
    assert_same_peer_without_the_fault_gets_in(case, service)


# Refused after it, for the identity in the certificate

_DOMAIN = TRUST_DOMAIN
_FORM = "the URI is not of the form spiffe://<trust domain>/<role>/<name>"
NO_IDENTITY: dict[str, tuple[list[str], str]] = {
    "no URI SAN": ([], "the certificate has 0 URI SANs instead of one"),
    "two URI SANs": (["{good}", "{good}2"], "has 2 URI SANs"),
    "the same URI SAN twice": (["{good}", "{good}"], "has 2 URI SANs"),
    "another scheme beside it": (["{good}", "https://{domain}/"], "has 2 URI SANs"),
    "three URI SANs": (["{good}", "{good}2", "{good}3"], "has 3 URI SANs"),
    "upper case in the scheme": (["SPIFFE://{domain}/{role}/x"], _FORM),
    "upper case in the trust domain": (["spiffe://Sealrelay.internal/{role}/x"], _FORM),
    "upper case in the role": (["spiffe://{domain}/{Role}/x"], _FORM),
    "another scheme": (["https://{domain}/{role}/x"], _FORM),
    "no scheme": (["//{domain}/{role}/x"], _FORM),
    "trailing slash": (["{good}/"], _FORM),
    "trailing dot": (["spiffe://{domain}./{role}/x"], _FORM),
    "percent-encoding in the name": (["spiffe://{domain}/{role}/clien%741"], _FORM),
    "percent-encoding in the path": (["spiffe://{domain}/{role}%2Fclient1"], _FORM),
    "percent-encoding in the trust domain": (["spiffe://sealrelay%2Einternal/{role}/x"], _FORM),
    "user info": (["spiffe://root@{domain}/{role}/x"], _FORM),
    "port": (["spiffe://{domain}:443/{role}/x"], _FORM),
    "empty segment first": (["spiffe://{domain}//{role}/x"], _FORM),
    "empty segment between": (["spiffe://{domain}/{role}//x"], _FORM),
    "dot segments": (["spiffe://{domain}/operator/../{role}/x"], _FORM),
    "one segment more": (["{good}/x"], _FORM),
    "one segment less": (["spiffe://{domain}/{role}"], _FORM),
    "no path": (["spiffe://{domain}"], _FORM),
    "query": (["{good}?role=operator"], _FORM),
    "fragment": (["{good}#operator"], _FORM),
    "wildcard as name": (["spiffe://{domain}/{role}/*"], _FORM),
    "wildcard as role": (["spiffe://{domain}/*/x"], _FORM),
    "wildcard as trust domain": (["spiffe://*.internal/{role}/x"], _FORM),
    "white space": (["{good} "], _FORM),
    "line end": (["{good}\n"], _FORM),
    "NUL": (["{good}\0.example.net"], _FORM),
    "unknown role": (["spiffe://{domain}/root/x"], "the URI names no role of sealrelay"),
}


@pytest.mark.parametrize("fault", list(NO_IDENTITY))
def test_peer_without_an_identity_of_ours_is_refused(
    case: Case, service: Service, fault: str
) -> None:
    forms, fact = NO_IDENTITY[fault]
    words = {"good": case.uri, "domain": _DOMAIN, "role": case.role, "Role": case.role.title()}
    peer = case.issue(Leaf([form.format(**words) for form in forms]))
    answer = send_to(case.deployment, service, peer)
    assert_problem(answer, 403, "identity-refused")
    assert fact in answer.json()["detail"]
    assert_same_peer_without_the_fault_gets_in(case, service)


def _named_otherwise(case: Case) -> Leaf:
    """The identity stands everywhere but where it belongs."""
    names = [x509.DNSName(case.uri), x509.RFC822Name(case.uri), x509.DNSName("client1")]
    return Leaf([], other_names=names)


def _no_names(case: Case) -> Leaf:
    return Leaf([], hosts=())


def _ca_that_may_do_all(case: Case) -> Leaf:
    """Fit for TLS, too: without a look of our own it would get in."""
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    return Leaf([case.uri], is_ca=True, usage=usage, usages=BOTH)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (_named_otherwise, "the certificate has 0 URI SANs instead of one"),
        (_no_names, "the certificate has no URI SAN"),
        (_ca_that_may_do_all, "the certificate is a CA's"),
    ],
)
def test_certificate_of_another_kind_gives_no_identity(
    case: Case, service: Service, make: Callable[[Case], Leaf], fact: str
) -> None:
    answer = send_to(case.deployment, service, case.issue(make(case)))
    assert_problem(answer, 403, "identity-refused")
    assert fact in answer.json()["detail"]
    assert_same_peer_without_the_fault_gets_in(case, service)


# Refused for what the identity may do

STRANGE_IDENTITIES = {
    **{f"role {role.value}": f"spiffe://{_DOMAIN}/{role.value}/client1" for role in Role},
    "other trust domain": "spiffe://other.internal/{role}/client1",
    "trust domain below ours": f"spiffe://x.{_DOMAIN}/{{role}}/client1",
    "trust domain above ours": "spiffe://internal/{role}/client1",
    "trust domain that begins with ours": f"spiffe://{_DOMAIN}.example/{{role}}/client1",
    "trust domain that ends with ours": f"spiffe://x{_DOMAIN}/{{role}}/client1",
}


@pytest.mark.parametrize("fault", list(STRANGE_IDENTITIES))
def test_peer_of_another_role_or_trust_domain_is_refused(
    case: Case, service: Service, fault: str
) -> None:
    uri = STRANGE_IDENTITIES[fault].format(role=case.role)
    answer = send_to(case.deployment, service, case.issue(Leaf([uri])))
    if fault == f"role {case.role}":
        assert answer.status == 200
    else:
        assert_problem(answer, 403, "role-not-allowed")
    assert_same_peer_without_the_fault_gets_in(case, service)


# The Client-Cert header, which only a coordinator's leaf gives any meaning


def test_client_cert_header_from_a_client_is_not_looked_at(deployed: Deployment) -> None:
    """The message is client1's, who sends it, and not client2's, whom the header names."""
    peer = deployed.client_config("client1").parent
    other = deployed.client_config("client2").parent
    mine, others = seal(deployed, client="client1"), seal(deployed, client="client2")
    for headers in ([client_cert(other)], [client_cert(other)] * 2, [("Client-Cert", "x")]):
        answer = post_json(deployed.coordinator, peer, "/api/data", {"data": mine.text}, headers)
        assert answer.status == 200
        answer = post_json(deployed.coordinator, peer, "/api/data", {"data": others.text}, headers)
        assert_problem(answer, 422, "token-refused")
    assert mine.message_id.hex() in deployed.stored_ids("client1")
    assert others.message_id.hex() not in deployed.stored_ids()


def test_client_cert_header_from_a_stranger_does_not_open_the_door(
    case: Case, service: Service
) -> None:
    good = good_leaf(case.deployment, service)
    for make in (no_certificate, foreign_ca_of_our_cas_name):
        context = make(case)
        with pytest.raises(ssl.SSLError, match="ALERT"):
            ask(service, context, "GET", "/healthz", headers=[client_cert(good)])
    assert_good_peer_gets_in(case.deployment, service)


def client_cert(folder: Path) -> tuple[str, str]:
    return "Client-Cert", forwarded(folder)


@pytest.mark.parametrize(
    ("make", "fact"),
    [
        (revoked, "it is revoked"),
        (expired, "it has expired"),
        (not_yet_valid, "it is not valid yet"),
        (foreign_ca_of_our_cas_name, "it is of a CA that is not trusted"),
        (self_signed, None),
        (altered, "it is not signed by its CA"),
    ],
)
def test_forwarded_certificate_that_does_not_count_is_refused(
    prepared: Deployment, tmp_path: Path, make: Make, fact: str | None
) -> None:
    """A proxy may not have looked; and who gets hold of its leaf cannot make up clients."""
    case = Case(prepared, tmp_path / "bad", "client", GOOD_URI)
    server, proxy = prepared.servers[0], prepared.coordinator.config.parent
    start(server)
    make(case)
    folder = prepared.folder / "revoked" / "client" if make is revoked else case.folder
    body = {"data": seal(prepared).text}
    answer = post_json(server, proxy, "/api/data", body, [client_cert(folder)])
    if fact is None:
        assert_problem(answer, 400, "malformed")  # it carries no identity
    else:
        assert_problem(answer, 403, "leaf-refused")
        assert answer.json()["detail"] == f"The forwarded certificate does not count: {fact}."
    good = prepared.client_config("client1").parent
    assert post_json(server, proxy, "/api/data", body, [client_cert(good)]).status == 200
