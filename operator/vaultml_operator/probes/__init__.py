"""What only the operator can see of a pipeline's queue and Vault: that they are there, and take the credentials."""

from vaultml_operator.probes.kafka import Connection
from vaultml_operator.probes.outcome import Outcome, Reason
from vaultml_operator.probes.registry import Check, Pace, Probes, Topics
from vaultml_operator.probes.vault import Access

__all__ = ["Access", "Check", "Connection", "Outcome", "Pace", "Probes", "Reason", "Topics"]
