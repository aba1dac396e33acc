"""A Kerberos Agent for development: cuts footage into recordings and uploads them to a Vault."""

import io
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import requests

from vaultml_worker.dev.vault import CAPTURE, CLOUD_KEY, DEVICE, DIRECTORY, DURATION, FPS
from vaultml_worker.records import InvalidInput, VaultAccess
from vaultml_worker.vault import ACCESS_KEY, FILE_NAME, PROVIDER, SECRET_KEY

_KEYFRAME_S = 2


def cut(footage: Path, seconds: float) -> Iterator[tuple[bytes, int, float]]:
    """H.264 recordings of `seconds` each with a keyframe every 2 s: (mp4 bytes, duration in ms, frames per second).

    A rest of less than half that length is left out. Raises InvalidInput when the footage can't be read.
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
        frames = source.decode(stream)
        wanted = max(1, round(seconds * rate))
        while chunk := list(islice(frames, wanted)):
            if len(chunk) * 2 >= wanted:
                yield _encode(chunk, rate), round(len(chunk) / rate * 1000), float(rate)


def upload(
    vault: VaultAccess,
    provider: str,
    footage: Path,
    *,
    seconds: float,
    cameras: int,
    rate: float,
    user: str = "demo",
    stop: threading.Event | None = None,
) -> Iterator[str]:
    """Upload the footage's recordings, `rate` a second (0: at once), from `cameras` in turn; gives each key.

    Raises InvalidInput when the Vault can't be reached or refuses.
    """
    stop = stop or threading.Event()
    began = int(time.time())
    with requests.Session() as session:
        session.trust_env = False
        for index, (body, duration, fps) in enumerate(cut(footage, seconds)):
            if stop.wait(1 / rate if rate and index else 0):
                return
            camera = f"camera{index % cameras + 1}"
            name = f"{began + round(index * seconds)}_6-967003_{camera}_200-200-400-400_24_{duration}.mp4"
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


def _encode(frames: list[av.VideoFrame], rate: Fraction) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height = frames[0].width & ~1, frames[0].height & ~1
        stream.pix_fmt = "yuv420p"
        stream.gop_size = max(1, round(rate * _KEYFRAME_S))
        for number, frame in enumerate(frames):
            fitting = frame.reformat(stream.width, stream.height, "yuv420p")
            fitting.pts, fitting.time_base = number, 1 / rate
            container.mux(stream.encode(fitting))
        container.mux(stream.encode(None))
    return out.getvalue()
