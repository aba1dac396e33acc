"""A Kerberos Agent for development: cuts footage into recordings and uploads them to a Vault."""

import io
import threading
import time
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import av
import requests

from vaultml_common.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY
from vaultml_worker.dev.vault import CAPTURE, CLOUD_KEY, DEVICE, DIRECTORY, DURATION, FPS
from vaultml_worker.records import InvalidInput, VaultAccess

_KEYFRAME_S = 2


def cut(footage: Path, seconds: float) -> Iterator[tuple[bytes, int, float]]:
    """H.264 recordings of `seconds` each with a keyframe every 2 s: (mp4 bytes, duration in ms, frames per second).

    A rest of less than half that length is left out, unless it is all there is.
    Raises InvalidInput when the footage can't be read.
    """
    try:
        source = av.open(str(footage))
    except (av.FFmpegError, OSError) as error:
        raise InvalidInput(f"{footage}: can't be read as a video ({error.strerror})") from None
    with source:
        if not source.streams.video:
            raise InvalidInput(f"{footage}: has no video stream")
        stream = source.streams.video[0]
        rate = Fraction(stream.average_rate or 25).limit_denominator(1000)
        wanted = max(1, round(seconds * rate))
        recording: _Recording | None = None
        complete = 0
        for frame in source.decode(stream):
            recording = recording or _Recording(frame, rate)
            recording.add(frame)
            if recording.frames == wanted:
                yield recording.finish()
                recording, complete = None, complete + 1
        if recording is not None and (recording.frames * 2 >= wanted or not complete):
            yield recording.finish()


def upload(
    vault: VaultAccess,
    provider: str,
    footage: Path,
    *,
    seconds: float,
    cameras: int,
    rate: float,
    count: int | None = None,
    user: str = "demo",
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """Upload the footage's recordings, `rate` a second (0: at once), from `cameras` in turn; gives each key.

    `count` of them, from the beginning again where the footage is too short; None: those that there are.
    Raises InvalidInput when the Vault can't be reached or refuses.
    """
    recordings = cut(footage, seconds) if count is None else islice(cycle(cut(footage, seconds)), count)
    return send(vault, provider, recordings, seconds=seconds, cameras=cameras, rate=rate, user=user, stop=stop)


def send(
    vault: VaultAccess,
    provider: str,
    recordings: Iterable[tuple[bytes, int, float]],
    *,
    seconds: float,
    cameras: int,
    rate: float,
    user: str = "demo",
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """Upload recordings that were cut before, as `upload` does."""
    stop = stop or threading.Event()
    began = int(time.time())
    with requests.Session() as session:
        session.trust_env = False
        for index, (body, duration, fps) in enumerate(recordings):
            if stop.wait(1 / rate if rate and index else 0):
                return
            camera = f"camera{index % cameras + 1}"
            name = f"{began + round(index * seconds)}_1-0_{camera}_0-0-0-0_-1_{duration}.mp4"  # a continuous one
            headers = {
                ACCESS_KEY: vault.access_key,
                SECRET_KEY: vault.secret_key,
                PROVIDER: provider,
                FILE_NAME: name,
                DIRECTORY: user,
                DEVICE: camera,
                CAPTURE: "IPCamera",
                CLOUD_KEY: "ABCDEFGHI!@#$%12345",
                DURATION: str(duration),
                FPS: f"{fps:g}",
                "Content-Type": "video/mp4",
            }
            try:
                answer = session.post(f"{vault.url.rstrip('/')}/storage", data=body, headers=headers, timeout=60)
            except requests.RequestException as error:
                raise InvalidInput(f"the Vault at {vault.url} can't be reached ({type(error).__name__})") from None
            if answer.status_code != 200:
                raise InvalidInput(f"the Vault at {vault.url} answered {answer.status_code} to an upload")
            yield f"{user}/{name}"


class _Recording:
    """One recording in the making, of the size of its first frame (even sides)."""

    def __init__(self, first: av.VideoFrame, rate: Fraction) -> None:
        self.frames = 0
        self._rate = rate
        self._out = io.BytesIO()
        self._container = av.open(self._out, "w", format="mp4")
        options = {"preset": "veryfast", "crf": "18"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height = first.width & ~1, first.height & ~1
        self._stream.pix_fmt = "yuv420p"
        self._stream.gop_size = max(1, round(rate * _KEYFRAME_S))

    def add(self, frame: av.VideoFrame) -> None:
        fitting = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        fitting.pts, fitting.time_base = self.frames, 1 / self._rate
        self._container.mux(self._stream.encode(fitting))
        self.frames += 1

    def finish(self) -> tuple[bytes, int, float]:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._out.getvalue(), round(self.frames / self._rate * 1000), float(self._rate)
