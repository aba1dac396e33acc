"""The resource VaultMLPipeline as pydantic models: the one source of the CRD in crds/ and of all defaults.

The API server validates against the CRD; these models read what it has stored. Rules in CEL stand beside the fields
that they are about, each with a message that says what to write instead.
"""

from vaultml_operator.api.autoscaling import Autoscaling, Fallback, ScaleIn, ScaleOut
from vaultml_operator.api.base import (
    ANNOTATIONS,
    API_VERSION,
    GROUP,
    KIND,
    PAUSE_SCALE_IN,
    PAUSE_SCALE_OUT,
    PAUSED,
    PLURAL,
    VERSION,
    Model,
    Rule,
)
from vaultml_operator.api.model import Detection, NeuralNetwork
from vaultml_operator.api.pipeline import ROOT_RULES, InvalidResource, Pipeline, Spec, is_paused, is_set
from vaultml_operator.api.queue import CertificateAuthority, Kafka, OAuth, Queue, Vault
from vaultml_operator.api.status import AppliedLimit, AutoscalingStatus, Status
from vaultml_operator.api.worker import Worker

__all__ = [
    "ANNOTATIONS",
    "API_VERSION",
    "GROUP",
    "KIND",
    "PAUSED",
    "PAUSE_SCALE_IN",
    "PAUSE_SCALE_OUT",
    "PLURAL",
    "ROOT_RULES",
    "VERSION",
    "AppliedLimit",
    "Autoscaling",
    "AutoscalingStatus",
    "CertificateAuthority",
    "Detection",
    "Fallback",
    "InvalidResource",
    "Kafka",
    "Model",
    "NeuralNetwork",
    "OAuth",
    "Pipeline",
    "Queue",
    "Rule",
    "ScaleIn",
    "ScaleOut",
    "Spec",
    "Status",
    "Vault",
    "Worker",
    "is_paused",
    "is_set",
]
