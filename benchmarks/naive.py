"""The naive relay: ``python -m benchmarks.naive SETTINGS``.

Flask's threaded development server with TLS, and ``requests.post`` for each message, to the servers
in turn, and to the other one when that raises.
"""

from __future__ import annotations

import base64
import itertools
import json
import ssl
import sys
from pathlib import Path

import requests
from flask import Flask, Response, request

_TIMEOUT = 2.0


def make_app(settings: dict[str, str], servers: list[str]) -> Flask:
    app = Flask(__name__)
    turns = itertools.count()

    @app.post("/api/data")
    def forward() -> Response:
        certificate = ssl.PEM_cert_to_DER_cert(request.environ["SSL_CLIENT_CERT"])
        header = f":{base64.b64encode(certificate).decode()}:"
        turn = next(turns)
        for number in range(len(servers)):
            try:
                answer = requests.post(
                    servers[(turn + number) % len(servers)] + "/api/data",
                    json=request.get_json(),
                    headers={"Client-Cert": header},
                    cert=(settings["cert"], settings["key"]),
                    verify=settings["ca"],
                    timeout=_TIMEOUT,
                )
                return Response(answer.content, answer.status_code, mimetype="application/json")
            except requests.RequestException as error:
                app.logger.warning("%s", error)
        return Response("no server answered", 502)

    return app


def main() -> None:
    settings = json.loads(Path(sys.argv[1]).read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(settings["ca"])
    context.load_cert_chain(settings["cert"], settings["key"])
    app = make_app(settings, settings["servers"])
    app.run("127.0.0.1", settings["port"], threaded=True, ssl_context=context)


if __name__ == "__main__":
    main()
