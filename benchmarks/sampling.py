"""CPU seconds for the sampled frames of one recording, beside decoding all of it."""

import io
import statistics
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream

from benchmarks.footage import Picture, pictures
from benchmarks.measure import Contender, interleave, ratio, table
from vaultml_worker.letterbox import Letterbox
from vaultml_worker.video import Limits, sample

GOAL = 0.2
BARE_GOAL = 1.15
COUNT = 5
NETWORK = (416, 416)
WIDTH, HEIGHT, RATE, SECONDS = 1280, 720, 25, 10
_SPACINGS = (1, 2, SECONDS)
_CODECS = {"H.264": "libx264", "HEVC": "libx265"}
_ROUNDS = 9


def run(footage: Path | None) -> str:
    """Measure every codec and keyframe spacing; gives Markdown."""
    wanted = [(name, spacing) for name in _CODECS if _CODECS[name] in av.codecs_available for spacing in _SPACINGS]
    rows = []
    for (codec, spacing), clip in zip(wanted, clips(footage, wanted), strict=True):
        seconds = interleave(
            {
                "ours": Contender(lambda c=clip: _ours(c), _ROUNDS),  # type: ignore[misc]
                "all": Contender(lambda c=clip: _all(c), _ROUNDS),  # type: ignore[misc]
                "keyframes": Contender(lambda c=clip: _keyframes(c), _ROUNDS),  # type: ignore[misc]
            },
            time.process_time,
        )
        found = ratio(seconds["ours"], seconds["all"])
        ours, everything = (f"{statistics.median(seconds[name]):.3f}" for name in ("ours", "all"))
        keyframes = f"every {spacing} s" if spacing < SECONDS else "only the first"
        bare = ratio(seconds["ours"], seconds["keyframes"])
        sparse = spacing == SECONDS / COUNT  # as many keyframes as frames are wanted
        verdict = (
            "-" if spacing == SECONDS else "met" if found <= GOAL and (not sparse or bare <= BARE_GOAL) else "missed"
        )
        shown = f"{bare:.2f}" if sparse else "-"
        rows.append([codec, keyframes, f"{len(clip) / 1e6:.1f}", ours, everything, f"{found:.2f}", shown, verdict])
    header = ["codec", "keyframes", "MB", "ours, CPU s", "all frames, CPU s", "ours / all", "ours / bare", "goal"]
    return (
        f"{COUNT} frames letterboxed to {NETWORK[0]} x {NETWORK[1]} out of {SECONDS} s of {WIDTH} x {HEIGHT} at {RATE} "
        f"frames a second ({'made-up moving texture' if footage is None else footage.name}; no B-frames, as cameras "
        f"do), user + system time, one decoder thread, medians. Goal: ours / all ≤ {GOAL} with keyframes every 1 or 2 "
        "s; with only one, the frames before the last wanted one have to be decoded whatever one does. Bare: opening "
        f"the file and decoding its {COUNT} keyframes, and nothing else. Goal: ours / bare ≤ {BARE_GOAL}.\n\n"
        f"{table(header, rows)}"
    )


def _ours(clip: bytes) -> list[Picture]:
    return [frame.pixels for frame in sample(clip, COUNT, NETWORK, Limits()).frames]


def _keyframes(clip: bytes) -> int:
    """Decode the keyframes; gives how many there were."""
    with av.open(io.BytesIO(clip), "r") as container:
        context = container.streams.video[0].codec_context
        context.thread_count = 1
        context.skip_frame = "NONKEY"
        return sum(1 for _ in container.decode(video=0))


def _all(clip: bytes) -> list[Picture]:
    """Decode every frame, convert the five in the middles of five equal parts."""
    chosen = []
    with av.open(io.BytesIO(clip), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = {(2 * part + 1) * stream.frames // (2 * COUNT) for part in range(COUNT)}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                chosen.append(
                    Letterbox(WIDTH, HEIGHT, *NETWORK).apply_fast(
                        np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                    )
                )
    return chosen


def clips(footage: Path | None, wanted: Sequence[tuple[str, int]]) -> list[bytes]:
    """Encode the same pictures to an mp4 for each codec and keyframe spacing in seconds, all in one pass."""
    files = [io.BytesIO() for _ in wanted]
    containers = [av.open(file, "w", format="mp4") for file in files]
    streams: list[VideoStream] = []
    for container, (codec, spacing) in zip(containers, wanted, strict=True):
        every = spacing * RATE
        fixed = {
            "H.264": {"sc_threshold": "0", "bf": "0", "keyint_min": str(every)},
            "HEVC": {"x265-params": f"keyint={every}:min-keyint={every}:scenecut=0:bframes=0:log-level=none"},
        }
        stream = container.add_stream(_CODECS[codec], rate=RATE, options={"preset": "veryfast", **fixed[codec]})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", every
        streams.append(stream)
    for number, picture in enumerate(pictures(footage, SECONDS * RATE, WIDTH, HEIGHT)):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, RATE)
        for container, stream in zip(containers, streams, strict=True):
            container.mux(stream.encode(frame))
    for container, stream in zip(containers, streams, strict=True):
        container.mux(stream.encode(None))
        container.close()
    return [file.getvalue() for file in files]
