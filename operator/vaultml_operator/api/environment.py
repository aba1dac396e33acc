"""Rules for the environment of the pods, in worker.env and in a pod template.

The operator sets what the spec says. The same variable in a pod template would override it unseen: the status, the
checks and the autoscaler would go on with the spec's value.
"""

from typing import Annotated, Any

from pydantic import WithJsonSchema

from vaultml_operator.api.base import Rule

FIELDS = {
    "QUEUE_SYSTEM": "queue.system",
    "QUEUE_NAME": "queue.name",
    "QUEUE_TARGET": "queue.target",
    "KAFKA_BROKER": "queue.kafka.brokers",
    "KAFKA_GROUP": "queue.kafka.group",
    "KAFKA_SECURITY": "queue.kafka.security",
    "KAFKA_MECHANISM": "queue.kafka.mechanism",
    "KAFKA_USERNAME": "queue.kafka.username",
    "KAFKA_PASSWORD": "queue.kafka.credentialsSecretRef",
    "KAFKA_SSL_CA": "queue.kafka.ca",
    "KAFKA_SSL_CERT": "queue.kafka.credentialsSecretRef",
    "KAFKA_SSL_KEY": "queue.kafka.credentialsSecretRef",
    "KAFKA_OAUTH_TOKEN_URL": "queue.kafka.oauth.tokenUrl",
    "KAFKA_OAUTH_CLIENT_ID": "queue.kafka.credentialsSecretRef",
    "KAFKA_OAUTH_CLIENT_SECRET": "queue.kafka.credentialsSecretRef",
    "KAFKA_OAUTH_SCOPE": "queue.kafka.oauth.scope",
    "KAFKA_OAUTH_EXTENSIONS": "queue.kafka.oauth.extensions",
    "KAFKA_OAUTH_CA": "queue.kafka.oauth.ca",
    "KAFKA_AWS_REGION": "queue.kafka.awsRegion",
    "KAFKA_OFFSET_RESET": "queue.kafka.offsetReset",
    "VAULT_API_URL": "vault.apiUrl",
    "VAULT_ACCESS_KEY": "vault.credentialsSecretRef",
    "VAULT_SECRET_KEY": "vault.credentialsSecretRef",
    "VAULT_SSL_CA": "vault.ca",
    "VAULT_DOWNLOAD": "vault.download",
    "NUMBER_OF_PREDICTIONS": "detection.numberOfPredictions",
    "MOVE_DISTANCE": "detection.moveDistance",
    "MODEL": "model",
    "MODEL_WEIGHTS": "model.weights",
    "MODEL_NAMES": "model.names",
    "MODEL_SHA256": "model.sha256",
    "MODEL_PRECISION": "model.precision",
    "ENGINE": "worker.engine",
    "ENGINE_CACHE": "model.engineCache",
    "DETECTION_THRESHOLD": "detection.threshold",
    "DETECTION_CLASSES": "detection.classes",
    "RECORDINGS_IN_FLIGHT": "worker.recordingsInFlight",
    "HTTP_PORT": "",
    "LOG_FORMAT": "worker.logFormat",
    "LOG_LEVEL": "worker.logLevel",
}
"""The field of the spec that sets each variable; none for HTTP_PORT, which probes and metrics rely on."""

_PLACES = {name: f"set .spec.{field} instead" if field else "it can't be changed" for name, field in FIELDS.items()}
_MAP = "{" + ", ".join(f"'{name}': \"{place}\"" for name, place in _PLACES.items()) + "}"
_LIST = "[" + ", ".join(f"'{name}'" for name in FIELDS) + "]"
_NAMED_SECRET = "(?i)passw|(^|_)(secret|token|(access|api)_?key|credentials?)(_|$)"  # noqa: S105


def owned_rule(variable: str, within: str = "{}", found: str = "") -> Rule:
    """Return the rule that `variable` (CEL) is none that the operator sets.

    `within` is CEL around the test of one variable; `found` is the variable that breaks the rule, if not `variable`.
    """
    name = f"{found or variable}.name"
    return Rule(
        within.format(f"!({variable}.name in {_LIST})"),
        "the operator sets this variable from a field of the spec: set that field instead",
        f"{name} + ' is set by the operator: ' + {_MAP}[{name}]",
    )


def secret_rules(variable: str, within: str = "{}") -> tuple[Rule, Rule]:
    """Return the rules that `variable` (CEL) has no password or the like in its plain value."""
    plain = f"!has({variable}.value)"
    return (
        Rule(
            within.format(
                f"{plain} || !{variable}.name.matches('{_NAMED_SECRET}') || "
                f"{variable}.name.matches('(?i)_(file|path|dir|url|uri|name|ttl)$') || "
                f"{variable}.value.startsWith('/') || {variable}.value in ['', 'true', 'false']"
            ),
            "this looks like a secret: use valueFrom.secretKeyRef, so that it does not stand in the resource",
        ),
        Rule(
            within.format(
                f"{plain} || (!{variable}.value.matches('//[^/ ]*:[^/ ]*@') && "
                f"!({variable}.name.matches('(?i)proxy$') && {variable}.value.contains('@')))"
            ),
            "this URL contains a password: use valueFrom.secretKeyRef with the whole URL in the Secret",
        ),
    )


_ENV = "!has(self.env) || self.env.all(e, {})"
_OWNED = f"!has(self.name) || self.name != 'worker' || {_ENV.replace('{}', '!has(e.name) || {}')}"
_SECRET = _ENV.replace("{}", "!has(e.name) || {}")
_FIRST = f"self.env.filter(e, has(e.name) && e.name in {_LIST})[0]"
_UNKNOWN = {"x-kubernetes-preserve-unknown-fields": True}
_VARIABLE = {
    "type": "object",
    "description": "A variable.",
    **_UNKNOWN,
    "properties": {
        "name": {"type": "string", "maxLength": 253, "description": "Name of the variable."},
        "value": {"type": "string", "maxLength": 8192, "description": "Its value."},
    },
}


def _containers(description: str) -> dict[str, Any]:
    return {
        "type": "array",
        "description": description,
        "maxItems": 8,
        "items": {
            "type": "object",
            **_UNKNOWN,
            "properties": {
                "name": {"type": "string", "maxLength": 63, "description": "Name of the container."},
                "env": {
                    "type": "array",
                    "description": "Its variables; the worker's container takes none that the spec sets.",
                    "maxItems": 64,
                    "items": _VARIABLE,
                },
            },
            "x-kubernetes-validations": [
                dict(rule) for rule in (owned_rule("e", _OWNED, _FIRST), *secret_rules("e", _SECRET))
            ],
        },
    }


PodSpecPatch = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            **_UNKNOWN,
            "properties": {
                "containers": _containers("Containers, by name; the worker's is named worker."),
                "initContainers": _containers("Init containers, by name."),
            },
        }
    ),
]
"""A part of a pod's spec: only what rules are about is in the schema, all else is let through."""
