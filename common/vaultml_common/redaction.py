"""Credentials out of text: signed URLs, the values of `storage_*` keys, and secrets that are known."""

import re
from collections.abc import Sequence
from typing import Any

MASK = "***"
# A URL that carries its own permission: S3, Google, Azure, CloudFront and their kin.
_URL = re.compile(r"https?(?::|%3A)(?:/|%2F){2}(?:[^\s\"'<>\\]|\\{1,16}+u0026)*+", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?:[?&]|&amp;|u0026|%3F|%26)(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)"
    r"|signature|sig|awsaccesskeyid|googleaccessid)(?:=|%3D)",
    re.IGNORECASE,
)
# In text that may not be JSON, or be JSON inside a JSON string: a storage_* or signed-URL key and its value.
# Everything in it is bounded or possessive: it meets whatever bytes lie on a topic, up to a megabyte of them.
_SECRET_PAIR = re.compile(
    r"""(?P<key>(?:storage_\w{0,64}+|signed_?url)\\{0,16}+["']?\s*+[:=]\s*+)"""
    r"""(?P<value>\\{1,16}+"(?:[^"\\]|\\(?!\\{0,15}"))*+(?:\\{1,16}+")?|"(?:[^"\\]|\\.)*+"?|'(?:[^'\\]|\\.)*+'?"""
    r"""|[^\s,}\]&{\["'\\][^\s,}\]&]*+)""",
    re.IGNORECASE | re.DOTALL,
)


def redacted(value: Any, secrets: Sequence[str]) -> Any:
    """Return the same JSON value without credentials in its texts; `secrets` are known by their values."""
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, MASK)
        return mask_text(value)
    if isinstance(value, dict):
        return {key: redacted(item, secrets) for key, item in value.items()}
    return [redacted(item, secrets) for item in value] if isinstance(value, list | tuple) else value


def is_signed_url(text: str) -> bool:
    """Return True if the whole text is a URL that carries its own permission."""
    url = _URL.fullmatch(text)
    return url is not None and _SIGNATURE.search(url[0]) is not None


def mask_text(text: str) -> str:
    """Return the text with signed URLs and the values of `storage_*` keys replaced by `***`; JSON stays JSON."""
    # Most texts hold neither: to see that takes a hundredth of the time of the expressions. (Other letters than those
    # in question count as an i or an s where case is ignored.)
    lower = text.lower()
    if "ttp" in lower:
        text = _URL.sub(lambda match: MASK if _SIGNATURE.search(match[0]) else match[0], text)
    if "torage_" in lower or "gned" in lower:
        text = _SECRET_PAIR.sub(_mask_pair, text)
    return text


def _mask_pair(match: re.Match[str]) -> str:
    value = match["value"]
    quote = re.match(r"\\*[\"']|", value)
    opening = quote[0] if quote else ""
    closing = opening if opening and len(value) > len(opening) and value.endswith(opening) else ""
    if not opening and '"' in match["key"] and "\\" not in match["key"]:
        opening = closing = '"'  # a bare JSON value: what takes its place must be JSON too
    return f"{match['key']}{opening}{MASK}{closing}"
