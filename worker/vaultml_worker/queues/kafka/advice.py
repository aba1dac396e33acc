"""Advice on errors of Kafka's client, in terms of the worker's variables."""

from confluent_kafka import KafkaError

from vaultml_common.kafka import Trouble, trouble

REFUSED = "the Kafka client refuses the KAFKA_ variables"
_TODO = {
    Trouble.LOGIN_REFUSED: (
        "check KAFKA_USERNAME, KAFKA_PASSWORD and KAFKA_MECHANISM (with OAUTHBEARER the KAFKA_OAUTH_ variables, "
        "with AWS_MSK_IAM the AWS credentials)"
    ),
    Trouble.TLS_FAILED: (
        "check that KAFKA_SSL_CA (or SSL_CERT_FILE) holds the CA that signed the brokers' certificate, and that "
        "KAFKA_BROKER uses the names in it"
    ),
    Trouble.TOPIC_MISSING: "create it, or correct the name",
    Trouble.UNREACHABLE: "check KAFKA_BROKER and KAFKA_SECURITY, and that the brokers run",
    Trouble.TOPIC_FORBIDDEN: (
        "grant Read and Describe on QUEUE_NAME, and Write and Describe on QUEUE_TARGET and on the dead-letter topic"
    ),
    Trouble.GROUP_FORBIDDEN: "grant Read on KAFKA_GROUP",
    Trouble.CLUSTER_FORBIDDEN: "grant Write on QUEUE_TARGET (before Kafka 2.8 also IdempotentWrite on the cluster)",
    Trouble.GROUP_IN_USE: "stop them first, or use another group",
}


def advice(error: KafkaError) -> tuple[str, str] | None:
    """Return what an error means and what to do, where that is known."""
    kind = trouble(error)
    return None if kind is None else (kind.value, _TODO[kind])
