"""Where events come from, results go to, and recordings are."""

from typing import Annotated, Literal

from pydantic import Field

from vaultml_common.kafka import dead_letter_topic
from vaultml_operator.api.base import (
    HOST,
    PORT,
    SET_LIST,
    KeyRef,
    Model,
    Rule,
    SecretRef,
    Topic,
    trimmed_rule,
    url_rules,
)

DEAD_LETTERS = dead_letter_topic("", "")
"""What the name of a dead-letter topic ends in, after the target's name or, without a target, the queue's."""


class CertificateAuthority(Model):
    """Where a certificate authority is found: a PEM file as a key of a Secret or ConfigMap."""

    rules = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "give exactly one of secretKeyRef and configMapKeyRef",
        ),
    )
    secret_key_ref: KeyRef | None = Field(
        default=None, description="Key of a Secret, e.g. Strimzi's <cluster>-cluster-ca-cert."
    )
    config_map_key_ref: KeyRef | None = Field(default=None, description="Key of a ConfigMap.")


class OAuth(Model):
    """Login with a token of an OpenID Connect provider (grant client_credentials), for mechanism OAUTHBEARER."""

    rules = (
        *url_rules("tokenUrl", "look like https://idp.example/realms/kafka/protocol/openid-connect/token", query=True),
        trimmed_rule("[self.scope].all(t, {})", "scope"),
        trimmed_rule("[self.extensions].all(t, {})", "extensions"),
    )
    token_url: Annotated[str, Field(min_length=1, max_length=2048)] = Field(
        description="The provider's token endpoint."
    )
    scope: Annotated[str, Field(max_length=1024)] = Field(default="", description="Scope to ask for.")
    extensions: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="SASL extensions, key=value, comma-separated (Confluent Cloud: logicalCluster=…, "
        "identityPoolId=…).",
    )
    ca: CertificateAuthority | None = Field(
        default=None, description="Authority that signed the token endpoint's certificate. Absent: the image's own."
    )


class Kafka(Model):
    """How to reach and enter the Kafka cluster."""

    rules = (
        Rule(
            "!self.security.startsWith('SASL') || has(self.credentialsSecretRef) || self.mechanism == 'AWS_MSK_IAM'",
            "security SASL_PLAINTEXT and SASL_SSL need credentialsSecretRef: name a Secret with the keys username and "
            "password (or a Strimzi user's Secret), or, for mechanism OAUTHBEARER, clientId and clientSecret",
        ),
        Rule(
            "(self.mechanism == 'OAUTHBEARER') == has(self.oauth)",
            "mechanism OAUTHBEARER and the block oauth belong together: give both or none",
        ),
        Rule(
            "(self.mechanism != 'OAUTHBEARER' && self.mechanism != 'AWS_MSK_IAM') || self.security.startsWith('SASL')",
            "mechanisms OAUTHBEARER and AWS_MSK_IAM need security SASL_SSL (or SASL_PLAINTEXT)",
        ),
        Rule(
            "(self.mechanism == 'AWS_MSK_IAM') == has(self.awsRegion)",
            "mechanism AWS_MSK_IAM and awsRegion belong together: give both or none",
        ),
        Rule(
            "self.security != 'PLAINTEXT' || !has(self.credentialsSecretRef)",
            "security PLAINTEXT sends no credentials: set security to SASL_PLAINTEXT, SASL_SSL or SSL, or leave "
            "credentialsSecretRef out",
        ),
        Rule(
            "self.security.endsWith('SSL') || !has(self.ca)",
            "ca is used with TLS only: set security to SASL_SSL or SSL, or leave ca out",
        ),
        Rule(
            "!has(self.username) || self.security.startsWith('SASL')",
            "username is used with SASL only: set security to SASL_PLAINTEXT or SASL_SSL, or leave username out",
        ),
        Rule(
            "self.group.matches('^[!#-&(-~]([ -~]*[!#-&(-~])?$')",
            "group must be printable, without blanks or quotes around it",
        ),
        Rule(
            "!has(self.awsRegion) || self.awsRegion.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "awsRegion must be the name of a region, e.g. eu-central-1",
        ),
        trimmed_rule("!has(self.username) || [self.username].all(t, {})", "username"),
        Rule(
            f"self.brokers.all(b, b.matches('^{HOST}:[0-9]+$'))",
            'each broker is host:port, without a scheme or spaces, e.g. "kafka.kafka:9092"',
        ),
        Rule(
            f"self.brokers.all(b, !b.matches(':[0-9]+$') || b.matches(':{PORT}$'))",
            "a broker's port lies between 1 and 65535",
        ),
    )
    brokers: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=260)], ...], Field(min_length=1, max_length=16)
    ] = Field(description="Brokers to start from, each host:port.", json_schema_extra=SET_LIST)
    group: Annotated[str, Field(min_length=1, max_length=249)] = Field(
        description="Consumer group that the workers share."
    )
    security: Literal["PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL", "SSL"] = Field(
        default="PLAINTEXT", description="How to talk to the brokers."
    )
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] = Field(
        default="PLAIN",
        description="SASL mechanism; used with SASL only. AWS_MSK_IAM takes the AWS credentials of the pods (a "
        "service account's web identity, say) and needs AWS's signer in the images of operator and worker.",
    )
    oauth: OAuth | None = Field(
        default=None, description="The OpenID Connect provider; the Secret holds clientId and clientSecret."
    )
    aws_region: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="The cluster's region, for mechanism AWS_MSK_IAM."
    )
    username: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="SASL user. Absent: the key username of the Secret, or, for a Strimzi user's Secret, its name.",
    )
    credentials_secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret with username and password, and, for TLS, ca.crt, tls.crt and tls.key, each where needed. "
        "A Strimzi user's Secret works as it is (password, user.crt, user.key); its ca.crt signs users, not brokers, "
        "and is not used: give ca.",
    )
    ca: CertificateAuthority | None = Field(
        default=None,
        description="Authority that signed the brokers' certificates. Absent: ca.crt of the credentials Secret, else "
        "the authorities of the worker's image.",
    )
    offset_reset: Literal["earliest", "latest"] = Field(
        default="earliest", description="Where a group without committed offsets begins."
    )
    ensure_partitions: int | None = Field(
        default=None,
        ge=1,
        le=1000,
        description="Raise the queue's topic to so many partitions if it has fewer: more workers than partitions would "
        "sit idle. Never lowered. The Kafka user needs the right to alter the topic.",
    )


