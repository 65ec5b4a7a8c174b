"""Which certificates are due, what hosts are told, and whether a CA is in order."""

from __future__ import annotations

import datetime
import io
import json
import os
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.repo.conftest import REPOSITORY, load_module
from tests.support.pki import Authority, Leaf, spiffe_id

_DAY = datetime.timedelta(days=1)
_IDENTITY = spiffe_id("server", "node1-5001")
_PASSPHRASE = "open sesame"  # noqa: S105 - of keys that are made here
_LOOK = REPOSITORY / "roles" / "certificate" / "files" / "look_at_leaves.py"


_FILTERS = load_module("plugins/filter/certificates.py").FilterModule().filters()


class _Host:
    """A host with one leaf, and what its control node wants of it."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority()
        self.dir = folder / "node1-5001"
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.wanted: dict[str, Any] = {
            "role": "server",
            "trust_domain": "sealrelay.internal",
            "hosts": ["localhost", "127.0.0.1"],
            "usages": ["serverAuth", "clientAuth"],
            "ca": self.authority.pem.decode(),
            "revoked_serials": [],
            "renew_at": 0.667,
            "rotate": [],
        }
        self.issue()

    def issue(self, authority: Authority | None = None, **changes: Any) -> None:
        leaf = {"uris": [_IDENTITY], "key": self.key, "ends": 30 * _DAY, **changes}
        (authority or self.authority).issue(self.dir, Leaf(**leaf))

    @property
    def found(self) -> dict[str, Any]:
        """What the host says of itself, of a folder that is not there, too."""
        folders = [str(self.dir), str(self.dir.with_name("never"))]
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as out:
            patched.setattr(sys, "argv", [str(_LOOK), *folders])
            runpy.run_path(str(_LOOK))
        assert "PRIVATE" not in out.getvalue()
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    def judge(self, **wanted: Any) -> dict[str, Any]:
        dirs = {"node1-5001": str(self.dir)}
        (leaf,) = _FILTERS["judge_leaves"](dirs, self.found, self.wanted | wanted)
        assert leaf["identity"] == "server/node1-5001"
        assert leaf["dir"] == str(self.dir)
        return dict(leaf)


@pytest.fixture
def host(tmp_path: Path) -> _Host:
    made = _Host(tmp_path)
    judged = made.judge()
    assert (judged["due"], judged["make_key"], judged["new_key"]) == ("", False, False)
    pem = (made.dir / "cert.pem").read_text()
    serial = x509.load_pem_x509_certificate(pem.encode()).serial_number
    assert (judged["certificate"], judged["serial"]) == (pem, f"{serial:x}")
    return made


_OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
_SIGNATURE: dict[str, bool] = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
) | {"digital_signature": True}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"authority": Authority("Another CA")}, "it is of another CA"),
        # With the same name, too: it is the signature that counts.
        ({"authority": Authority()}, "it is of another CA"),
        ({"uris": [spiffe_id("client", "node1-5001")]}, "it has another SubjectAlternativeName"),
        ({"uris": [_IDENTITY, "spiffe://a/b"]}, "it has another SubjectAlternativeName"),
        ({"hosts": ["localhost"]}, "it has another SubjectAlternativeName"),
        ({"hosts": ["localhost", "127.0.0.2"]}, "it has another SubjectAlternativeName"),
        ({"uris": [], "hosts": []}, "it has no SubjectAlternativeName"),
        ({"usages": [ExtendedKeyUsageOID.CLIENT_AUTH]}, "it has another ExtendedKeyUsage"),
        ({"is_ca": True}, "it has another BasicConstraints"),
        (
            {"usage": x509.KeyUsage(**_SIGNATURE, key_encipherment=True)},
            "it has another KeyUsage",
        ),
    ],
)
def test_leaf_that_is_not_as_wanted_is_due_with_the_same_key(
    host: _Host, changes: dict[str, Any], reason: str
) -> None:
    host.issue(**changes)
    judged = host.judge()
    assert (judged["due"], judged["new_key"], judged["make_key"]) == (reason, False, False)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ({"hosts": ["localhost"]}, "it has another SubjectAlternativeName"),
        ({"trust_domain": "example.net"}, "it has another SubjectAlternativeName"),
        ({"usages": ["serverAuth"]}, "it has another ExtendedKeyUsage"),
        # In a rehearsal of the first deployment.
        ({"ca": ""}, "it is of another CA"),
    ],
)
def test_leaf_is_due_when_something_else_is_wanted(
    host: _Host, wanted: dict[str, Any], reason: str
) -> None:
    assert host.judge(**wanted)["due"] == reason


def test_leaf_with_the_name_of_another_is_due(host: _Host, tmp_path: Path) -> None:
    host.authority.issue(tmp_path / "other", Leaf([_IDENTITY], key=host.key, ends=30 * _DAY))
    (tmp_path / "other" / "cert.pem").replace(host.dir / "cert.pem")
    assert host.judge()["due"] == "it has another name"


def _remove_key(host: _Host) -> None:
    (host.dir / "key.pem").unlink()


def _break_key(host: _Host) -> None:
    (host.dir / "key.pem").write_text("none")


def _replace_key(host: _Host) -> None:
    pem = (host.dir / "cert.pem").read_bytes()
    host.issue(key=_OTHER_KEY)
    (host.dir / "cert.pem").write_bytes(pem)


def _remove_certificate(host: _Host) -> None:
    (host.dir / "cert.pem").unlink()


def _break_certificate(host: _Host) -> None:
    (host.dir / "cert.pem").write_text("none")


@pytest.mark.parametrize(
    ("break_it", "reason", "make_key"),
    [
        (_remove_key, "it has no key", True),
        (_break_key, "it has no key", True),
        (_replace_key, "it is for another key", False),
        (_remove_certificate, "there is none", False),
        (_break_certificate, "there is none", False),
    ],
)
def test_leaf_or_key_that_is_not_there_is_made(
    host: _Host, break_it: Callable[[_Host], None], reason: str, make_key: bool
) -> None:
    break_it(host)
    # Also of one that is to be rotated: there is no key to keep in use meanwhile.
    for wanted in ({}, {"rotate": ["node1-5001"]} if make_key else {}):
        judged = host.judge(**wanted)
        assert (judged["due"], judged["make_key"], judged["new_key"]) == (reason, make_key, False)


def test_leaf_of_a_folder_that_is_not_there_is_made(host: _Host) -> None:
    dirs = {"node1-5001": str(host.dir.with_name("never"))}
    (judged,) = _FILTERS["judge_leaves"](dirs, host.found, host.wanted)
    assert (judged["due"], judged["make_key"]) == ("it has no key", True)
    assert (judged["certificate"], judged["serial"]) == ("", "")


def test_leaf_that_is_replaced_while_it_is_good_gets_a_new_key(host: _Host) -> None:
    serial = host.judge()["serial"]
    for wanted, reason in (
        ({"rotate": ["node1-5001"]}, "asked for"),
        ({"revoked_serials": ["1f", serial]}, "revoked"),
        ({"rotate": ["node1-5002"], "revoked_serials": ["1f"]}, ""),
    ):
        judged = host.judge(**wanted)
        assert (judged["due"], judged["new_key"], judged["make_key"]) == (
            reason,
            bool(reason),
            False,
        )


def test_leaf_is_replaced_when_most_of_its_life_is_over(host: _Host) -> None:
    for starts, ends, reason in (
        (-66 * _DAY, 34 * _DAY, ""),
        (-67 * _DAY, 33 * _DAY, "most of its life is over"),
        (-90 * _DAY, -_DAY, "most of its life is over"),
    ):
        host.issue(starts=starts, ends=ends)
        judged = host.judge()
        assert (judged["due"], judged["new_key"]) == (reason, bool(reason))


def test_ca_that_cannot_be_read_is_an_error(host: _Host) -> None:
    with pytest.raises(AnsibleFilterError, match="the CA's certificate can't be read"):
        host.judge(ca="none")


def test_names_are_addresses_only_when_they_are(tmp_path: Path) -> None:
    hosts = ["node1", "10", 11, "::1", "", "192.0.2.1", "node1", "2001:DB8::7", "fe80::1%eth0"]
    nobodys = ["0.0.0.0", "::", "0::0", "*", "a/b", "a b", "node1.", "ä", "x" * 64]  # noqa: S104
    sans = _FILTERS["list_sans"]([*hosts, *nobodys], _IDENTITY)
    assert sans == [
        *(f"URI:{_IDENTITY}", "DNS:10", "DNS:11", "DNS:node1"),
        *("IP:192.0.2.1", "IP:2001:db8::7", "IP:::1", "IP:fe80::1"),
    ]
    host = _Host(tmp_path)
    host.issue(hosts=[san.partition(":")[2] for san in sans[1:]])
    assert host.judge(hosts=hosts)["due"] == ""


def test_what_was_signed_takes_the_place_of_what_was_due(host: _Host) -> None:
    good = host.judge()
    due = host.judge(rotate=["node1-5001"])
    host.issue()
    pem = (host.dir / "cert.pem").read_text()
    signed = [{"item": {"item": due}, "certificate": pem}]
    (given,) = _FILTERS["add_signed"]([due], signed)
    assert (given["certificate"], given["replaced"]) == (pem, True)
    assert given["serial"] == host.judge()["serial"] != due["serial"]
    (kept,) = _FILTERS["add_signed"]([good], [])
    assert kept == good
    assert not kept["replaced"]


def test_leaf_without_the_very_copy_is_unrecorded(host: _Host, tmp_path: Path) -> None:
    leaf = host.judge()
    folder = tmp_path / "issued"
    folder.mkdir()
    assert _FILTERS["find_unrecorded"]([leaf], str(folder)) == [leaf]
    copy = folder / f"server.node1-5001.{leaf['serial']}.pem"
    copy.write_text("something else")
    assert _FILTERS["find_unrecorded"]([leaf], str(folder)) == [leaf]
    copy.write_text(leaf["certificate"])
    assert _FILTERS["find_unrecorded"]([leaf], str(folder)) == []
    assert _FILTERS["find_unrecorded"]([{**leaf, "serial": ""}], str(folder)) == [], "there is none"


def test_identity_is_revoked_when_all_its_leaves_are() -> None:
    revoked = [
        {"identity": "client/client1", "serial": "a1"},
        {"identity": "client/a.b", "serial": "a2"},
        {"identity": "client/a.b", "serial": "a3"},
        {"identity": "server/client1", "serial": "a4"},
        {"identity": "server/gone", "serial": "a5"},
    ]
    issued = ["client.client1.a1.pem", "client.a.b.a2.pem", "client.a.b.a3.pem"]
    issued += ["server.client1.a4.pem", "README", "client.a.pem"]
    paths = [f"/pki/issued/{name}" for name in issued]
    find = _FILTERS["find_revoked_identities"]
    assert find(revoked, paths) == ["client/a.b", "client/client1", "server/client1", "server/gone"]
    paths += ["/pki/issued/client.a.b.b1.pem", "/pki/issued/server.client1.b2.pem"]
    assert find(revoked, paths) == ["client/client1", "server/gone"]
    assert find([], paths) == []


class _Puts:
    """A host in whose folder everything is as wanted."""

    def __init__(self, host: _Host) -> None:
        self.host = host
        self.trust = {"ca.pem": "the CAs\n", "crl.pem": "the CRLs\n"}
        for name, text in self.trust.items():
            (host.dir / name).write_text(text)
        files = host.found[str(host.dir)]["files"]
        self.attributes = {
            "owner": files["key.pem"]["owner"],
            "group": files["key.pem"]["group"],
            "key_mode": "0600",
        }

    def list(self, pretend: bool = False, **wanted: Any) -> list[dict[str, Any]]:
        leaf = self.host.judge(**wanted)
        puts = _FILTERS["list_puts"]([leaf], self.host.found, self.trust, self.attributes, pretend)
        return [dict(put) for put in puts]


@pytest.fixture
def puts(host: _Host) -> _Puts:
    made = _Puts(host)
    assert made.list() == [], "nothing, when all is as wanted"
    return made


def _chmod(name: str, mode: int) -> Callable[[_Puts], None]:
    return lambda puts: (puts.host.dir / name).chmod(mode)


def _want(**attributes: str) -> Callable[[_Puts], None]:
    return lambda puts: puts.attributes.update(attributes)


def _write(name: str, text: str) -> Callable[[_Puts], None]:
    def write(puts: _Puts) -> None:
        (puts.host.dir / name).write_text(text)

    return write


def _remove(name: str) -> Callable[[_Puts], None]:
    return lambda puts: (puts.host.dir / name).unlink()


@pytest.mark.parametrize(
    "change",
    [
        _chmod("key.pem", 0o644),
        _chmod("cert.pem", 0o600),
        _want(owner="someone-else"),
        _want(group="someone-else"),
        _want(key_mode="0640"),
        _write("ca.pem", "another CA\n"),
        _remove("crl.pem"),
    ],
)
def test_whatever_is_not_as_wanted_is_put_there(
    puts: _Puts, change: Callable[[_Puts], None]
) -> None:
    change(puts)
    leaf = (puts.host.dir / "cert.pem").read_text()
    assert puts.list() == [
        {
            "folders": [str(puts.host.dir)],
            "rename": {},
            "files": {"cert.pem": leaf, **puts.trust},
            "modes": {"key.pem": puts.attributes["key_mode"]},
            "owner": puts.attributes["owner"],
            "group": puts.attributes["group"],
            "pretend": False,
        }
    ]


def test_leaf_that_is_due_is_put_with_its_new_key(puts: _Puts) -> None:
    (put,) = puts.list(rotate=["node1-5001"])
    assert put["rename"] == {"key.pem.new": "key.pem"}
    # In a rehearsal nothing is signed, and it is told all the same.
    (put,) = puts.list(pretend=True, rotate=["node1-5001"])
    assert put["pretend"]
    assert put["files"]["cert.pem"] == "to be signed\n"
    assert puts.list(pretend=True) == []


def test_name_of_a_folder_is_no_pattern(puts: _Puts) -> None:
    puts.host.dir = puts.host.dir.with_name("a[b]*")
    puts.host.issue()
    (put,) = puts.list()
    assert put["folders"] == [str(puts.host.dir.with_name("a[[]b][*]"))]


class _Pki:
    """The folder of a CA on the control node, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.folder.mkdir(0o700)
        (folder / "ca.key").touch(0o600)
        self.write_key(self.authority.key)
        for name, pem in (("ca.pem", self.authority.pem), ("crl.pem", self.make_crl())):
            (folder / name).write_bytes(pem)
            (folder / name).chmod(0o644)

    def write_key(self, key: ec.EllipticCurvePrivateKey) -> None:
        encryption = BestAvailableEncryption(_PASSPHRASE.encode())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
        (self.folder / "ca.key").write_bytes(pem)

    def make_crl(self, *revoked: Path, age: float = 0, authority: Authority | None = None) -> bytes:
        """A CRL for 30 days, of which this share is over."""
        starts = -30 * _DAY * age
        return (authority or self.authority).make_crl(
            *revoked, starts=starts, ends=starts + 30 * _DAY
        )

    def look(self, passphrase: str = _PASSPHRASE) -> dict[str, Any]:
        found: dict[str, Any] = _FILTERS["look_at_authority"](str(self.folder), passphrase)
        return found

    def is_crl_due(self, *revoked: dict[str, str]) -> bool:
        due: list[str] = _FILTERS["find_due_crls"]([str(self.folder)], revoked)
        return due == [str(self.folder)]


