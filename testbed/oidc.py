"""A small OpenID Connect provider: a token endpoint (grant client_credentials) and its public keys."""

import base64
import json
import time
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from flask import Flask, Response, request

CLIENT_ID = "vaultml"
CLIENT_SECRET = "cl1ent-s3cret!@#"


def provider() -> Flask:
    """Return the provider as an application; its tokens are signed with RS256, for the audience `kafka`."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = key.public_key().public_numbers()
    jwk = {"kty": "RSA", "kid": "1", "alg": "RS256", "use": "sig", "n": _number(numbers.n), "e": _number(numbers.e)}
    app = Flask("provider")

    @app.get("/jwks")
    def keys() -> dict[str, Any]:
        return {"keys": [jwk]}

    @app.post("/token")
    def token() -> Response | dict[str, Any]:
        given = request.authorization
        if given is None or (given.username, given.password) != (CLIENT_ID, CLIENT_SECRET):
            return Response(json.dumps({"error": "invalid_client"}), 401, mimetype="application/json")
        now = int(time.time())
        claims = {
            "iss": "http://provider",
            "aud": "kafka",
            "sub": CLIENT_ID,
            "scope": request.form.get("scope") or "profile",
            "iat": now,
            "exp": now + 300,
        }
        text = f"{_text({'alg': 'RS256', 'kid': '1', 'typ': 'JWT'})}.{_text(claims)}"
        signature = key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())
        return {"access_token": f"{text}.{_base64(signature)}", "token_type": "Bearer", "expires_in": 300}

    return app


def _text(value: Any) -> str:
    return _base64(json.dumps(value).encode())


def _number(value: int) -> str:
    return _base64(value.to_bytes(-(-value.bit_length() // 8), "big"))


def _base64(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).decode().rstrip("=")
