"""`vaultml detect` and its kin as commands of their own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import cv2
import jsonschema
import numpy as np
import onnx
import pytest

from testbed.service import environment
from tests.recordings import TRIALS, clip, sound_only
from vaultml_worker import darknet, results
from vaultml_worker.dev import agent


def vaultml(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vaultml_worker", *map(str, arguments)]
    return subprocess.run(command, env=environment(variables), capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def recording(surveillance: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("footage") / "walkers.mp4"
    path.write_bytes(next(agent.cut(surveillance, 8))[0])
    return path


def load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    assert set(loaded) == {"data", "vaultml"}
    jsonschema.validate(loaded["vaultml"], results.schema())
    return loaded


def test_a_video_and_a_picture(tiny: Path, recording: Path, tmp_path: Path) -> None:
    picture = tmp_path / "still.jpg"
    with av.open(str(recording)) as source:
        originals = [item.to_ndarray(format="bgr24") for item in source.decode(video=0)]
    cv2.imwrite(str(picture), originals[8])
    out = tmp_path / "out"
    done = vaultml("detect", recording, picture, "--out", out, "--move-distance", "100")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["still.jpg", "still.json", "walkers.json", "walkers.mp4"]
    video = load(out / "walkers.json")
    assert video["vaultml"]["frames"]["decoded"] == 5
    assert video["vaultml"]["objects"]["moving"] >= 1
    assert "person" in video["data"]["labels"][0]
    with av.open(str(out / "walkers.mp4")) as annotated:
        stream = annotated.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 768, 576)
        frames = [item.to_ndarray(format="bgr24") for item in annotated.decode(video=0)]
    assert len(frames) == 80
    assert np.abs(frames[8].astype(int) - originals[8]).max() > 100, "something is drawn"
    assert load(out / "still.json")["vaultml"]["frames"]["timestamps"] == [0]
    still = cv2.imread(str(out / "still.jpg"))
    assert still is not None
    assert still.shape == (576, 768, 3)


def test_all_frames(tiny: Path, recording: Path, tmp_path: Path) -> None:
    done = vaultml("detect", recording, "--out", tmp_path, "--frames", "all")
    assert done.returncode == 0, done.stderr
    frames = load(tmp_path / "walkers.json")["vaultml"]["frames"]
    assert (frames["asked"], frames["decoded"]) == (80, 80)
    assert frames["timestamps"] == [100.0 * i for i in range(80)]


def test_one_line_for_each_bad_file_and_the_others_are_done(tiny: Path, recording: Path, tmp_path: Path) -> None:
    for name, body in (("sound.mp4", sound_only()), ("text.mp4", b"hello"), ("cut.mp4", clip(2)[:5000])):
        (tmp_path / name).write_bytes(body)
    bad = [tmp_path / name for name in ("sound.mp4", "text.mp4", "cut.mp4", "gone.mp4")]
    out = tmp_path / "out"
    done = vaultml("detect", *bad, recording, "--out", out)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("vaultml:")]
    assert len(lines) == 5
    for path, why in zip(bad, ("no video stream", "neither a video", "no index (moov)", "No such file"), strict=True):
        assert any(str(path) in line and why in line for line in lines), done.stderr
    assert "4 of 5 files" in lines[-1]
    assert sorted(path.name for path in out.iterdir()) == ["walkers.json", "walkers.mp4"]


def test_odd_recordings_in_one_batch(tiny: Path, tmp_path: Path) -> None:
    names = ["25-half-ms.mp4", "31-dahua.dav", "13-gap-5h.mkv", "30-killed-agent.mp4", "15-hevc-matrix-14.mp4"]
    done = vaultml("detect", *(TRIALS / name for name in names), "--out", tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("vaultml:")]
    assert [line.split(": ")[1].rpartition("/")[2] for line in lines[:2]] == ["31-dahua.dav", "30-killed-agent.mp4"]
    assert "2 of 5 files" in lines[-1]
    for name in ("25-half-ms", "13-gap-5h", "15-hevc-matrix-14"):
        found = load(tmp_path / f"{name}.json")["vaultml"]
        assert found["frames"]["decoded"] == 5
        assert found["timing"] == ("frame-order" if name == "13-gap-5h" else "container")
        with av.open(str(tmp_path / f"{name}.mp4")) as annotated:
            assert len(list(annotated.decode(video=0))) == 50


def test_two_inputs_of_one_stem_are_refused(tiny: Path, tmp_path: Path) -> None:
    done = vaultml("detect", tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.avi", "--out", tmp_path)
    assert done.returncode == 2
    assert "two inputs are called x" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_overwritten(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(clip(1))
    done = vaultml("detect", path, "--out", tmp_path)
    assert done.returncode == 2
    assert "would overwrite" in done.stderr
    assert path.read_bytes() == clip(1)


def test_a_wrong_model_is_one_line(tmp_path: Path) -> None:
    done = vaultml("detect", "x.mp4", "--out", tmp_path, "--model", tmp_path / "gone.cfg")
    assert done.returncode == 2
    assert done.stderr.startswith(f"vaultml: {tmp_path}/gone.cfg: can't be read")
    for wrong in (["--frames", "0"], ["--frames", "few"], ["--threshold", "1.5"]):
        assert vaultml("detect", "x.mp4", "--out", tmp_path, *wrong).returncode == 2


def test_table_and_export(tiny: Path, tmp_path: Path) -> None:
    cfg, weights = tiny / "yolov3-tiny.cfg", tiny / "yolov3-tiny.weights"
    done = vaultml("model", "table", cfg)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == darknet.layer_table(darknet.read_cfg(cfg))
    for precision in ("fp32", "fp16"):
        target = tmp_path / f"{precision}.onnx"
        assert vaultml("model", "export", cfg, weights, "-o", target, "--precision", precision).returncode == 0
        onnx.checker.check_model(str(target))
    small, large = (tmp_path / f"{precision}.onnx" for precision in ("fp16", "fp32"))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    cut = tmp_path / "cut.weights"
    cut.write_bytes(weights.read_bytes()[:-1000])
    done = vaultml("model", "export", cfg, cut, "-o", tmp_path / "x.onnx")
    assert done.returncode == 2
    assert "35,433,956" in done.stderr
    assert "35,434,956" in done.stderr
    assert not (tmp_path / "x.onnx").exists()


def test_an_exported_model_detects_the_same(tiny: Path, recording: Path, tmp_path: Path) -> None:
    target = tmp_path / "tiny.onnx"
    vaultml("model", "export", tiny / "yolov3-tiny.cfg", tiny / "yolov3-tiny.weights", "-o", target)
    one, other = tmp_path / "one", tmp_path / "other"
    assert vaultml("detect", recording, "--out", one).returncode == 0
    assert vaultml("detect", recording, "--out", other, "--model", target).returncode == 0
    assert load(one / "walkers.json")["data"] == load(other / "walkers.json")["data"]


def test_fetching_again_is_free_and_prints_the_folder(tiny: Path) -> None:
    done = vaultml("model", "fetch", "yolov3-tiny")
    assert (done.returncode, done.stdout.strip()) == (0, str(tiny))
    done = vaultml("model", "fetch", "yolov9")
    assert done.returncode == 2
    assert "yolov3-tiny, yolov3" in done.stderr


def test_help_explains_every_variable() -> None:
    done = vaultml("worker", "--help", COLUMNS="200")
    assert done.returncode == 0
    for name in ("QUEUE_SYSTEM", "KAFKA_SSL_CA", "VAULT_DOWNLOAD", "MOVE_DISTANCE", "DETECTION_CLASSES", "LOG_FORMAT"):
        assert name in done.stdout
