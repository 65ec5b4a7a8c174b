"""Which leaves count: each reason against one, and what of a CRL is not taken."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from sealrelay.identity import IdentityRefused, LeafRefused
from sealrelay.tls import TlsFiles, TlsRefused, TlsSet, peer_certificate
from sealrelay.trust import CaRefused, CrlRefused, Trust, read_leaf
from tests.support.pki import CLIENT_ONLY, Authority, Key, Leaf, spiffe_id

_HOUR = datetime.timedelta(hours=1)
_SECONDS = 3600.0
URI = spiffe_id("client", "client1")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def folder(tmp_path: Path, authority: Authority) -> Path:
    return authority.issue(tmp_path / "leaf", Leaf([URI]))


def der_of(folder: Path) -> bytes:
    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    return certificate.public_bytes(Encoding.DER)


def tls_files(folder: Path, crl: str | None = None) -> TlsFiles:
    cert, key, ca = (str(folder / f"{name}.pem") for name in ("cert", "key", "ca"))
    return TlsFiles(cert, key, ca, crl)


def test_leaf_counts_within_its_time_only(authority: Authority, folder: Path) -> None:
    trust, leaf, now = Trust(authority.pem, None), read_leaf(der_of(folder)), time.time()
    trust.check(leaf, now)
    with pytest.raises(LeafRefused, match="it has expired"):
        trust.check(leaf, now + _SECONDS + 60)
    with pytest.raises(LeafRefused, match="it is not valid yet"):
        trust.check(leaf, now - _SECONDS - 60)


def test_leaf_of_another_ca_does_not_count_whatever_that_is_called(
    authority: Authority, folder: Path
) -> None:
    leaf, now = read_leaf(der_of(folder)), time.time()
    same_name = Authority(authority.name)
    with pytest.raises(LeafRefused, match="of a CA that is not trusted"):
        Trust(same_name.pem, None).check(leaf, now)
    Trust(same_name.pem + authority.pem, None).check(leaf, now)


def test_signature_of_a_certificate_that_tls_has_not_seen_is_checked(
    authority: Authority, folder: Path
) -> None:
    trust, now, der = Trust(authority.pem, None), time.time(), der_of(folder)
    trust.check_signed(der, now)
    with pytest.raises(LeafRefused, match="not signed by its CA"):
        trust.check_signed(der[:-1] + bytes([der[-1] ^ 1]), now)
    with pytest.raises(LeafRefused, match="expired"):
        trust.check_signed(der, now + 2 * _SECONDS)
    with pytest.raises(IdentityRefused, match="cannot be read"):
        trust.check_signed(b"no certificate", now)


def test_revoked_serial_counts_for_its_own_ca_only(authority: Authority, tmp_path: Path) -> None:
    other = Authority("Other CA")
    revoked, good = (authority.issue(tmp_path / name, Leaf([URI])) for name in ("a", "b"))
    now = time.time()
    crl = other.make_crl(good) + authority.make_crl(revoked)
    trust = Trust(authority.pem + other.pem, crl)
    with pytest.raises(LeafRefused, match="it is revoked"):
        trust.check(read_leaf(der_of(revoked)), now)
    trust.check(read_leaf(der_of(good)), now)


def test_ca_without_crl_beside_one_that_has_one_is_not_believed(
    authority: Authority, folder: Path
) -> None:
    other = Authority("Other CA")
    trust = Trust(authority.pem + other.pem, other.make_crl())
    with pytest.raises(LeafRefused, match="there is no CRL of its CA"):
        trust.check(read_leaf(der_of(folder)), time.time())


@pytest.mark.parametrize("strict", [False, True])
def test_crl_that_has_run_out_decides_on_or_shuts_all_out(
    authority: Authority, tmp_path: Path, strict: bool
) -> None:
    revoked, good = (authority.issue(tmp_path / name, Leaf([URI])) for name in ("a", "b"))
    trust = Trust(
        authority.pem, authority.make_crl(revoked, ends=_HOUR / 2), refuse_after_crl=strict
    )
    before, after = time.time(), time.time() + _SECONDS * 0.75
    for leaf, counts in ((read_leaf(der_of(good)), True), (read_leaf(der_of(revoked)), False)):
        for now in (before, after):
            if counts and not (strict and now is after):
                trust.check(leaf, now)
            else:
                with pytest.raises(
                    LeafRefused, match="run out" if now is after and strict else "revoked"
                ):
                    trust.check(leaf, now)
    assert trust.lets_tls_check_crls(before)
    assert trust.lets_tls_check_crls(after) is strict
    assert (trust.count_overdue(before), trust.count_overdue(after)) == (0, 1)


def test_newest_of_several_crls_of_a_ca_says_when_the_next_is_due(
    authority: Authority, folder: Path
) -> None:
    """And whoever is revoked in one of them is revoked."""
    old = authority.make_crl(folder, starts=-2 * _HOUR, ends=-_HOUR)
    trust, now = Trust(authority.pem, old + authority.make_crl()), time.time()
    assert trust.next_update == pytest.approx(now + _SECONDS, abs=60)
    assert trust.count_overdue(now) == 0
    with pytest.raises(LeafRefused, match="revoked"):
        trust.check(read_leaf(der_of(folder)), now)


def test_crl_that_says_less_than_it_seems_to_is_refused(authority: Authority) -> None:
    some = x509.IssuingDistributionPoint(
        full_name=None,
        relative_name=None,
        only_contains_user_certs=False,
        only_contains_ca_certs=True,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )
    for extension in (some, x509.DeltaCRLIndicator(1)):
        with pytest.raises(CrlRefused, match="critical extension"):
            Trust(authority.pem, authority.make_crl(critical=extension))


def test_crl_of_whom_may_not_sign_one_is_refused(authority: Authority, folder: Path) -> None:
    with pytest.raises(CrlRefused, match="not signed by a CA"):
        Trust(authority.pem, Authority(authority.name).make_crl())
    weak = Authority(authority.name, authority.key, signs_crls=False)
    with pytest.raises(CrlRefused, match="not signed by a CA"):
        Trust(weak.pem, authority.make_crl())
    with pytest.raises(CrlRefused, match="not signed by a CA"):
        Trust(authority.pem, Authority("Another name", authority.key).make_crl())
    with pytest.raises(CrlRefused, match="not a CRL in PEM"):
        Trust(authority.pem, b"")
    with pytest.raises(CaRefused, match="not a certificate in PEM"):
        Trust(authority.make_crl(), None)


def test_crl_without_a_next_update_is_refused(authority: Authority) -> None:
    with pytest.raises(CrlRefused, match="does not say when the next one is due"):
        Trust(authority.pem, without_next_update(authority))


def without_next_update(authority: Authority) -> bytes:
    """A CRL in PEM as no library makes it any more: RFC 5280 asks for what it lacks."""

    def wrap(tag: int, content: bytes) -> bytes:
        length = [0x81, len(content)] if len(content) > 127 else [len(content)]
        return bytes([tag, *length]) + content

    crl = x509.load_pem_x509_crl(authority.make_crl())
    assert crl.next_update_utc is not None
    due = b"\x17\x0d" + crl.next_update_utc.strftime("%y%m%d%H%M%SZ").encode()
    before, after = crl.tbs_certlist_bytes.split(due)
    header = 2 if before[1] < 128 else 3
    says = wrap(0x30, before[header:] + after)
    ecdsa_with_sha256 = bytes.fromhex("300a06082a8648ce3d040302")
    signature = authority.key.sign(says, ec.ECDSA(hashes.SHA256()))
    der = wrap(0x30, says + ecdsa_with_sha256 + wrap(0x03, b"\0" + signature))
    altered = x509.load_der_x509_crl(der)
    assert altered.is_signature_valid(authority.key.public_key())
    return altered.public_bytes(Encoding.PEM)


def test_who_shows_no_certificate_has_none(folder: Path) -> None:
    """The contexts of services let nobody come that far; this holds without them too."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    accepting.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    connecting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    connecting.check_hostname, connecting.verify_mode = False, ssl.CERT_NONE
    one, two = socket.socketpair()
    with ThreadPoolExecutor() as pool:
        other = pool.submit(connecting.wrap_socket, two)
        with accepting.wrap_socket(one, server_side=True) as here, other.result() as there:
            assert peer_certificate(there) == der_of(folder)
            with pytest.raises(IdentityRefused, match="showed no certificate"):
                peer_certificate(here)


