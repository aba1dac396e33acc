"""What a probe found."""

from dataclasses import dataclass
from typing import Literal

Reason = Literal[
    "Reachable",
    "BrokerUnreachable",
    "AuthenticationFailed",
    "TlsFailed",
    "TopicMissing",
    "NotAuthorized",
    "VaultUnreachable",
    "CredentialsRefused",
    "NotAVault",
    "VaultFailing",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A condition's reason, and one sentence that says what to do; it never holds a secret.

    `topics` are those that are missing (TopicMissing) or that the user may not see (NotAuthorized).
    """

    reason: Reason
    message: str
    topics: frozenset[str] = frozenset()

    @property
    def ok(self) -> bool:
        """Whether all is as it should be."""
        return self.reason == "Reachable"

    @property
    def may_pass(self) -> bool:
        """Whether this may be a blip: nobody gave an answer that means it."""
        return self.reason in ("BrokerUnreachable", "TlsFailed", "VaultUnreachable", "VaultFailing", "NotAVault")
