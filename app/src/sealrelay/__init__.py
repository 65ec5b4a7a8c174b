"""sealrelay: sealed messages over mutual TLS, none lost, none stored twice.

The modules, from the ground up: ``errors``, ``text``, ``identity`` (who is who, who may call what),
``seal`` (keyrings, tokens, message ids), ``tls``, ``config``, ``store``, ``wire`` and ``web`` (what
travels between the services, and what their endpoints share), ``probe``, ``dispatch``, then
``server`` and ``coordinator``, ``serving`` (gunicorn), ``client`` and ``cli``. Imports point
downwards only.
"""

__version__ = "0.1.0"
