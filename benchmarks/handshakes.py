"""``python -m benchmarks.handshakes``: what a handshake costs either side, by the CA's curve.

In memory, with the contexts of a coordinator and a client: both show a leaf on P-256, and verify
the other's and the CRL with the CA's key.
"""

from __future__ import annotations

import contextlib
import ssl
import statistics
import tempfile
import time
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric import ec

from sealrelay.tls import TlsFiles, TlsSet
from tests.support.pki import BOTH, Authority, Leaf, spiffe_id

_CURVES = (ec.SECP256R1(), ec.SECP384R1())
_STEPS = 2
"""Turns that each side takes."""

_Sides = tuple[ssl.SSLContext, ssl.SSLContext]
"""Who connects, and who accepts."""


@click.command()
@click.option("--handshakes", type=click.IntRange(10, 10_000), default=200, show_default=True)
def main(handshakes: int) -> None:
    """Shake hands with a CA on each curve in turn, and show the medians."""
    with tempfile.TemporaryDirectory(prefix="sealrelay-handshakes-") as folder:
        sides = {curve.name: _make_sides(Path(folder) / curve.name, curve) for curve in _CURVES}
    spent: dict[str, list[list[float]]] = {name: [] for name in sides}
    for _ in range(handshakes):
        for name, (connecting, accepting) in sides.items():
            spent[name].append(_shake_hands(connecting, accepting))
    click.echo("CA's curve  processor ms: connecting  accepting")
    for name, times in spent.items():
        connects, accepts = (statistics.median(one) * 1000 for one in zip(*times, strict=True))
        click.echo(f"{name:10}  {connects:24.2f}  {accepts:9.2f}")


def _make_sides(folder: Path, curve: ec.EllipticCurve) -> _Sides:
    authority = Authority(key=ec.generate_private_key(curve))
    client, coordinator = (
        authority.issue(folder / role, Leaf([spiffe_id(role, "one")], usages=BOTH))
        for role in ("client", "coordinator")
    )
    crl = folder / "crl.pem"
    crl.write_bytes(authority.make_crl())
    connecting, accepting = (_read(leaf, crl) for leaf in (client, coordinator))
    return connecting.make_client_context(check_hostname=False), accepting.make_server_context()


def _read(leaf: Path, crl: Path) -> TlsSet:
    cert, key, ca = (str(leaf / name) for name in ("cert.pem", "key.pem", "ca.pem"))
    return TlsSet(TlsFiles(cert, key, ca, str(crl)))


def _shake_hands(connecting: ssl.SSLContext, accepting: ssl.SSLContext) -> list[float]:
    """Processor seconds of either side."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        connecting.wrap_bio(back, there),
        accepting.wrap_bio(there, back, server_side=True),
    )
    spent = [0.0, 0.0]
    for _ in range(_STEPS):
        for number, side in enumerate(sides):
            began = time.process_time()
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
            spent[number] += time.process_time() - began
    if not all(side.version() for side in sides):
        raise click.ClickException("the handshake came to no end")
    return spent


if __name__ == "__main__":
    main()
