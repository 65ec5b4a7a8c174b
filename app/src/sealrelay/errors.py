"""The ways to fail that a user meets, each with the exit code of the ``sealrelay`` command.

An error's text is one line for people. It never holds a key, a plaintext or a token.
"""

from __future__ import annotations

from typing import ClassVar


class SealrelayError(Exception):
    """Base of every error that is told to a user in one line. Exit code 1: unexpected."""

    exit_code: ClassVar[int] = 1


class Unreachable(SealrelayError):
    """No coordinator, or no healthy server behind it, took the message within its deadline.

    Or the store gave a command no answer.
    """

    exit_code = 3


class CertificateRefused(SealrelayError):
    """One side refused the other's certificate, or the role it names."""

    exit_code = 4


class TokenRefused(SealrelayError):
    """The servers do not open this token: another key, altered, too old or from the future."""

    exit_code = 5


class MessageRefused(SealrelayError):
    """The message itself is not acceptable: malformed or too large."""

    exit_code = 6


class InputFileError(SealrelayError):
    """A file that the user named as input cannot be read."""

    exit_code = 7


class NotStored(SealrelayError):
    """The store holds no such message."""

    exit_code = 7


class ConfigError(SealrelayError):
    """A settings file, or a file it names, is wrong; the text names file, key and remedy."""

    exit_code = 8


class NotHealthy(SealrelayError):
    """A part of the deployment is not healthy, or cannot be asked; the text says which and why."""

    exit_code = 10


class NotBorneOut(SealrelayError):
    """The store does not hold what a history says that it must."""

    exit_code = 11


class Outdated(SealrelayError):
    """The running service, or the store's schema, is older than what is installed on disk."""

    exit_code = 9
