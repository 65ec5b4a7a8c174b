"""Every check that a peer must pass, and how to take it out of the source.

For each there are tests that fail without it. Where several stand one behind the other, each has
a test that only it makes pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MATRIX = "tests/integration/test_bad_peers.py::"
_ACCESS = "tests/integration/test_access.py::"
_REVOKED = "tests/integration/test_revocation.py::"
_TRUST = "tests/unit/test_trust.py::"
_IDENTITY = "tests/unit/test_identity.py::"

_HANDSHAKE = f"{_MATRIX}test_peer_is_refused_in_the_handshake"
_NO_IDENTITY = f"{_MATRIX}test_peer_without_an_identity_of_ours_is_refused"
_STRANGE = f"{_MATRIX}test_peer_of_another_role_or_trust_domain_is_refused"
_FORWARDED = f"{_MATRIX}test_forwarded_certificate_that_does_not_count_is_refused"


@dataclass(frozen=True)
class Mutation:
    """A check that is taken out: in ``file``, ``old`` becomes ``new``."""

    check: str
    """What it checks."""
    file: str
    """Below ``sealrelay``."""
    old: str
    new: str
    test: str
    """Some of the tests that fail then, as pytest names them."""

    def apply(self, package: Path) -> None:
        """Take the check out of the package. Raises LookupError when it isn't there any more."""
        path = package / self.file
        source = path.read_text()
        if source.count(self.old) != 1:
            raise LookupError(f"{self.file} holds this {source.count(self.old)} times: {self.old}")
        path.write_text(source.replace(self.old, self.new))


def _everybody_may_call(endpoint: str, roles: str) -> Mutation:
    return Mutation(
        f"roles of {endpoint}",
        "identity.py",
        f"Endpoint.{endpoint}: frozenset({{{roles}}})",
        f"Endpoint.{endpoint}: frozenset(Role)",
        f"{_IDENTITY}test_a_role_may_call_what_the_design_says_and_nothing_else",
    )


TLS = [
    Mutation(
        "peers show a certificate",
        "tls.py",
        "verify_mode = ssl.CERT_REQUIRED",
        "verify_mode = ssl.CERT_OPTIONAL",
        f"{_HANDSHAKE}[coordinator-no certificate]",
    ),
    Mutation(
        "a connection without a certificate has no identity",
        "tls.py",
        "if der is None:",
        "if False:",
        f"{_TRUST}test_who_shows_no_certificate_has_none",
    ),
    Mutation(
        "TLS 1.3 only",
        "tls.py",
        "context.minimum_version = ssl.TLSVersion.TLSv1_3",
        "pass",
        f"{_HANDSHAKE}[server-TLS 1.2]",
    ),
    Mutation(
        "P-256 only",
        "tls.py",
        'context.set_ecdh_curve("prime256v1")',
        "pass",
        f"{_HANDSHAKE}[coordinator-another group]",
    ),
    Mutation(
        "strict RFC 5280",
        "tls.py",
        "context.verify_flags |= ssl.VERIFY_X509_STRICT",
        "pass",
        f"{_HANDSHAKE}[coordinator-issuer's key not named]",
    ),
    Mutation(
        "no weak key",
        "tls.py",
        "context.minimum_version = ssl.TLSVersion.TLSv1_3",
        "context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        '        context.set_ciphers("DEFAULT:@SECLEVEL=0")',
        f"{_HANDSHAKE}[server-weak key]",
    ),
    Mutation(
        "no weak signature",
        "tls.py",
        "context.minimum_version = ssl.TLSVersion.TLSv1_3",
        "context.minimum_version = ssl.TLSVersion.TLSv1_3\n"
        '        context.set_ciphers("DEFAULT:@SECLEVEL=0")',
        f"{_HANDSHAKE}[coordinator-weak signature]",
    ),
    Mutation(
        "revoked peers end in the handshake",
        "tls.py",
        "if self.trust.lets_tls_check_crls(time.time()):",
        "if False:",
        f"{_HANDSHAKE}[coordinator-revoked]",
    ),
    Mutation(
        "no session to resume",
        "tls.py",
        "context.num_tickets = 0",
        "pass",
        f"{_ACCESS}test_no_session_is_given_that_would_skip_the_certificate_check",
    ),
    Mutation(
        "the host called is in the leaf",
        "tls.py",
        "context.check_hostname = check_hostname",
        "context.check_hostname = False",
        f"{_ACCESS}test_client_refuses_who_is_not_the_coordinator[other host]",
    ),
    Mutation(
        "a client's own look at who answers",
        "tls.py",
        "        self.trust.check(read_leaf(der), time.time())\n",
        "",
        f"{_REVOKED}test_client_with_a_crl_refuses_a_revoked_coordinator",
    ),
]

