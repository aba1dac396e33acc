import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultml_worker import events, results
from vaultml_worker.failures import Cause, Failure
from vaultml_worker.records import VaultAccess

PAIRS = Path(__file__).parents[1] / "data" / "hub-ml-pair.json"
EVENT: dict[str, Any] = json.loads(PAIRS.read_text())["event"]


def body(**changes: Any) -> bytes:
    return json.dumps({**EVENT, **changes}).encode()


def test_newest_and_oldest_events_are_read() -> None:
    event = events.parse(body(traceId="t", unknown={"a": [1]}))
    assert event.key == "youruser/1630567591_6-967003_highway4_200-200-400-400_24_769.mp4"
    assert (event.source, event.camera, event.timestamp, event.file_size) == (
        "storj",
        "highway4",
        1630567591.0,
        6189104,
    )
    oldest = {"source": "storj", "payload": {"key": "u/1630567591_6-967003_my_cam_200-200-400-400_24_769.mp4"}}
    event = events.parse(json.dumps(oldest).encode())
    assert (event.camera, event.timestamp) == ("my_cam", 1630567591.0)
    assert event.access is None


NAMED = "u/1764300000_3-250_yard_0-0-0-0_-1_29870.mp4"


@pytest.mark.parametrize(
    ("payload", "date", "camera", "timestamp"),
    [
        ({}, 9, "yard", 1764300000.25),
        ({"timestamp": 1764300000, "deviceName": "gate"}, 9, "gate", 1764300000.25),
        ({"metadata": {"event-timestamp": "1764300000", "event-microseconds": "0"}}, 9, "yard", 1764300000.25),
        (
            {"timestamp": 7, "deviceName": "gate", "metadata": {"event-timestamp": "8", "event-instancename": "door"}},
            9,
            "door",
            8.0,
        ),
        ({"timestamp": 7, "metadata": {"event-timestamp": "", "event-instancename": " "}}, 9, "yard", 7.0),
        ({"deviceName": 5, "metadata": {"event-instancename": ["x"], "event-timestamp": "soon"}}, 9, "yard", None),
        ({"key": "u/customer's own.mp4"}, 9, None, 9.0),
        ({"key": "u/customer's own.mp4", "deviceName": "gate", "timestamp": 7}, 9, "gate", 7.0),
        ({"key": "u/customer's own.mp4", "metadata": None}, None, None, None),
    ],
)
def test_camera_and_time_come_from_the_metadata_first(
    payload: dict[str, Any], date: int | None, camera: str | None, timestamp: float | None
) -> None:
    document = {"source": "s", "date": date, "payload": {"key": NAMED, **payload}}
    event = events.parse(json.dumps(document).encode())
    assert event.camera == camera
    wanted = 1764300000.25 if timestamp is None and camera else timestamp
    assert event.timestamp == wanted


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON at line 1 column 2"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"[]", "must be a JSON object"),
        (b'{"source": "s"}', "payload must be an object"),
        (b'{"source": "s", "payload": {}}', "payload.key must be a text"),
        (b'{"payload": {"key": "k"}}', "source must be a text"),
        (b'{"source": "s", "payload": {"key": "a\\nX-Evil: 1"}}', "can't be sent to a Vault"),
        (b'{"source": "s", "payload": {"key": "\\ud800"}}', "not valid Unicode"),
        (b'{"source": "s", "payload": {"key": "k"}, "x": NaN}', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"source": "s", "payload": {"key": "k"}, "data": {"storage_uri": "http://v"}}', "together"),
        (
            b'{"source": "s", "payload": {"key": "k"}, '
            b'"data": {"storage_uri": "file:///etc", "storage_access_key": "a", "storage_secret": "b"}}',
            "must be an http",
        ),
    ],
)
def test_bad_events_are_refused_with_a_reason(message: bytes, says: str) -> None:
    with pytest.raises(Failure, match=says) as caught:
        events.parse(message)
    assert caught.value.cause is Cause.BAD_EVENT


def test_a_message_may_bring_its_own_vault() -> None:
    data = {"storage_uri": "http://v/api", "storage_access_key": "ak", "storage_secret": "sk", "other": 1}
    event = events.parse(body(data=data, operation="classify"))
    assert event.access == VaultAccess("http://v/api", "ak", "sk")
    assert "ak" not in repr(event)
    assert "sk" not in repr(event)


SIGNED = "https://store/b/k.mp4?X-Amz-Expires=1&X-Amz-Signature=abcdef0123"


