"""A file-backed Kerberos Vault for development: the API that Agents and workers use, and an event per recording."""

import hashlib
import hmac
import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from confluent_kafka import Producer
from flask import Blueprint, Flask, Response, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY
from vaultml_worker.recording_names import parse_name

DIRECTORY = "X-Kerberos-Storage-Directory"
DEVICE = "X-Kerberos-Storage-Device"
CAPTURE = "X-Kerberos-Storage-Capture"
CLOUD_KEY = "X-Kerberos-Storage-CloudKey"
DURATION = "X-Kerberos-Storage-Duration"
FPS = "X-Kerberos-Storage-Fps"

Publish = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Account:
    """Who may use the Vault, and the one provider that the account is bound to."""

    access_key: str
    secret_key: str = field(repr=False)
    provider: str = "local"


def publisher(brokers: str, topic: str) -> Publish:
    """Publishes events to a Kafka topic, without a key, as Vault does."""
    producer = Producer({"bootstrap.servers": brokers, "log_level": 2})

    def publish(event: dict[str, Any]) -> None:
        producer.produce(topic, json.dumps(event).encode())
        producer.flush(10)

    return publish


def application(folder: Path, account: Account, publish: Publish | None = None) -> Flask:
    """The Vault as a WSGI application; recordings lie in `folder`/<provider>/<key>."""
    app = Flask(__name__)
    vault = _Vault(folder / account.provider, account, publish)
    for name, prefix in (("old", ""), ("new", "/api")):
        api = Blueprint(name, __name__, url_prefix=prefix)
        api.before_request(vault.check)
        api.get("/health")(vault.health)
        api.post("/ping")(vault.ping)
        api.get("/storage/blob")(vault.blob)
        api.get("/storage")(vault.signed_url)
        api.get("/signed/<path:key>")(vault.signed)
        api.post("/storage")(vault.store)
        api.delete("/storage")(vault.remove)
        api.post("/storage/forward/media")(vault.forward)
        app.register_blueprint(api)
    return app


class _Vault:
    """The API's calls; each gives the answer that the real Vault would."""

    def __init__(self, root: Path, account: Account, publish: Publish | None) -> None:
        self._root = root
        self._account = account
        self._publish = publish
        self._signing = secrets.token_bytes(16)

    def check(self) -> Response | None:
        """Credentials first, then the provider that the account is bound to."""
        view = (request.endpoint or "").rpartition(".")[2]
        if view in ("health", "signed"):
            return None
        given = _header(ACCESS_KEY), _header(SECRET_KEY)
        if None in given:
            return _error(400, "missing credentials")
        if given != (self._account.access_key, self._account.secret_key):
            # The real Vault's body echoes both keys: a client must never log it.
            return _error(401, f"wrong access key {given[0]} or secret key {given[1]}")
        if view == "ping" or _header(PROVIDER) == self._account.provider:
            return None
        missing = _header(PROVIDER) is None
        return _error(400 if missing else 401, "missing provider" if missing else "account not bound to provider")

    def health(self) -> Response:
        return Response("ok")

    def ping(self) -> Response:
        return Response("pong")

    def blob(self) -> Response:
        path = self._stored()
        return path if isinstance(path, Response) else _recording(path)

    def signed_url(self) -> Response:
        path = self._stored()
        if isinstance(path, Response):
            return path
        key, expires = _header(FILE_NAME) or "", int(time.time()) + 3600
        base, signature = request.base_url.removesuffix("/storage"), self._sign(key, expires)
        url = f"{base}/signed/{quote(key)}?X-Amz-Expires={expires}&X-Amz-Signature={signature}"
        return Response(json.dumps({"data": url}), mimetype="application/json")

    def signed(self, key: str) -> Response:
        expires = request.args.get("X-Amz-Expires", 0, int)
        path = _inside(self._root, key)
        good = hmac.compare_digest(request.args.get("X-Amz-Signature", ""), self._sign(key, expires))
        if not good or expires < time.time() or path is None:
            return _error(403, "signature does not match or has expired")
        return _recording(path) if path.is_file() else _error(404, "no such recording")

    def store(self) -> Response:
        key = f"{_header(DIRECTORY) or ''}/{_header(FILE_NAME) or ''}"
        path = _inside(self._root, key)
        if path is None:
            return _error(400, "missing or bad directory or file name")
        body = request.get_data()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{secrets.token_hex(4)}")
        scratch.write_bytes(body)
        scratch.replace(path)
        if self._publish is not None:
            self._publish(_event(key, len(body), self._account.provider))
        return Response("{}", mimetype="application/json")

    def remove(self) -> Response:
        path = self._stored()
        if isinstance(path, Response):
            return path
        path.unlink()
        return Response("{}", mimetype="application/json")

    def forward(self) -> Response:
        return _error(501, "this Vault can't forward")

    def _stored(self) -> Path | Response:
        path = _inside(self._root, _header(FILE_NAME) or "")
        if path is None:
            return _error(400, "missing or bad file name")
        return path if path.is_file() else _error(404, "no such recording")

    def _sign(self, key: str, expires: int) -> str:
        return hmac.new(self._signing, f"{expires} {key}".encode(), hashlib.sha256).hexdigest()


class VaultServer:
    """The application on a socket of this machine, served from threads, with TLS if `tls` is given; `url` is where."""

    def __init__(self, app: Flask, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self._server: BaseWSGIServer = make_server(
            host, port, app, threaded=True, request_handler=_Silent, ssl_context=tls
        )
        self.url = f"http{'s' if tls else ''}://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="vault", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: request lines hold signed URLs."""


def _header(name: str) -> str | None:
    """Return a request's header, which WSGI reads as Latin-1, as the UTF-8 that Agents and workers send."""
    given = request.headers.get(name)
    try:
        return None if given is None else given.encode("latin-1").decode()
    except UnicodeError:
        return given


def _recording(path: Path) -> Response:
    return Response(path.read_bytes(), mimetype="video/mp4")


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), status=status, mimetype="application/json")


def _inside(root: Path, key: str) -> Path | None:
    """The file of a key, or None when the key would leave the folder."""
    if not re.fullmatch(r"[^/\0]+(/[^/\0]+)+", key) or ".." in key.split("/"):
        return None
    return root / key


def _event(key: str, size: int, provider: str) -> dict[str, Any]:
    """The event that Vault publishes for a stored recording."""
    name = parse_name(key)
    device, duration, fps = _header(DEVICE) or "", _header(DURATION), _header(FPS)
    now = int(time.time())
    return {
        "events": ["monitor", "sequence", "analysis", "throttler", "notification"],
        "provider": "kstorage",
        "source": provider,
        "request": "persist",
        "payload": {
            "key": key,
            "fileSize": size,
            "is_fragmented": False,
            "bytes_ranges": "",
            "bytes_range_on_time": None,
            "metadata": {
                "event-timestamp": str(name.seconds if name else now),
                "event-microseconds": "0",
                "event-instancename": device or (name.camera if name else None) or "",
                "event-regioncoordinates": "-".join(map(str, name.region)) if name and name.region else "",
                "event-numberofchanges": str((name.changes if name else None) or 0),
                "event-token": str((name.duration if name else None) or 0),
                "productid": device,
                "publickey": _header(CLOUD_KEY) or "",
                "uploadtime": str(now),
                "capture": _header(CAPTURE) or "",
                **({"duration": duration} if duration is not None else {}),
                **({"fps": fps} if fps is not None else {}),
            },
        },
        "date": now,
    }