IDENTITIES = [
    Mutation(
        "a CA's certificate is no leaf",
        "identity.py",
        "    if is_ca:",
        "    if False:",
        f"{_MATRIX}test_certificate_of_another_kind_gives_no_identity",
    ),
    Mutation(
        "the URI is of our form",
        "identity.py",
        "    if match is None:\n",
        "    if match is None:\n"
        "        return Identity('sealrelay.internal', Role.CLIENT, 'client1')\n",
        f"{_NO_IDENTITY}[coordinator-another scheme]",
    ),
    Mutation(
        "one URI, not two",
        "identity.py",
        "if len(uris) != 1:",
        "if not uris:",
        f"{_NO_IDENTITY}[server-two URI SANs]",
    ),
    Mutation(
        "one URI, not none",
        "identity.py",
        "if len(uris) != 1:",
        "if len(uris) > 1:",
        f"{_NO_IDENTITY}[coordinator-no URI SAN]",
    ),
    Mutation(
        "nothing after the identity",
        "identity.py",
        "_SPIFFE_ID.fullmatch(uri)",
        "_SPIFFE_ID.match(uri)",
        f"{_NO_IDENTITY}[coordinator-trailing slash]",
    ),
    Mutation(
        "nothing before the identity",
        "identity.py",
        "_SPIFFE_ID.fullmatch(uri)",
        "_SPIFFE_ID.search(uri)",
        f"{_IDENTITY}test_any_other_spelling_is_refused",
    ),
    Mutation(
        "upper case is another identity",
        "identity.py",
        '(?P<name>{_NAME})", re.ASCII',
        '(?P<name>{_NAME})", re.IGNORECASE',
        f"{_NO_IDENTITY}[server-upper case in the trust domain]",
    ),
    Mutation(
        "percent-encoding is not undone",
        "identity.py",
        "_SPIFFE_ID.fullmatch(uri)",
        "_SPIFFE_ID.fullmatch(__import__('urllib.parse').parse.unquote(uri))",
        f"{_NO_IDENTITY}[coordinator-percent-encoding in the name]",
    ),
    Mutation(
        "white space is not taken off",
        "identity.py",
        "_SPIFFE_ID.fullmatch(uri)",
        "_SPIFFE_ID.fullmatch(uri.strip())",
        f"{_NO_IDENTITY}[coordinator-line end]",
    ),
    Mutation(
        "the role is one of ours",
        "identity.py",
        'raise IdentityRefused("the URI names no role of sealrelay") from None',
        "role = Role.CLIENT",
        f"{_NO_IDENTITY}[coordinator-unknown role]",
    ),
    Mutation(
        "the trust domain is ours",
        "identity.py",
        "peer.trust_domain == trust_domain and ",
        "",
        f"{_STRANGE}[server-other trust domain]",
    ),
    Mutation(
        "the role may call this",
        "identity.py",
        " and peer.role in MAY_CALL[endpoint]",
        "",
        f"{_STRANGE}[coordinator-role operator]",
    ),
    _everybody_may_call("COORDINATOR_DATA", "Role.CLIENT"),
    _everybody_may_call("COORDINATOR_HEALTH", "Role.COORDINATOR, Role.OPERATOR"),
    _everybody_may_call("COORDINATOR_STATUS", "Role.OPERATOR"),
    _everybody_may_call("COORDINATOR_PAGE", "Role.OPERATOR"),
    _everybody_may_call("COORDINATOR_METRICS", "Role.OPERATOR"),
    _everybody_may_call("SERVER_DATA", "Role.COORDINATOR"),
    _everybody_may_call("SERVER_BATCH", "Role.COORDINATOR"),
    _everybody_may_call("SERVER_HEALTH", "Role.COORDINATOR, Role.SERVER, Role.OPERATOR"),
    _everybody_may_call("SERVER_METRICS", "Role.OPERATOR"),
]

