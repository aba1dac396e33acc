from pathlib import Path

import pytest
import trustme

from tests import memory_queue
from vaultml_worker import settings
from vaultml_worker.queues import SYSTEMS
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
        ("QUEUE_SYSTEM", "MQTT", "give one of KAFKA"),
        ("QUEUE_NAME", "two words", "is no topic's name"),
        ("QUEUE_NAME", "ml-results.dlq", "dead letters would go to ml-results.dlq"),
        ("KAFKA_BROKER", "kafka:9092;other:9092", "must be host:port"),
        ("KAFKA_BROKER", "PLAINTEXT://kafka:9092", "must be host:port"),
        ("KAFKA_BROKER", "kafka:90922", "must be host:port"),
        ("KAFKA_GROUP", "my\ngroup", "control character"),
        ("VAULT_API_URL", "http://vault/api ?a", "must look like"),
        ("VAULT_API_URL", "http://vault/my api", "must look like"),
        ("VAULT_API_URL", "http://vault/api?x=1", "must look like"),
        ("VAULT_API_URL", "http://vault/api#x", "must look like"),
        ("VAULT_API_URL", "http://.vault/api", "must look like"),
        ("VAULT_API_URL", "http://vault:99999/api", "must look like"),
        ("VAULT_API_URL", "http://vau_lt\u2028/api", "must look like"),
        ("VAULT_PROXY", "proxy:3128", "must look like http://proxy"),
        ("VAULT_PROXY", "http://.proxy:3128", "must look like http://proxy"),
        ("VAULT_PROXY", "http://pro xy:3128", "must look like http://proxy"),
        ("KAFKA_OAUTH_TOKEN_URL", "htp:/x", "must look like https://idp"),
        ("KAFKA_OAUTH_EXTENSIONS", "bad", "must be key=value"),
        ("QUEUE_SYSTEM", "sQS", "sQS is no queue system"),
        ("VAULT_SECRET_KEY", "xxx!@#$%67890\n", "ends with a newline: create the Secret again"),
        ("VAULT_SECRET_KEY", "xxx!@#$%67890\r\n", "carriage return"),
        ("VAULT_ACCESS_KEY", " xxx!@#$%12345", "begins or ends with white space"),
        ("VAULT_ACCESS_KEY", "'xxx!@#$%12345'", "enclosed in quotes"),
        ("VAULT_ACCESS_KEY", "xxx!@#$\t%12345", "control character"),
        ("KAFKA_PASSWORD", "yourpassword!@#$%\n", "ends with a newline"),
        ("KAFKA_PASSWORD", "   ", "is blank"),
        ("KAFKA_MECHANISM", "OAUTHBEARER", "KAFKA_OAUTH_TOKEN_URL: needed"),
        ("KAFKA_MECHANISM", "AWS_MSK_IAM", "set AWS_REGION"),
        ("HTTP_HOST", "here", "must be an IPv4 or IPv6 address"),
        ("RECORDING_MAX_BYTES", "256", "greater than or equal to 1048576"),
        ("RECORDING_MAX_PIXELS", "1080", "greater than or equal to 100000"),
        ("DECODER_SECONDS", "0.01", "greater than or equal to 1"),
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


@pytest.mark.parametrize(
    "around", ["{}\n", "{}\r\n", " {}", "{}\t", '"{}"', "'{}'", ' "{}"\r', "\ufeff{}", "\xa0{}\u200b"]
)
def test_what_tools_add_around_a_value_is_removed(environment: pytest.MonkeyPatch, around: str) -> None:
    kept = {"KAFKA_PASSWORD", "VAULT_ACCESS_KEY", "VAULT_SECRET_KEY"}
    right = settings.load()
    for name, value in (HUB_ML | {"HTTP_HOST": "::1", "LOG_FORMAT": "json"}).items():
        environment.setenv(name, value if name in kept else around.format(value))
    loaded = settings.load()
    assert loaded.names == right.names
    assert loaded.queue == right.queue
    assert loaded.vault == right.vault
    assert (loaded.http_host, loaded.log_format) == ("::1", "json")
    assert loaded.number_of_predictions == right.number_of_predictions