@pytest.fixture
def pki(tmp_path: Path) -> _Pki:
    made = _Pki(tmp_path / "pki")
    found = made.look()
    assert (found["problem"], found["complete"], made.is_crl_due()) == ("", True, False)
    return made


def test_authority_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "never"):
        assert _FILTERS["look_at_authority"](str(folder), _PASSPHRASE) == {
            "problem": "",
            "complete": False,
            "ends": "",
            "ends_soon": False,
        }


def test_authority_tells_its_end(pki: _Pki) -> None:
    found = pki.look()
    ends = pki.authority.certificate.not_valid_after_utc
    assert found["ends"] == ends.date().isoformat()
    assert found["ends_soon"], "within a day"


def test_authority_without_certificate_is_not_complete(pki: _Pki) -> None:
    (pki.folder / "ca.pem").unlink()
    found = pki.look()
    assert (found["problem"], found["complete"]) == ("", False)


def test_authority_without_key_is_a_problem_that_says_what_to_do(pki: _Pki) -> None:
    (pki.folder / "ca.key").unlink()
    found = pki.look()
    assert "ca.pem is there but" in found["problem"]
    assert "ca_replace=true" in found["problem"]
    assert not found["complete"]


def test_wrong_passphrase_is_a_problem_that_says_what_to_do(pki: _Pki) -> None:
    found = pki.look(passphrase=_PASSPHRASE + "!")
    assert found["problem"].startswith(f"{pki.folder}/ca.key can't be opened with this passphrase;")
    assert "SEALRELAY_CA_PASSPHRASE" in found["problem"]
    assert not found["complete"]
    assert pki.look(passphrase="")["problem"].startswith(
        f"The passphrase of {pki.folder}/ca.key is missing;"
    )
    (pki.folder / "ca.key").write_text("none")
    assert "can't be opened with this passphrase" in pki.look()["problem"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_key_of_another_user_is_a_problem_that_says_what_to_do(pki: _Pki) -> None:
    (pki.folder / "ca.key").chmod(0o000)
    found = pki.look()
    assert found["problem"].startswith(f"{pki.folder}/ca.key can't be read (Permission denied);")
    assert not found["complete"]


@pytest.mark.parametrize("name", ["ca.key", "ca.pem"])
def test_what_cannot_be_read_is_a_problem_that_says_so(pki: _Pki, name: str) -> None:
    (pki.folder / name).unlink()
    (pki.folder / name).mkdir()
    found = pki.look()
    assert found["problem"].startswith(f"{pki.folder}/{name} can't be read (Is a directory);")


def test_key_of_another_authority_is_not_complete(pki: _Pki) -> None:
    pki.write_key(_OTHER_KEY)
    assert (pki.look()["problem"], pki.look()["complete"]) == ("", False)


@pytest.mark.parametrize(("name", "mode"), [("", 0o755), ("ca.key", 0o640), ("ca.pem", 0o600)])
def test_wrong_modes_are_not_complete(pki: _Pki, name: str, mode: int) -> None:
    (pki.folder / name).chmod(mode)
    found = pki.look()
    assert (found["problem"], found["complete"], pki.is_crl_due()) == ("", False, False)


def test_crl_is_due_when_a_third_of_its_time_is_left(pki: _Pki) -> None:
    crl = pki.folder / "crl.pem"
    for age, due in ((0.6, False), (0.7, True), (1.1, True)):
        crl.write_bytes(pki.make_crl(age=age))
        assert pki.is_crl_due() is due


def test_crl_is_due_when_it_is_not_this_authoritys(pki: _Pki) -> None:
    crl = pki.folder / "crl.pem"
    good = crl.read_bytes()
    crl.write_bytes(pki.make_crl(authority=Authority()))
    assert pki.is_crl_due(), "it has the name, and another key"
    crl.write_text("none")
    assert pki.is_crl_due()
    crl.unlink()
    assert pki.is_crl_due()
    crl.write_bytes(good)
    crl.chmod(0o600)
    assert pki.is_crl_due(), "nobody else can read it"
    crl.chmod(0o644)
    assert not pki.is_crl_due()


def test_crl_is_due_when_it_revokes_others_than_are_revoked(pki: _Pki, tmp_path: Path) -> None:
    made = pki.authority.issue(tmp_path / "made", Leaf([_IDENTITY]))
    certificate = x509.load_pem_x509_certificate((made / "cert.pem").read_bytes())
    revoked = {"issuer": "Test CA", "serial": f"{certificate.serial_number:x}"}
    of_another = {"issuer": "Another CA", "serial": "1f"}
    assert pki.is_crl_due(revoked)
    assert not pki.is_crl_due(of_another)
    (pki.folder / "crl.pem").write_bytes(pki.make_crl(made))
    assert not pki.is_crl_due(revoked, of_another)
    assert pki.is_crl_due()


def _trust(*authorities: Authority) -> dict[str, str]:
    """What a host trusts, as look_at_host.py tells it."""
    return {
        "ca": "".join(authority.pem.decode() for authority in authorities),
        "crl": "".join(authority.make_crl().decode() for authority in authorities),
    }


def test_what_hosts_trust_is_foreign_where_nothing_of_it_is_here(pki: _Pki, tmp_path: Path) -> None:
    find = _FILTERS["find_foreign_authorities"]
    ours, others = _trust(pki.authority), _trust(Authority("Another CA"))
    for folder in (str(pki.folder), str(tmp_path / "never")):
        (foreign,) = find([others, others], folder)
        assert (foreign["name"], foreign["ca"]) == ("Another CA", others["ca"])
        assert foreign["crl"] == others["crl"]
        assert len(foreign["fingerprint"]) == 64
    assert [found["name"] for found in find([ours], str(tmp_path))] == ["Test CA"]
    assert find([ours], str(pki.folder)) == []
    assert find([], str(pki.folder)) == []
    assert find([{"ca": "none", "crl": ""}], str(pki.folder)) == []


def test_who_missed_a_rotation_trusts_nothing_foreign(pki: _Pki) -> None:
    find = _FILTERS["find_foreign_authorities"]
    assert find([_trust(Authority("Another CA")), _trust(pki.authority)], str(pki.folder)) == []


@pytest.mark.parametrize("name", ["next", "previous"])
def test_both_cas_of_a_rotation_are_ours(pki: _Pki, name: str) -> None:
    find = _FILTERS["find_foreign_authorities"]
    other = Authority("Another CA")
    (pki.folder / name).mkdir()
    (pki.folder / name / "ca.pem").write_bytes(other.pem)
    assert find([_trust(other)], str(pki.folder)) == []


def test_a_ca_without_key_gets_no_crl(pki: _Pki) -> None:
    (pki.folder / "crl.pem").unlink()
    assert pki.is_crl_due()
    (pki.folder / "ca.key").unlink()
    assert not pki.is_crl_due()


def test_settings_are_judged_unless_a_dry_run_would_replace_their_certificate() -> None:
    pick = _FILTERS["pick_judge"]
    command = ["/release/bin/sealrelay", "check-config", "%s"]
    kept, replaced = [{"replaced": False}], [{"replaced": False}, {"replaced": True}]
    for given, pretend in ((kept, True), (kept, False), (replaced, False), ([], True)):
        assert pick(given, "/release", pretend) == command
    assert pick(replaced, "/release", True) == []
