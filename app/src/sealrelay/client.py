"""The client: seals a message and keeps trying that one token until it is acknowledged.

Trying again is always safe, since one token is stored at most once; so every failure but a refusal
is tried again, over every coordinator given, until the deadline.

    client = Client.from_file(Path("/etc/sealrelay/clients/client1/client.toml"))
    receipt = client.send("hello")
"""

from __future__ import annotations

import json
import random
import re
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from typing_extensions import Self
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.poolmanager import PoolManager
from urllib3.response import HTTPResponse

from sealrelay.client_files import ClientFiles, ClientTls, DeadlineSocket
from sealrelay.config import ClientSettings, load_settings
from sealrelay.errors import CertificateRefused, MessageRefused, TokenRefused, Unreachable
from sealrelay.identity import IdentityRefused, LeafRefused, Role
from sealrelay.seal import Token
from sealrelay.text import escape_text
from sealrelay.tls import describe_tls_error, peer_certificate
from sealrelay.trust import Leaf, read_leaf

_CONNECT_TIMEOUT = 3.0
_ANSWER_TIMEOUT = 12.0
"""Seconds; somewhat more than a coordinator's usual deadline, so that its answer is heard."""
_LARGEST_ANSWER = 1 << 16
"""Bytes. What a coordinator has to say takes a few hundred."""
_REFUSAL = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED)")
"""OpenSSL's names of the alerts with which a peer refuses a certificate (RFC 8446, section 6.2)."""
_PAUSE = (0.05, 1.0)
"""Seconds between rounds over all coordinators: the first pause, and the longest."""


@dataclass(frozen=True)
class Receipt:
    """An acknowledgement: the message is stored, on disk, once."""

    message_id: str
    """64 hexadecimal digits."""
    served_by: str
    """The name of the server that stored it, control characters escaped."""
    replayed: bool
    """Whether it was stored already, by an earlier try whose answer was lost, say."""
    tries: int
    seconds: float
    """From the first try to the acknowledgement."""


@dataclass(frozen=True)
class _Answer:
    status: int
    reason: str
    headers: Mapping[str, str]
    fields: Mapping[str, Any]
    """Of the JSON object in its body; none where that is something else."""

    @property
    def detail(self) -> str:
        """Why, in its own words; escaped, since they may be shown on a terminal."""
        detail = self.fields.get("detail")
        if not isinstance(detail, str):
            detail = f"answered {self.status} {self.reason}"
        return escape_text(detail)