def test_inner_parts_of_lists_are_cleaned_too(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("KAFKA_BROKER", "'a:1', \"b:2\" ,\tc:3\r\n,")
    queue = settings.load().queue
    assert isinstance(queue, KafkaSettings)
    assert queue.kafka_broker == ("a:1", "b:2", "c:3")


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("RECORDING_MAX_BYTES", "2.68435456e+08", "recording_max_bytes", 268435456),  # as Helm writes it
        ("NUMBER_OF_PREDICTIONS", "10.0", "number_of_predictions", 10),
        ("FORWARDING_MEDIA", "False", "forwarding_media", False),
        ("LOG_LEVEL", "info", "log_level", "INFO"),
        ("LOG_FORMAT", "JSON", "log_format", "json"),
        ("ENGINE", "OnnxRuntime", "engine", "onnxruntime"),
        ("HTTP_HOST", "[::1]", "http_host", "::1"),
        ("HTTP_HOST", "", "http_host", "::"),
        ("QUEUE_SYSTEM", "kafka", "queue_system", "KAFKA"),
        ("QUEUE_NAME", "kcloud-event-queue", "queue_name", "kcloud-event-queue"),
        ("MODEL_SHA256", "A" * 64, "model_sha256", "a" * 64),
    ],
)
def test_values_as_people_write_them(
    environment: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    environment.setenv(name, value)
    assert getattr(settings.load(), field) == expected


def test_a_secret_is_never_repaired_nor_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("VAULT_SECRET_KEY", "planted-in-here\n")
    with pytest.raises(InvalidInput) as caught:
        settings.load()
    assert "planted" not in str(caught.value)
    loaded, _ = settings.examine()
    assert "planted" not in repr(loaded)


def test_files_of_certificates_are_read_at_the_start(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    first, second = authority.issue_cert("a"), other.issue_cert("b")
    for name, blob in {
        "ca": authority.cert_pem,
        "cert": first.cert_chain_pems[0],
        "key": first.private_key_pem,
        "other": second.private_key_pem,
    }.items():
        blob.write_to_path(tmp_path / name)
    (tmp_path / "empty").touch()
    environment.setenv("KAFKA_SECURITY", "SASL_SSL")
    good = {"KAFKA_SSL_CA": "ca", "KAFKA_SSL_CERT": "cert", "KAFKA_SSL_KEY": "key", "VAULT_SSL_CA": "ca"}
    for name, file in good.items():
        environment.setenv(name, str(tmp_path / file))
    settings.load()
    for name, file, says in (
        ("KAFKA_SSL_CA", "empty", "KAFKA_SSL_CA: .*empty: holds no certificate in PEM format"),
        ("VAULT_SSL_CA", "key", "VAULT_SSL_CA: .*key: holds no certificate"),
        ("VAULT_SSL_CA", "missing", "VAULT_SSL_CA: .*missing: no such file"),
        ("REQUESTS_CA_BUNDLE", "empty", "REQUESTS_CA_BUNDLE: .*empty: holds no certificate"),
        ("SSL_CERT_FILE", "missing", "SSL_CERT_FILE: .*missing: no such file"),
        ("KAFKA_SSL_KEY", "other", "KAFKA_SSL_CERT, KAFKA_SSL_KEY: the key is not the one of the certificate"),
        ("KAFKA_SSL_KEY", "empty", "KAFKA_SSL_CERT, KAFKA_SSL_KEY: one of them is not in PEM format"),
    ):
        with environment.context() as patch:
            patch.setenv(name, str(tmp_path / file))
            with pytest.raises(InvalidInput, match=says):
                settings.load()


def test_variables_of_another_queue_system_are_not_asked_for(environment: pytest.MonkeyPatch) -> None:
    environment.setitem(SYSTEMS, "MEMORY", memory_queue.SYSTEM)
    environment.setenv("QUEUE_SYSTEM", "memory")
    for name in HUB_ML:
        if name.startswith("KAFKA_"):
            environment.delenv(name)
    with pytest.raises(InvalidInput) as caught:
        settings.load()
    assert str(caught.value) == "wrong settings:\n  MEMORY_SERVER: missing: set it"
    environment.setenv("MEMORY_SERVER", "here")
    loaded = settings.load()
    assert loaded.names.dead_letters == "ml-queue-dead"
    assert isinstance(loaded.queue, memory_queue.MemorySettings)


def test_the_document_is_up_to_date() -> None:
    written = Path(__file__).parents[2] / "docs" / "variables.md"
    assert written.read_text() == settings.reference(), "run `make docs`"


def test_every_variable_has_a_meaning() -> None:
    assert all(meaning for _, _, _, meaning in settings.variables())
