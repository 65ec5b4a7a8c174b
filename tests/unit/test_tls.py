"""How errors of TLS are told."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest

from sealrelay.tls import describe_tls_error
from tests.support.pki import Authority, Leaf, spiffe_id
from tests.support.strangers import client_hello


@pytest.mark.parametrize("python", ["older", "newer"])
def test_peer_that_leaves_in_the_handshake_is_said_to_have_done_that(
    tmp_path: Path, python: str
) -> None:
    """Older Pythons set an option that makes another error of it."""
    folder = Authority().issue(tmp_path / "leaf", Leaf([spiffe_id("server", "server1")]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if python == "older":
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
    incoming = ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True)
    incoming.write(client_hello())
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    incoming.write_eof()
    with pytest.raises(ssl.SSLError) as left:
        tls.do_handshake()
    assert describe_tls_error(left.value) == "closed during the handshake"