def test_credentials_are_taken_out_wherever_they_stand() -> None:
    document = {
        "keep": [1, {"a": None}],
        "data": {"storage_secret": "p1anted-secret", "storage_uri": "http://v", "other": 1},
        "payload": {"signedUrl": SIGNED, "signed_url": "x", "url": SIGNED, "note": f"see {SIGNED} there"},
        "list": [SIGNED, "p1anted-secret", {"storage_x": 1}, "fine"],
        "text": "the key is p1anted-secret!",
        "inner": json.dumps({"storage_secret": "p1anted-inner", "b": 2}),
    }
    clean = events.scrub(document)
    text = json.dumps(clean)
    assert "p1anted" not in text
    assert "abcdef0123" not in text
    assert clean["keep"] == document["keep"]
    assert clean["data"] == {"other": 1}
    assert clean["list"] == [{}, "fine"]
    assert list(clean) == list(document)


def test_dead_letters_keep_the_original_bytes_but_not_credentials() -> None:
    plain = b'{ "b":1,\n "a" : [1.10, "\\u00e9"] }'
    assert events.scrub_bytes(plain) == plain
    secret = b'{"b":1,\n "data": {"storage_secret" : "p1an\\"ted", "k": 1.10},  "s":"storage_note"}'
    assert (
        events.scrub_bytes(secret) == b'{"b":1,\n "data": {"storage_secret" : "***", "k": 1.10},  "s":"storage_note"}'
    )


@pytest.mark.parametrize(
    "message",
    [
        b'{"data": {"storage_secret": "p1anted", "x":',
        b'{"data": {"storage_secret": "p1anted',
        b"{'storage_access_key': 'p1anted'}",
        b"storage_secret=p1anted&x=1",
        b'{"data": {"storage_secret": ["p1anted"]}}',
        b'{"data": {"storage_secret": {"deep": "p1anted"}}}',
        b'{"data": {"\\u0073torage_secret": "p1anted"}}',
        b'{"data": {"\\u0073torage_secret": "p1anted"',
        b'{"x": "{\\"storage_secret\\": \\"p1anted\\"}"}',
        b'{"data": {"storage_secret": "p1anted"}, "echo": "p1anted"}',
        '{"storage_secret": "p1anted"}'.encode("utf-16"),
        b'{"payload": {"signedUrl": "http://x/?a=p1anted"}}',
        b'{"u": "https://x/y?X-Amz-Signature=p1anted"}',
        b'{"u": "https%3A%2F%2Fx%2Fy%3FX-Amz-Signature%3Dp1anted"}',
        b'{"u": "https://x/y?a=1&amp;Signature=p1anted"',
        b'\xff{"storage_secret": "p1anted"}',
    ],
)
def test_no_credential_survives_in_damaged_events(message: bytes) -> None:
    scrubbed = events.scrub_bytes(message)
    assert b"p1anted" not in scrubbed.replace(b"\0", b"")


def test_a_number_under_a_credential_key_leaves_json() -> None:
    assert json.loads(events.scrub_bytes(b'{"storage_x": 123456, "a": 1}')) == {"storage_x": "***", "a": 1}


def test_the_log_masks_keys_too() -> None:
    masked = events.mask(EVENT)
    assert masked["payload"]["metadata"]["publickey"] == "***"
    assert masked["payload"]["metadata"]["productid"] == "***"
    assert masked["payload"]["key"] == EVENT["payload"]["key"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, print_blob=True)
@given(st.dictionaries(st.text(max_size=8), json_values, max_size=5))
def test_unknown_fields_come_back_unchanged_in_order(extra: dict[str, Any]) -> None:
    extra = {name: value for name, value in extra.items() if name not in ("data", "operation", "vaultml", *EVENT)}
    document = {**EVENT, **extra}
    message = json.dumps(document).encode()
    event = events.parse(message)
    back = json.loads(results.encode(results.vault_format(event, [], {})))
    for name in ("data", "operation", "vaultml"):
        back.pop(name)
    assert json.dumps(back) == json.dumps(document)
    assert events.scrub_bytes(message) == message


@settings(max_examples=500, print_blob=True)
@given(
    st.binary(max_size=300)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.builds(
        lambda payload, source, data: json.dumps({"payload": payload, "source": source, "data": data}).encode(),
        st.dictionaries(st.sampled_from(["key", "fileSize", "metadata", "x"]), json_values, max_size=4),
        json_values,
        st.dictionaries(
            st.sampled_from(["storage_uri", "storage_access_key", "storage_secret", "x"]), json_values, max_size=4
        ),
    )
)
def test_fuzzed_events_parse_or_are_refused(message: bytes) -> None:
    try:
        event = events.parse(message)
    except Failure as failure:
        assert failure.cause is Cause.BAD_EVENT
    else:
        assert event.key
        assert json.loads(results.encode(results.vault_format(event, [], {})))
    events.scrub_bytes(message)