LEAVES = [
    Mutation(
        "its CA is trusted",
        "trust.py",
        "if leaf.issuer not in self._trusted:",
        "if False:",
        f"{_TRUST}test_leaf_of_another_ca_does_not_count_whatever_that_is_called",
    ),
    Mutation(
        "a CA is known by its key too",
        "trust.py",
        'return certificate.subject.public_bytes(), key.digest if key else b""',
        'return certificate.subject.public_bytes(), b""',
        f"{_TRUST}test_leaf_of_another_ca_does_not_count_whatever_that_is_called",
    ),
    Mutation(
        "it has not expired",
        "trust.py",
        "if now > leaf.ends:",
        "if False:",
        f"{_FORWARDED}[expired-it has expired]",
    ),
    Mutation(
        "it is valid already",
        "trust.py",
        "if now < leaf.starts:",
        "if False:",
        f"{_FORWARDED}[not_yet_valid-it is not valid yet]",
    ),
    Mutation(
        "it is not revoked",
        "trust.py",
        "if any(leaf.serial in crl.serials for crl in crls):",
        "if False:",
        f"{_FORWARDED}[revoked-it is revoked]",
    ),
    Mutation(
        "its CA signed it",
        "trust.py",
        "if not _is_signed(der, self._trusted[leaf.issuer]):",
        "if False:",
        f"{_FORWARDED}[altered-it is not signed by its CA]",
    ),
    Mutation(
        "its CA has a CRL where others have one",
        "trust.py",
        "        if crls is None:\n            raise",
        "        if crls is None:\n            return\n            raise",
        f"{_TRUST}test_ca_without_crl_beside_one_that_has_one_is_not_believed",
    ),
    Mutation(
        "its CA's CRL has not run out, where that counts",
        "trust.py",
        "if self._refuse_after_crl and now > max(crl.ends for crl in crls):",
        "if False:",
        f"{_TRUST}test_crl_that_has_run_out_decides_on_or_shuts_all_out",
    ),
    Mutation(
        "a CRL says all that it seems to",
        "trust.py",
        "        if critical:\n",
        "        if False:\n",
        f"{_TRUST}test_crl_that_says_less_than_it_seems_to_is_refused",
    ),
    Mutation(
        "a CRL says when the next one is due",
        "trust.py",
        "        if ends is None:\n            raise",
        "        ends = ends or starts\n        if ends is None:\n            raise",
        f"{_TRUST}test_crl_without_a_next_update_is_refused",
    ),
    Mutation(
        "a file of CRLs holds one",
        "trust.py",
        "            if not self._crls:\n",
        "            if False:\n",
        f"{_TRUST}test_crl_of_whom_may_not_sign_one_is_refused",
    ),
    Mutation(
        "a CRL is signed by the CA",
        "trust.py",
        "return crl.is_signature_valid(ca.public_key())",
        "return True",
        f"{_TRUST}test_crl_of_whom_may_not_sign_one_is_refused",
    ),
    Mutation(
        "the CA may sign CRLs",
        "trust.py",
        "if usage is not None and not usage.crl_sign:",
        "if False:",
        f"{_TRUST}test_crl_of_whom_may_not_sign_one_is_refused",
    ),
    Mutation(
        "a CRL names the CA",
        "trust.py",
        "if ca.subject == crl.issuer and _has_signed(ca, crl):",
        "if _has_signed(ca, crl):",
        f"{_TRUST}test_crl_of_whom_may_not_sign_one_is_refused",
    ),
]

REQUESTS = [
    Mutation(
        "the role, before Flask's endpoints",
        "web.py",
        "_check_role(g.peer, endpoint, settings.trust_domain)",
        "pass",
        f"{_ACCESS}test_each_role_reaches_what_it_may_call_and_nothing_else"
        "[COORDINATOR_STATUS-client]",
    ),
    Mutation(
        "the role, before the endpoints of messages",
        "web.py",
        "_check_role(peer, endpoint, settings.trust_domain)",
        "pass",
        f"{_STRANGE}[server-role client]",
    ),
    Mutation(
        "who may not call is told so",
        "web.py",
        "    if not may_call(peer, endpoint, trust_domain):\n",
        "    if False:\n",
        f"{_STRANGE}[server-role operator]",
    ),
    Mutation(
        "what is not listed is closed",
        "web.py",
        "        if endpoint is None:\n            raise",
        "        if endpoint is None:\n            return\n            raise",
        "tests/integration/test_messages.py::test_there_is_nothing_but_the_documented_endpoints",
    ),
    Mutation(
        "a leaf is judged with each request",
        "worker.py",
        "        if self._found_good != self.credentials.generation:\n            self._judge()",
        "        if self._found_good < 0:\n            self._found_good = 0",
        f"{_REVOKED}test_crl_that_is_not_in_force_yet_counts_all_the_same[server]",
    ),
    Mutation(
        "judging asks whether the leaf counts",
        "worker.py",
        "self.credentials.check(self._leaf)",
        "pass",
        f"{_REVOKED}test_crl_that_is_not_in_force_yet_counts_all_the_same[coordinator]",
    ),
    Mutation(
        "an idle connection's leaf is judged again",
        "worker.py",
        "        if refusal:\n",
        "        if False:\n",
        f"{_REVOKED}test_connection_whose_leaf_expires_is_closed[server]",
    ),
    Mutation(
        "a leaf may expire while its connection is open",
        "worker.py",
        " or now > self._leaf.ends",
        "",
        f"{_REVOKED}test_connection_whose_leaf_expires_is_closed[coordinator]",
    ),
    Mutation(
        "what was resealed is no message",
        "seal.py",
        "(plaintext, _RESEALED_AT)",
        "(plaintext, token.sealed_at)",
        "tests/integration/test_reseal.py"
        "::test_token_that_was_resealed_is_refused_and_the_one_that_was_sent_is_known[sqlite]",
    ),
    Mutation(
        "what was resealed is no message, whatever the clock",
        "seal.py",
        "if token.sealed_at == _RESEALED_AT:",
        "if False:",
        "tests/unit/test_seal.py::test_resealed_token_is_read_in_a_store_and_taken_by_no_server",
    ),
    Mutation(
        "a forwarded certificate counts",
        "server.py",
        "        trust.check_signed(der, time.time())\n",
        "",
        _FORWARDED,
    ),
    Mutation(
        "a forwarded certificate is a client's",
        "server.py",
        "client.role is not Role.CLIENT or ",
        "",
        f"{_ACCESS}test_only_a_client_can_be_forwarded",
    ),
    Mutation(
        "a forwarded client is of our trust domain",
        "server.py",
        " or client.trust_domain != trust_domain",
        "",
        f"{_ACCESS}test_client_of_another_trust_domain_cannot_be_forwarded",
    ),
    Mutation(
        "a forwarded certificate comes in the header's one form",
        "server.py",
        'if not (len(header) > 2 and header.startswith(":") and header.endswith(":")):',
        "if False:",
        f"{_ACCESS}test_header_that_is_not_one_certificate_is_malformed",
    ),
]

