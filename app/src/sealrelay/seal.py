"""Keyrings, sealed messages (Fernet tokens) and message ids.

A token's layout is the Fernet specification's: version 0x80, time (8 bytes, seconds, big endian),
IV (16), AES-128-CBC ciphertext, HMAC-SHA256 (32). The message id is that HMAC: authenticated, fresh
for every seal, the same for every re-send of one token, and readable without a key.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

MAX_CLOCK_SKEW = 60
"""Seconds that a token's time may lie in the future (the Fernet implementation's own limit)."""

_RESEALED_AT = 0
"""The time in a token that was resealed, in seconds since the epoch: 1970. It has an id of its own,
so it would be stored beside its message; every release refuses what is as old as that."""

_VERSION = 0x80
_OVERHEAD = 1 + 8 + 16 + 32
_BLOCK = 16

_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URLSAFE = bytes.maketrans(b"-_", b"+/")
"""The alphabets of RFC 4648 §5 and §4. The library's functions for them take twice the time."""


class TokenMalformed(ValueError):
    """A text that is not a Fernet token in its canonical form. Holds no part of the text."""


class TokenNotOpened(ValueError):
    """A token that these keys do not open, or that is outside its time window."""


class KeyringError(ValueError):
    """A text that is not a keyring. Holds no part of the text."""


class Token(msgspec.Struct, frozen=True, gc=False):
    """A sealed message that is well formed; whether a key opens it is not known yet."""

    text: str
    message_id: bytes
    """32 bytes: the token's HMAC tag."""
    sealed_at: int
    """Seconds since the epoch, as the sealing client's clock had it."""


def parse_token(text: str) -> Token:
    """Read the public part of a token: its message id and its time.

    Raises TokenMalformed unless ``text`` is canonical. Base64 is malleable (padding, line breaks
    and stray bits decode all the same), so any other spelling of the same bytes is refused: one
    message has one text.
    """
    try:
        # decodes more than it should, as nothing else would encode to the same text again
        spelled = text.encode("ascii")
        raw = binascii.a2b_base64(spelled.translate(_FROM_URLSAFE))
    except (UnicodeEncodeError, binascii.Error):
        raise TokenMalformed("the data is not base64url text") from None
    if binascii.b2a_base64(raw, newline=False).translate(_TO_URLSAFE) != spelled:
        raise TokenMalformed("the data is not in canonical base64url form")
    body = len(raw) - _OVERHEAD
    if body < _BLOCK or body % _BLOCK or raw[0] != _VERSION:
        raise TokenMalformed("the data is not a Fernet token")
    return Token(text, raw[-32:], int.from_bytes(raw[1:9], "big"))


class Keyring:
    """One client's payload keys, newest first. Seals with the newest, opens with any of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Raises KeyringError when there is no key, or one is not 32 bytes in base64url."""
        if not keys:
            raise KeyringError("it holds no key")
        if not all(map(is_key, keys)):
            raise KeyringError("one of its lines is not a Fernet key")
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def __repr__(self) -> str:
        return "<Keyring>"

    def seal(self, plaintext: bytes) -> Token:
        """Seal a message under the newest key; each call makes another token: another message."""
        return parse_token(self._fernet.encrypt(plaintext).decode("ascii"))

    def open(self, token: Token, *, ttl: int | None = None, now: int = 0) -> bytes:
        """Open a token that is at most ``ttl`` seconds old at ``now`` (seconds since the epoch).

        ``ttl=None`` opens a token of any age, as one that is stored already. Raises TokenNotOpened.
        """
        try:
            if ttl is None:
                return self._fernet.decrypt(token.text)
            if token.sealed_at == _RESEALED_AT:  # whatever the ttl, and the clock
                raise TokenNotOpened("it was resealed in a store, and no client sends such a token")
            if token.sealed_at + ttl < now:
                raise TokenNotOpened(f"the token is older than {ttl} s")
            if token.sealed_at > now + MAX_CLOCK_SKEW:
                raise TokenNotOpened("the token's time lies in the future")
            return self._fernet.decrypt_at_time(token.text, ttl, now)
        except InvalidToken:
            raise TokenNotOpened("the token does not open with this client's keys") from None

    def reseal(self, token: Token) -> str:
        """The text of a token of the newest key for the same message, to be kept in a store.

        Its id is not the message's, and its time is one at which no server takes it for a message.
        Raises TokenNotOpened.
        """
        plaintext = self.open(token)
        return self._fernet.encrypt_at_time(plaintext, _RESEALED_AT).decode("ascii")


def is_key(text: str) -> bool:
    """Whether a text is one Fernet key: 32 bytes in base64url, and nothing else."""
    # Fernet itself is lenient: of two keys on one line it would take the first, and say nothing.
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except ValueError:
        return False
    return len(raw) == 32 and base64.urlsafe_b64encode(raw).decode("ascii") == text


def parse_keyring(lines: Iterable[str]) -> Keyring:
    """Read a keyring: one Fernet key a line, newest first; empty lines and ``#`` lines are skipped.

    Raises KeyringError.
    """
    stripped = (line.strip() for line in lines)
    return Keyring([line for line in stripped if line and not line.startswith("#")])


def generate_keyring() -> str:
    """Make the text of a new keyring with one key."""
    return f"# sealrelay payload keys, newest first\n{Fernet.generate_key().decode('ascii')}\n"
