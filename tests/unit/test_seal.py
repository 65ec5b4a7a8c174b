"""Keyrings, tokens and message ids."""

from __future__ import annotations

import base64
import hashlib
import hmac
import traceback

import pytest
from cryptography.fernet import Fernet, InvalidToken
from hypothesis import example, given
from hypothesis import strategies as st

from sealrelay.seal import (
    MAX_CLOCK_SKEW,
    Keyring,
    KeyringError,
    TokenMalformed,
    TokenNotOpened,
    generate_keyring,
    parse_keyring,
    parse_token,
)

KEY = Fernet.generate_key().decode()
KEYRING = Keyring([KEY])
NOW = 1_800_000_000
TTL = 86_400
TOKENS = [KEYRING.seal(b"x" * size) for size in (0, 15, 16, 31)]


def _sealed_at(seconds: int, plaintext: bytes = b"hello", key: str = KEY) -> str:
    return Fernet(key).encrypt_at_time(plaintext, seconds).decode()


@given(st.binary(max_size=200))
def test_what_is_sealed_is_opened_and_its_text_is_read_the_same(plaintext: bytes) -> None:
    token = KEYRING.seal(plaintext)
    assert parse_token(token.text) == token
    assert KEYRING.open(token) == plaintext


def test_message_id_is_the_tokens_hmac_tag() -> None:
    token = KEYRING.seal(b"hello")
    raw = base64.urlsafe_b64decode(token.text)
    signing_key = base64.urlsafe_b64decode(KEY)[:16]
    tag = hmac.new(signing_key, raw[:-32], hashlib.sha256).digest()
    assert token.message_id == tag == raw[-32:]


def test_each_seal_of_one_text_is_another_message() -> None:
    assert len({KEYRING.seal(b"hello").message_id for _ in range(100)}) == 100


def test_token_tells_when_it_was_sealed() -> None:
    assert parse_token(_sealed_at(NOW)).sealed_at == NOW


_anything = st.text(max_size=4) | st.text("+/-_=AQgw\n \r\t.", max_size=4)


@given(st.data())
def test_no_other_text_is_the_same_message(data: st.DataObject) -> None:
    """Whatever is cut from a token's text or put into it: malformed, or not opened."""
    original = data.draw(st.sampled_from(TOKENS))
    begin = data.draw(st.integers(0, len(original.text)))
    end = data.draw(st.integers(begin, min(len(original.text), begin + 4)))
    changed = original.text[:begin] + data.draw(_anything) + original.text[end:]
    if changed == original.text:
        return
    with pytest.raises((TokenMalformed, TokenNotOpened)):
        KEYRING.open(parse_token(changed))


@given(st.data())
def test_no_changed_byte_is_opened(data: st.DataObject) -> None:
    original = data.draw(st.sampled_from(TOKENS))
    raw = bytearray(base64.urlsafe_b64decode(original.text))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((TokenMalformed, TokenNotOpened)):
        KEYRING.open(parse_token(base64.urlsafe_b64encode(raw).decode()))


def _spellings() -> dict[str, str]:
    """Other texts that a lenient base64 decoder takes for the same bytes."""
    padded = next(token.text for token in TOKENS if token.text.endswith("="))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = padded.rstrip("=")[-1]
    stray_bit = alphabet[alphabet.index(last) ^ 1]
    return {
        "no padding": padded.rstrip("="),
        "more padding": padded + "=",
        "much padding": padded + "====",
        "line end": padded + "\n",
        "space": " " + padded,
        "line break": padded[:76] + "\n" + padded[76:],
        "stray character": padded[:10] + "." + padded[10:],
        "stray bit": padded[: len(padded.rstrip("=")) - 1] + stray_bit + "=" * padded.count("="),
        "twice": padded + padded,
    }


@pytest.mark.parametrize("name", list(_spellings()))
def test_other_spellings_of_the_same_bytes_are_malformed(name: str) -> None:
    with pytest.raises(TokenMalformed):
        parse_token(_spellings()[name])


def test_the_other_base64_alphabet_is_malformed() -> None:
    text = next(
        token.text for token in iter(lambda: KEYRING.seal(b"x"), None) if set(token.text) & {*"-_"}
    )
    assert parse_token(text)
    with pytest.raises(TokenMalformed):
        parse_token(text.replace("-", "+").replace("_", "/"))


@given(st.text() | st.binary(max_size=120).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
@example("")
@example("gAAAA\N{BULLET}")
@example("\ud800")
def test_what_is_no_token_is_malformed(text: str) -> None:
    with pytest.raises(TokenMalformed):
        parse_token(text)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 57, 71, 73, 87])
def test_wrong_length_is_malformed(size: int) -> None:
    raw = bytes([0x80]) + bytes(size)
    with pytest.raises(TokenMalformed):
        parse_token(base64.urlsafe_b64encode(raw).decode())


def test_wrong_version_is_malformed() -> None:
    good = bytes([0x80]) + bytes(72)
    assert parse_token(base64.urlsafe_b64encode(good).decode())
    with pytest.raises(TokenMalformed):
        parse_token(base64.urlsafe_b64encode(bytes([0x81]) + good[1:]).decode())