def test_openssl_is_given_what_was_checked(authority: Authority, folder: Path) -> None:
    (folder / "crl.pem").write_bytes(authority.make_crl())
    read = TlsSet(tls_files(folder, crl=str(folder / "crl.pem")))
    for name in ("cert", "key", "ca", "crl"):
        (folder / f"{name}.pem").write_bytes(b"something else by now")
    for context in (read.make_server_context(), read.make_client_context()):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_flags & ssl.VERIFY_CRL_CHECK_LEAF
        assert context.security_level >= 2
        assert context.cert_store_stats() == {"x509": 1, "crl": 1, "x509_ca": 1}
    assert read.make_server_context().num_tickets == 0


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "P-521", "RSA 2048"],
)
def test_leaf_may_have_a_key_of_another_kind_than_the_key_exchange(
    authority: Authority, tmp_path: Path, key: Key
) -> None:
    TlsSet(tls_files(authority.issue(tmp_path / "leaf", Leaf([URI], key=key)))).rehearse()


def test_rehearsal_finds_what_peers_would(authority: Authority, tmp_path: Path) -> None:
    good = authority.issue(tmp_path / "good", Leaf([URI]))
    TlsSet(tls_files(good)).rehearse()
    bad = TlsSet(tls_files(authority.issue(tmp_path / "bad", Leaf([URI], usages=CLIENT_ONLY))))
    with pytest.raises(TlsRefused, match="peers would refuse it"):
        bad.rehearse()