class Queue(Model):
    """Where events come from and results go to."""

    rules = (
        Rule("self.system != 'KAFKA' || has(self.kafka)", "system KAFKA needs the block kafka: give brokers and group"),
        Rule("self.target != self.name", "target must differ from name, or each result is taken for a new event"),
        Rule(
            f"self.target == '' || self.target + '{DEAD_LETTERS}' != self.name",
            "name must not be the dead-letter topic of target, or failed messages are read again without end: to "
            "replay dead letters, set another target, e.g. <target>-replay",
            f"'name must not be the dead-letter topic of target ' + self.target + ', or failed messages are read again "
            "without end: to replay dead letters, set another target, e.g. ' + self.target + '-replay, so that those "
            f"that fail again go to ' + self.target + '-replay{DEAD_LETTERS}'",
        ),
        # Results in such a topic would be replayed with the dead letters of another pipeline.
        Rule(
            f"!self.target.endsWith('{DEAD_LETTERS}')",
            f"target must not end in {DEAD_LETTERS}: such a topic holds dead letters, not results",
        ),
        Rule(
            "self.name.matches('^[a-zA-Z0-9._-]+$') && self.name != '.' && self.name != '..'",
            "name must be a topic's name: letters, digits, dots, underscores and hyphens",
        ),
        Rule(
            "self.target == '' || (self.target.matches('^[a-zA-Z0-9._-]+$') && self.target != '.' && "
            "self.target != '..')",
            "target must be a topic's name (letters, digits, dots, underscores and hyphens), or empty to publish "
            "nothing",
        ),
        Rule(
            "!self.name.matches('^kcloud-(classify|analysis)-queue([.]fifo)?$')",
            "the queues of Hub's classifier are not supported by this version yet: name a queue of your own Vault",
        ),
    )
    system: Literal["KAFKA"] = Field(
        default="KAFKA",
        description="Kind of queue.",
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self == oldSelf",
                    "message": "system can't be changed: delete the pipeline and create it anew",
                }
            ]
        },
    )
    name: Annotated[Topic, Field(min_length=1)] = Field(description="Topic that the events are read from.")
    target: Topic = Field(default="", description="Topic that the results go to; empty publishes nothing.")
    kafka: Kafka | None = Field(default=None, description="The Kafka cluster, for system KAFKA.")


class Vault(Model):
    """Kerberos Vault, where the recordings are."""

    rules = (
        *url_rules("apiUrl", "look like http://vault-lb.kerberos-vault/api, without user, password, query or fragment"),
    )
    api_url: Annotated[str, Field(min_length=1, max_length=2048)] = Field(
        description="Vault's address, with /api for newer Vaults."
    )
    credentials_secret_ref: SecretRef = Field(description="Secret with the keys accessKey and secretKey.")
    ca: CertificateAuthority | None = Field(
        default=None,
        description="Authority that signed the certificate of Vault or its storage, trusted besides the image's own.",
    )
    download: Literal["blob", "signed-url"] = Field(
        default="blob", description="blob: through Vault. signed-url: straight from its storage provider."
    )
