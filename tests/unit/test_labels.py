from pathlib import Path

import pytest

from vaultml_worker import labels
from vaultml_worker.records import InvalidInput

TRIALS = Path(__file__).parents[1] / "data/model-trials"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"cat\ndog\n", ("cat", "dog")),
        (b"\xef\xbb\xbfcat\r\ndog\r\n\r\n", ("cat", "dog")),
        (b"cat\rdog\r", ("cat", "dog")),
        (b"cat \n\n  dog\x1a", ("cat", "dog")),
        ("Fußgänger\n行人\n".encode(), ("Fußgänger", "行人")),
        ("Fußgänger\n".encode("utf-16"), ("Fußgänger",)),
        ("Fußgänger\n".encode("cp1252"), ("Fußgänger",)),
        (b"price \x80\n", ("price €",)),
        (b"undefined \x81\n", ("undefined \x81",)),
    ],
)
def test_labels_in_any_encoding(tmp_path: Path, body: bytes, expected: tuple[str, ...]) -> None:
    path = tmp_path / "some.names"
    path.write_bytes(body)
    assert labels.from_file(path) == expected


def test_trials() -> None:
    assert labels.from_file(TRIALS / "32-bom.names") == ("person", "car")
    assert labels.from_file(TRIALS / "32-latin1.names") == ("piéton", "car")
    assert labels.from_file(TRIALS / "17-one.names") == ("cat",)


def test_files_that_are_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "some.names"
    path.write_bytes(b"\n \n")
    with pytest.raises(InvalidInput, match=r"some.names: has no labels"):
        labels.from_file(path)
    path.write_bytes(b"\x00\x01\x02\x03")
    with pytest.raises(InvalidInput, match=r"some.names: is not labels, one a line but a binary file"):
        labels.from_file(path)
    with path.open("wb") as file:
        file.truncate(100 << 20)
    with pytest.raises(InvalidInput, match=r"some.names: is too large to be labels"):
        labels.from_file(path)
    with pytest.raises(InvalidInput, match=r"can't be read as labels, one a line \(Is a directory\)"):
        labels.from_file(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({"vaultml.labels": '["a", "b"]'}, ("a", "b")),
        ({"names": "{0: 'a', 1: 'b'}"}, ("a", "b")),
        ({"names": "['a', 'b']"}, ("a", "b")),
    ],
)
def test_labels_in_metadata(metadata: dict[str, str], expected: tuple[str, ...] | None) -> None:
    assert labels.from_metadata(Path("some.onnx"), metadata) == expected


@pytest.mark.parametrize(
    "metadata",
    [
        {"vaultml.labels": "["},
        {"vaultml.labels": '"ab"'},
        {"vaultml.labels": "{}"},
        {"names": "{1: 'a'}"},
        {"names": "os.system('x')"},
        {"names": "5"},
        {"names": "{}"},
    ],
)
def test_metadata_that_holds_no_labels(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match=r"some.onnx: the labels in its metadata can't be read: set MODEL_NAMES"):
        labels.from_metadata(Path("some.onnx"), metadata)


def test_coco_stands_only_for_eighty_classes() -> None:
    path = Path("some.onnx")
    assert labels.settle(path, None, 80, "") == labels.coco()
    for classes, says in [(2, "2 classes"), (1, "1 class"), (None, "does not tell")]:
        with pytest.raises(InvalidInput, match=f"some.onnx: has .*{says} and no labels: set MODEL_NAMES"):
            labels.settle(path, None, classes, "")
    assert labels.settle(path, ("a",), None, "") == ("a",)
    with pytest.raises(InvalidInput, match=r"a.names: has 1 label, but the model has 2 classes"):
        labels.settle(path, ("a",), 2, "a.names")