class _TryAgain(Exception):
    """A try that failed for now; ``wait`` is what the other side asked for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class Client:
    """Sends sealed messages. Not to be shared between threads: make ``another`` for each."""

    def __init__(
        self,
        settings: ClientSettings,
        *,
        on_retry: Callable[[str], None] = lambda reason: None,
        files: ClientFiles | None = None,
    ) -> None:
        """``on_retry`` hears, in one line each, of tries that failed and will be repeated.

        The files that the settings name are read now, and again whenever they have changed;
        ``files`` are those of a client with the same settings. Raises ConfigError and TlsRefused.
        """
        self._settings = settings
        self._urls = deque(settings.coordinators)
        self._on_retry = on_retry
        self._files = files or ClientFiles(settings)
        self._tls = self._files.tls.value
        self._connect()

    @classmethod
    def from_file(cls, path: Path, **options: Any) -> Self:
        """The client that a ``client.toml`` describes. Raises ConfigError."""
        return cls(load_settings(path, ClientSettings), **options)

    @property
    def name(self) -> str:
        """The client's name, as in its certificate."""
        return self._settings.name

    def another(self) -> Self:
        """A client like this one, for another thread. They read their files once for all."""
        return type(self)(self._settings, on_retry=self._on_retry, files=self._files)

    def seal(self, message: str | bytes) -> Token:
        """Seal a message: each call makes another message, also for the same text."""
        self._files.look()
        keyring = self._files.keyring.value
        return keyring.seal(message.encode() if isinstance(message, str) else message)

    def send(self, message: str | bytes) -> Receipt:
        """Seal a message and have it stored. Raises as ``send_token`` does."""
        keyring = self._files.keyring.value
        try:
            return self.send_token(self.seal(message))
        except TokenRefused:
            # It is not stored. Perhaps this client was idle while its payload keys were replaced.
            if not self._files.catch_up(self._files.keyring, keyring):
                raise
            return self.send_token(self.seal(message))

    def send_token(self, token: Token) -> Receipt:
        """Have a sealed message stored, trying every coordinator until the deadline.

        Raises Unreachable when the deadline passed (the message may or may not be stored; the same
        token may be sent again), CertificateRefused, TokenRefused, MessageRefused.
        """
        began = time.monotonic()
        deadline = began + self._settings.deadline
        pause = _PAUSE[0]
        tries = 0
        last = ""
        while True:
            self._use_files()
            wait = 0.0
            refused: list[CertificateRefused] = []
            for url in list(self._urls):
                tries += 1
                try:
                    answer = self._post(url, token, deadline)
                    return self._receipt(url, answer, token, tries, time.monotonic() - began)
                except CertificateRefused as error:
                    refused.append(error)
                    last = str(error)
                except _TryAgain as error:
                    wait = max(wait, error.wait)
                    is_over = time.monotonic() >= deadline
                    if not is_over or not last:  # the deadline may have cut this try short
                        last = f"{url}: {error}"
                    if is_over:
                        raise Unreachable(self._summary(last, tries)) from None
                if len(self._urls) > 1 or not refused:
                    self._on_retry(f"try {tries}: {last}")
                self._urls.rotate(-1)  # the next message begins with the one that answers
            if len(refused) == len(self._urls) and not self._files.catch_up(
                self._files.tls, self._tls
            ):
                raise refused[0]
            wait = max(wait, pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load
            if time.monotonic() + wait >= deadline:
                raise Unreachable(self._summary(last, tries))
            time.sleep(wait)
            pause = min(2 * pause, _PAUSE[1])

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _use_files(self) -> None:
        """Use what was replaced since, before anybody refuses the old."""
        self._files.look()
        if self._tls is not self._files.tls.value:
            self._tls = self._files.tls.value
            if not self._adapter.go_on_with(self._tls):
                self._session.close()
                self._connect()

    def _connect(self) -> None:
        self._session = _Session()
        self._session.trust_env = False  # no proxy, no other CA bundle, no .netrc password
        self._adapter = _Adapter(self._tls, self._settings.trust_domain)
        self._session.mount("https://", self._adapter)

    def _summary(self, last: str, tries: int) -> str:
        return (
            f"not acknowledged within {self._settings.deadline:g} s, after {tries} "
            f"{'try' if tries == 1 else 'tries'}; the last: {last}"
        )

    def _post(self, url: str, token: Token, deadline: float) -> _Answer:
        now = time.monotonic()
        left = max(0.001, deadline - now)
        patience = min(_ANSWER_TIMEOUT, left)
        self._adapter.deadline = now + patience
        try:
            with self._session.post(
                f"{url.rstrip('/')}/api/data",
                json={"data": token.text},
                timeout=(min(_CONNECT_TIMEOUT, left), patience),
                allow_redirects=False,
                stream=True,
            ) as response:
                return _read_answer(response)
        except requests.exceptions.SSLError as error:
            raise self._explain_tls(url, error) from None
        except requests.exceptions.ConnectTimeout:
            raise _TryAgain("no connection in time") from None
        except requests.exceptions.Timeout:
            raise _TryAgain("no answer in time") from None
        except (requests.exceptions.RequestException, HTTPError) as error:
            raise _TryAgain(_root_reason(error)) from None

    def _explain_tls(self, url: str, error: requests.exceptions.SSLError) -> Exception:
        causes = list(_causes(error))
        for cause in causes:
            if isinstance(cause, IdentityRefused):
                return CertificateRefused(f"{url}: this is not a coordinator of ours: {cause}")
        cause = next((cause for cause in causes if isinstance(cause, ssl.SSLError)), error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return CertificateRefused(
                f"{url}: the coordinator's certificate is refused: {describe_tls_error(cause)}"
            )
        if isinstance(cause, ssl.SSLError) and _REFUSAL.search(cause.reason or ""):
            return CertificateRefused(
                f"{url}: the coordinator refuses this client's certificate: "
                f"{describe_tls_error(cause)}"
            )
        reason = describe_tls_error(cause) if isinstance(cause, ssl.SSLError) else "TLS failed"
        return _TryAgain(reason)

    def _receipt(
        self, url: str, answer: _Answer, token: Token, tries: int, seconds: float
    ) -> Receipt:
        status = answer.status
        if status == 200:
            return self._accepted(answer, token, tries, seconds)
        if status == 403:
            raise CertificateRefused(f"{url}: {answer.detail}")
        if status == 422:
            raise TokenRefused(
                f"{url}: {answer.detail} The servers may have other payload keys for {self.name}, "
                f"or this machine's clock is wrong."
            )
        if status in (400, 404, 405, 411, 413, 415):
            raise MessageRefused(f"{url}: {answer.detail}")
        retry_after = answer.headers.get("Retry-After", "")
        wait = float(retry_after) if retry_after.isdecimal() else 0.0
        raise _TryAgain(f"{status}: {answer.detail}", min(wait, 5.0))

    @staticmethod
    def _accepted(answer: _Answer, token: Token, tries: int, seconds: float) -> Receipt:
        message_id = token.message_id.hex()
        # Later releases may add other fields.
        acknowledged = answer.fields.get("result") == "ok"
        if not acknowledged or answer.headers.get("Message-Id") != message_id:
            raise _TryAgain("an answer that does not acknowledge this message")
        return Receipt(
            message_id=message_id,
            served_by=escape_text(answer.headers.get("Served-By", "")),
            replayed=answer.headers.get("Idempotent-Replayed") == "true",
            tries=tries,
            seconds=round(seconds, 6),
        )


def _read_answer(response: requests.Response) -> _Answer:
    """Raises _TryAgain when it is too long, and what requests raises."""
    body = bytearray()
    for piece in response.iter_content(_LARGEST_ANSWER):
        body += piece
        if len(body) > _LARGEST_ANSWER:
            raise _TryAgain(f"an answer of more than {_LARGEST_ANSWER} bytes")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return _Answer(
        response.status_code,
        response.reason,
        response.headers,
        document if isinstance(document, dict) else {},
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error`` and all that requests and urllib3 wrapped in it, outermost first."""
    seen: list[BaseException] = []
    queue: list[object] = [error]
    while queue:
        candidate = queue.pop(0)
        if isinstance(candidate, BaseException) and candidate not in seen:
            seen.append(candidate)
            yield candidate
            queue += [getattr(candidate, "reason", None), *candidate.args]
            queue += [candidate.__cause__, candidate.__context__]


def _root_reason(error: BaseException) -> str:
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
    return "the connection was closed without an answer"


class _Session(requests.Session):
    """Ignores redirects: requests reads the whole body of one, however long, to find its target."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        return None


class _Connection(HTTPSConnection):
    """A connection that belongs to a coordinator of our trust domain, or is not used."""

    adapter: _Adapter

    def connect(self) -> None:
        # The pool has that of the files that were there first.
        self.ssl_context = self.adapter.tls.context
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        try:
            self.adapter.admit(self.sock)
        except IdentityRefused as refused:
            self.close()
            raise ssl.SSLError(1, "not a coordinator") from refused

    def getresponse(self) -> HTTPResponse:  # type: ignore[override]
        assert isinstance(self.sock, DeadlineSocket)
        self.sock.deadline = self.adapter.deadline
        return super().getresponse()


class _Adapter(HTTPAdapter):
    """Carries our TLS context, and the check of who answers, into requests."""

    def __init__(self, tls: ClientTls, trust_domain: str) -> None:
        self.tls = tls
        self.deadline = 0.0
        """When the answer has to be complete, in seconds of the monotonic clock."""
        self._trust_domain = trust_domain
        self._admitted: set[Leaf] = set()
        super().__init__()

    def admit(self, sock: ssl.SSLSocket) -> None:
        """Raises IdentityRefused unless a coordinator of ours is at the other end."""
        peer = self.tls.files.identify(sock)
        if peer.role is not Role.COORDINATOR or peer.trust_domain != self._trust_domain:
            raise IdentityRefused(f"it is {peer}")
        self._admitted.add(read_leaf(peer_certificate(sock)))

    def go_on_with(self, tls: ClientTls) -> bool:
        """Use other files from now on, and keep the connections.

        Whether that may be: they still show what they have shown, and nobody at the other end of
        one has ceased to count.
        """
        if not tls.files.shows_the_same(self.tls.files):
            return False
        now = time.time()
        try:
            for leaf in self._admitted:
                tls.files.trust.check(leaf, now)
        except LeafRefused:
            return False
        self.tls = tls
        return True

    def cert_verify(self, conn: Any, *_more: Any) -> None:
        """Leave certificates to the context.

        requests would have the files read again for each connection, from the middle of their
        replacement, say, or would bring CAs of its own.
        """
        conn.cert_reqs = "CERT_REQUIRED"

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self.tls.context, **kwargs)

        class Connection(_Connection):
            adapter = self

        class Pool(HTTPSConnectionPool):
            ConnectionCls = Connection

        manager: PoolManager = self.poolmanager
        manager.pool_classes_by_scheme = {"http": HTTPConnectionPool, "https": Pool}
