"""Kubernetes' REST API for tests: plain dictionaries, no patience."""

from typing import Any

import requests

Object = dict[str, Any]
_TIMEOUT_S = 30


class ApiError(Exception):
    """The API server refused; `reason` is its word for it, as in NotFound, the text is its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """An API server as one user sees it."""

    def __init__(self, url: str, token: str, ca_file: str) -> None:
        """Talk to the API server at `url` with a bearer token."""
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = ca_file
        self._session.headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        """Give back its connections."""
        self._session.close()

    def request(
        self, method: str, path: str, body: Object | None = None, *, content_type: str = "application/json"
    ) -> Object:
        """Return the answer's object.

        Raises ApiError when the server refuses, requests' ConnectionError when nobody answers.
        """
        headers = {"Content-Type": content_type}
        answer = self._session.request(method, self._url + path, json=body, headers=headers, timeout=_TIMEOUT_S)
        if not answer.ok:
            try:
                status = answer.json()
            except ValueError:
                status = {}
            raise ApiError(answer.status_code, status.get("reason", ""), status.get("message", answer.text))
        result: Object = answer.json()
        return result
