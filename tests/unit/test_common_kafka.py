"""Logins with tokens: settings of the client, and AWS's signer."""

import base64
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from confluent_kafka import KafkaError

from vaultml_common import msk
from vaultml_common.kafka import Login, OAuth, Trouble, client_settings, dead_letter_topic, trouble, wrong_broker

OAUTH = OAuth("https://idp.test/token", "me", "s3cret", "kafka", "a=b", ("pem", "CA"))


def test_a_login_at_an_openid_connect_provider() -> None:
    found = client_settings(("b:1",), "SASL_SSL", "id", Login("OAUTHBEARER", oauth=OAUTH), {"ca.pem": "PEM", "key": ""})
    assert found == {
        "bootstrap.servers": "b:1",
        "security.protocol": "SASL_SSL",
        "client.id": "id",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "me",
        "sasl.oauthbearer.client.secret": "s3cret",
        "sasl.oauthbearer.token.endpoint.url": "https://idp.test/token",
        "sasl.oauthbearer.scope": "kafka",
        "sasl.oauthbearer.extensions": "a=b",
        "https.ca.pem": "CA",
        "ssl.ca.pem": "PEM",
    }
    for login in (Login("OAUTHBEARER", oauth=OAUTH), Login("PLAIN", "me", "s3cret")):
        assert "s3cret" not in repr(login)
        assert not any(name.startswith("sasl") for name in client_settings(("b:1",), "SSL", "id", login, {}))


def test_a_token_of_awss_own_signer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    settings = Login(msk.MECHANISM, region="eu-central-1").settings()
    assert settings["sasl.mechanism"] == "OAUTHBEARER"
    token, expires = settings["oauth_cb"]("")
    assert time.time() < expires < time.time() + 3600
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    assert url.hostname == "kafka.eu-central-1.amazonaws.com"
    assert parse_qs(url.query)["Action"] == ["kafka-cluster:Connect"]
    assert "planted" not in url.geturl()


def test_what_awss_login_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert msk.missing("eu-central-1") is None
    assert "set AWS_REGION" in (msk.missing("") or "")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    assert msk.missing("") is None
    monkeypatch.setattr(msk, "_SIGNER", "no_such_package")
    assert "pip install 'vaultml[msk]'" in (msk.missing("") or "")


def test_names_of_topics_and_brokers() -> None:
    assert dead_letter_topic("in", "out") == "out.dlq"
    assert dead_letter_topic("in", "") == "in.dlq"
    for good in ("kafka:9092", "kafka", "10.0.0.1:1", "[::1]:9092", "a_b.c-d:65535"):
        assert wrong_broker(good) is None
    for bad in ("", "kafka:", "kafka:0", "kafka:65536", "kafka:9092/", "tcp://kafka:9092", "kafka 9092", "::1:9092"):
        assert wrong_broker(bad)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError.SASL_AUTHENTICATION_FAILED, Trouble.LOGIN_REFUSED),
        (KafkaError._SSL, Trouble.TLS_FAILED),
        (KafkaError._UNKNOWN_TOPIC, Trouble.TOPIC_MISSING),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Trouble.TOPIC_FORBIDDEN),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, Trouble.GROUP_FORBIDDEN),
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, Trouble.CLUSTER_FORBIDDEN),
        (KafkaError.INVALID_MSG, None),
    ],
)
def test_what_an_error_means(code: int, kind: Trouble | None) -> None:
    assert trouble(KafkaError(code)) is kind
