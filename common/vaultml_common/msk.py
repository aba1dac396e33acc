"""AWS MSK's IAM login: tokens signed with the AWS credentials of the environment (keys, web identity, instance role).

The signer is AWS's own package, installed by the extra `msk`.
"""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

MECHANISM = "AWS_MSK_IAM"
_SIGNER = "aws_msk_iam_sasl_signer"


def missing(region: str) -> str | None:
    """Return what keeps this login from working; None: nothing."""
    if find_spec(_SIGNER) is None:
        return "AWS_MSK_IAM needs AWS's signer: install the extra msk (pip install 'vaultml[msk]')"
    if not _region(region):
        return "AWS_MSK_IAM needs the cluster's region: set AWS_REGION"
    return None


def token_source(region: str) -> Callable[[str], tuple[str, float]]:
    """Return what gives librdkafka a token and the time at which it expires, in seconds since the epoch."""

    def token(_config: str) -> tuple[str, float]:
        provider = import_module(f"{_SIGNER}.MSKAuthTokenProvider")
        value, expires_ms = provider.generate_auth_token(_region(region))
        return str(value), expires_ms / 1000

    return token


def _region(given: str) -> str:
    return given or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