@pytest.mark.parametrize("age", [0, 1, TTL - 1, TTL, -1, -MAX_CLOCK_SKEW])
def test_token_within_its_window_is_opened(age: int) -> None:
    token = parse_token(_sealed_at(NOW - age))
    assert KEYRING.open(token, ttl=TTL, now=NOW) == b"hello"


@pytest.mark.parametrize(
    ("age", "fact"),
    [
        (TTL + 1, "older"),
        (10 * TTL, "older"),
        (NOW - 1, "older"),
        (NOW, "resealed"),
        (-MAX_CLOCK_SKEW - 1, "future"),
        (NOW - 2**62, "future"),
    ],
)
def test_token_outside_its_window_is_not_opened(age: int, fact: str) -> None:
    token = parse_token(_sealed_at(NOW - age))
    with pytest.raises(TokenNotOpened, match=fact):
        KEYRING.open(token, ttl=TTL, now=NOW)


def test_stored_token_is_opened_at_any_age() -> None:
    assert KEYRING.open(parse_token(_sealed_at(0))) == b"hello"


def test_rotated_keyring_opens_old_tokens_and_seals_with_the_newest_key() -> None:
    old, new = KEY, Fernet.generate_key().decode()
    before, rotated, after = Keyring([old]), Keyring([new, old]), Keyring([new])
    sealed_before = before.seal(b"old")
    assert rotated.open(sealed_before) == b"old"
    sealed_after = rotated.seal(b"new")
    assert after.open(sealed_after) == b"new"
    with pytest.raises(TokenNotOpened):
        before.open(sealed_after)
    with pytest.raises(TokenNotOpened):
        after.open(sealed_before)


def test_resealed_token_is_read_in_a_store_and_taken_by_no_server() -> None:
    """By its time alone, as releases from before there was such a token judge it."""
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    sent = parse_token(_sealed_at(NOW, key=old))
    resealed = parse_token(Keyring([new, old]).reseal(sent))
    newest = Keyring([new])
    assert newest.open(resealed) == b"hello"
    assert parse_token(newest.reseal(resealed)).sealed_at == resealed.sealed_at
    with pytest.raises(InvalidToken):
        Fernet(new).decrypt_at_time(resealed.text, 50 * 365 * TTL, NOW)
    for ttl, now in ((TTL, NOW), (2 * NOW, NOW), (TTL, 0)):  # also where a clock begins at 1970
        with pytest.raises(TokenNotOpened, match="resealed"):
            newest.open(resealed, ttl=ttl, now=now)
    with pytest.raises(TokenNotOpened):
        newest.reseal(sent)


def test_another_clients_token_is_not_opened() -> None:
    other = Keyring([Fernet.generate_key().decode()])
    with pytest.raises(TokenNotOpened, match="does not open with this client's keys"):
        other.open(KEYRING.seal(b"hello"))
    with pytest.raises(TokenNotOpened, match="does not open with this client's keys"):
        other.open(parse_token(_sealed_at(NOW)), ttl=TTL, now=NOW)


def test_generated_keyring_is_one_new_key() -> None:
    first, second = generate_keyring(), generate_keyring()
    assert first != second
    assert len([line for line in first.splitlines() if not line.startswith("#")]) == 1
    keyring = parse_keyring(first.splitlines())
    assert keyring.open(keyring.seal(b"x")) == b"x"


def test_keyring_file_may_hold_comments_and_empty_lines() -> None:
    old, new = KEY, Fernet.generate_key().decode()
    keyring = parse_keyring(["# newest first", f"  {new}\r", "", "# older", old, "  "])
    assert keyring.open(KEYRING.seal(b"x")) == b"x"
    assert Fernet(new).decrypt(keyring.seal(b"y").text) == b"y"


NOT_A_KEY = "c2VjcmV0LXNlY3JldC1zZWNyZXQ"


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["", "# nothing"],
        [NOT_A_KEY],
        [KEY, NOT_A_KEY],
        [KEY[:-1]],
        [KEY + "AAAA"],
        [f"{KEY} {KEY}"],
        ["\N{LATIN SMALL LETTER E WITH ACUTE}" * 44],
    ],
)
def test_wrong_keyring_is_refused_without_telling_what_it_holds(lines: list[str]) -> None:
    with pytest.raises(KeyringError) as refused:
        parse_keyring(lines)
    shown = "".join(traceback.format_exception_only(refused.type, refused.value))
    assert NOT_A_KEY not in shown
    assert KEY[:20] not in shown
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_errors_and_representations_hold_no_key_plaintext_or_token() -> None:
    token = KEYRING.seal(b"the plaintext")
    other = Keyring([Fernet.generate_key().decode()])
    with pytest.raises(TokenNotOpened) as not_opened:
        other.open(token)
    with pytest.raises(TokenMalformed) as malformed:
        parse_token(token.text + "!")
    for shown in (str(not_opened.value), str(malformed.value), repr(KEYRING), repr(other)):
        assert KEY not in shown
        assert token.text not in shown
        assert "plaintext" not in shown