ANSWERS = [
    Mutation(
        "a server is the one that is called",
        "dispatch/connection.py",
        "if identity != self._identity:",
        "if False:",
        f"{_ACCESS}test_coordinator_refuses_who_is_not_the_server",
    ),
    Mutation(
        "a server's leaf counts",
        "dispatch/connection.py",
        "        self._credentials.check(leaf)\n",
        "",
        f"{_REVOKED}test_lane_heeds_a_crl_whose_successor_is_overdue",
    ),
    Mutation(
        "a server's leaf counts still",
        "dispatch/connection.py",
        "if self._found_good != self._credentials.generation:",
        "if False:",
        f"{_REVOKED}test_lane_that_nobody_told_of_a_reload_is_not_used_again",
    ),
    Mutation(
        "a server is shown the leaf that is in use",
        "dispatch/connection.py",
        "self._shown != self._credentials.shown or ",
        "",
        f"{_REVOKED}test_lane_that_nobody_told_of_a_new_leaf_is_not_used_again",
    ),
    Mutation(
        "a server's leaf has not expired since",
        "dispatch/connection.py",
        "return time.time() < self._leaf.ends",
        "return True",
        f"{_REVOKED}test_lane_to_a_server_whose_leaf_expires_is_not_used_again",
    ),
    Mutation(
        "a coordinator is one",
        "client.py",
        "peer.role is not Role.COORDINATOR or ",
        "",
        f"{_ACCESS}test_client_refuses_who_is_not_the_coordinator[server]",
    ),
    Mutation(
        "a coordinator is of our trust domain",
        "client.py",
        " or peer.trust_domain != self._trust_domain",
        "",
        f"{_ACCESS}test_client_refuses_who_is_not_the_coordinator[other trust domain]",
    ),
    Mutation(
        "a coordinator's leaf counts still",
        "client.py",
        "tls.files.trust.check(leaf, now)",
        "pass",
        f"{_REVOKED}test_client_ends_its_open_connection_to_a_revoked_coordinator",
    ),
    Mutation(
        "a coordinator is shown the leaf that is in use",
        "client.py",
        "if not tls.files.shows_the_same(self.tls.files):",
        "if False:",
        f"{_REVOKED}test_client_keeps_its_connection_until_it_has_another_leaf",
    ),
    Mutation(
        "an acknowledgement is of this message",
        "client.py",
        ' or answer.headers.get("Message-Id") != message_id',
        "",
        "tests/integration/test_threats.py::test_acknowledgement_of_another_message_is_not_taken",
    ),
    Mutation(
        "a probe asks its own service",
        "probe.py",
        "if identity != own_identity(settings):",
        "if False:",
        "tests/integration/test_services.py::test_probe_is_not_deceived_by_another_service",
    ),
    Mutation(
        "an operator asks who is meant",
        "status.py",
        "if not trusted or (name is not None and peer.name != name):",
        "if False:",
        "tests/integration/test_status.py"
        "::test_whoever_answers_in_a_servers_place_is_not_taken_for_it",
    ),
]

MUTATIONS = [*TLS, *IDENTITIES, *LEAVES, *REQUESTS, *ANSWERS]
