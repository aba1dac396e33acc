from pathlib import Path

import pytest

from vaultml_worker import settings
from vaultml_worker.queues.kafka.settings import KafkaSettings
from vaultml_worker.records import InvalidInput

HUB_ML = {
    "QUEUE_SYSTEM": "KAFKA",
    "QUEUE_NAME": "ml-queue",
    "QUEUE_TARGET": "ml-results",
    "KAFKA_BROKER": "kafka1.kerberos.live:9094,kafka2.kerberos.xxx:9094",
    "KAFKA_GROUP": "mygroup",
    "KAFKA_USERNAME": "yourusername",
    "KAFKA_PASSWORD": "yourpassword!@#$%",
    "KAFKA_MECHANISM": "PLAIN",
    "KAFKA_SECURITY": "SASL_PLAINTEXT",
    "VAULT_API_URL": "https://staging.api.vault.xxx.live",
    "VAULT_ACCESS_KEY": "xxx!@#$%12345",
    "VAULT_SECRET_KEY": "xxx!@#$%67890",
    "NUMBER_OF_PREDICTIONS": "5",
    "FORWARDING_MEDIA": "false",
    "FORWARDING_METADATA": "false",
    "FORWARDING_OBJECT_THRESHOLD": "1",
    "REMOVE_AFTER_PROCESSED": "false",
    "MOVE_DISTANCE": "100",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, *_ in settings.variables():
        monkeypatch.delenv(name, raising=False)
    for name, value in HUB_ML.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_hub_mls_own_variables_work(environment: pytest.MonkeyPatch) -> None:
    loaded = settings.load()
    assert isinstance(loaded.queue, KafkaSettings)
    assert loaded.queue.kafka_broker == ("kafka1.kerberos.live:9094", "kafka2.kerberos.xxx:9094")
    assert loaded.vault is not None
    assert loaded.vault.secret_key == "xxx!@#$%67890"
    assert (loaded.number_of_predictions, loaded.move_distance) == (5, 100)
    assert loaded.names.dead_letters == "ml-results.dlq"
    assert set(loaded.secrets) == {"yourpassword!@#$%", "xxx!@#$%12345", "xxx!@#$%67890"}
    assert not any(secret in repr(loaded) for secret in loaded.secrets)


def test_empty_means_absent(environment: pytest.MonkeyPatch) -> None:
    for name in ("QUEUE_TARGET", "MOVE_DISTANCE", "VAULT_API_URL", "VAULT_ACCESS_KEY", "VAULT_SECRET_KEY"):
        environment.setenv(name, "")
    loaded = settings.load()
    assert loaded.vault is None
    assert loaded.move_distance == 0
    assert loaded.names.dead_letters == "ml-queue.dlq"


def test_one_message_names_everything_wrong(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.delenv("QUEUE_NAME")
    environment.delenv("KAFKA_PASSWORD")
    environment.delenv("VAULT_SECRET_KEY")
    for name, value in {
        "FORWARDING_MEDIA": "true",
        "MOVE_DISTANCE": "-1",
        "NUMBER_OF_PREDICTIONS": "many",
        "KAFKA_MECHANISM": "GSSAPI",
        "MODEL": str(tmp_path / "none.cfg"),
    }.items():
        environment.setenv(name, value)
    with pytest.raises(InvalidInput) as caught:
        settings.load()
    said = str(caught.value)
    for part in (
        "QUEUE_NAME: missing",
        "KAFKA_PASSWORD: needed",
        "VAULT_SECRET_KEY: give all three",
        "FORWARDING_MEDIA: true is not supported",
        "MOVE_DISTANCE: input should be greater",
        "NUMBER_OF_PREDICTIONS: input should be a valid integer",
        "KAFKA_MECHANISM: input should be 'PLAIN'",
        "MODEL: no such file",
    ):
        assert part in said
    assert "xxx!@#" not in said


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("QUEUE_SYSTEM", "SQS", "QUEUE_SYSTEM"),
        ("QUEUE_NAME", "kcloud-analysis-queue.fifo", "Hub"),
        ("QUEUE_TARGET", "ml-queue", "must differ"),
        ("FORWARDING_METADATA", "true", "not supported"),
        ("REMOVE_AFTER_PROCESSED", "true", "not supported"),
        ("VAULT_API_URL", "vault/api", "must look like"),
        ("VAULT_API_URL", "http://user:pass@vault/api", "user or password"),
        ("KAFKA_BROKER", ",", "names no broker"),
        ("DETECTION_THRESHOLD", "1", "less than 1"),
        ("KAFKA_SSL_CA", "/nonexistent/ca.crt", "no such file"),
        ("MODEL", "yolov9", "one of yolov3-tiny, yolov3"),
        ("MODEL", "https://me:hidden@models.test/a.onnx", "no user, password"),
        ("MODEL", "https://models.test/a.pt", "end in .cfg or .onnx"),
        ("MODEL", "https://models.test/a.onnx", "MODEL_SHA256: needed with a URL"),
        ("MODEL_SHA256", "abc", "MODEL_SHA256: string should match"),
    ],
)
def test_a_wrong_value_is_named(environment: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(InvalidInput, match=says) as caught:
        settings.load()
    assert name in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_the_document_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs" / "variables.md"
    assert written.read_text() == settings.reference(), "run `make docs`"


def test_every_variable_has_a_meaning() -> None:
    assert all(meaning for _, _, _, meaning in settings.variables())
