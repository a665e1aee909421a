"""Videos, frame by frame, through PyAV: read from a file or a camera, written as H.264 that a browser plays."""

import os
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from detr.errors import InputError

try:
    import av
except ModuleNotFoundError:
    raise InputError("videos need PyAV, which is not installed: pip install -e '.[video]'") from None

SUFFIXES = (".mp4", ".mov", ".mkv")  # that are written
TIME_BASE = Fraction(1, 90000)  # of written frames, in seconds: every usual frame rate is a whole number of these
DEFAULT_RATE = Fraction(30)


class Frame(NamedTuple):
    """image: (H, W, 3) uint8, RGB, upright; seconds: since the beginning of the video."""

    image: np.ndarray
    seconds: float


class VideoReader:
    """The frames of a video file, decoded one after the other. A context manager.

    rate: frames a second, as the file gives them
    num_frames: about how many there are; None where the file does not tell
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises InputError for a file that is missing, is no video, or has no pictures."""
        self.path = os.fspath(path)
        if "://" not in self.path and not os.path.isfile(self.path):
            raise InputError(f"there is no video {self.path}: check the path")
        try:
            self._container = av.open(self.path)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(
                f"{self.path} cannot be read as a video ({_reason(error)}): is the file complete?"
            ) from error
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{self.path} holds no pictures, and is no video")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self._stream = stream
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
        duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        self.num_frames: int | None = stream.frames or round(duration * self.rate) or None

    def __iter__(self) -> Iterator[Frame]:
        """Raises InputError for a video without a frame, and where the file is damaged, after the frames before."""
        count, start, seconds = 0, 0.0, 0.0
        try:
            for frame in self._container.decode(self._stream):
                seconds = seconds + float(1 / self.rate) if frame.time is None else frame.time
                start = start if count else seconds
                count += 1
                yield Frame(_upright(frame), seconds - start)
        except av.FFmpegError as error:
            where = f"after frame {count}" if count else "before its first frame"
            raise InputError(f"{self.path} is damaged {where} ({_reason(error)})") from error
        if not count:
            raise InputError(f"{self.path} holds no frame: is the file complete?")

    def close(self) -> None:
        self._container.close()

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoWriter:
    """Writes a video in H.264 with the pixel format that every browser plays (yuv420p). A context manager.

    However it is left, by an error or an interrupt too, the frames written so far are a whole file. Where there are
    none, there is no file.
    """

    def __init__(self, path: str | os.PathLike[str], rate: Fraction = DEFAULT_RATE) -> None:
        """rate: frames a second. Raises InputError for a suffix that is not in ``SUFFIXES``."""
        self.path = Path(path)
        self.rate = rate
        if self.path.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{self.path} cannot be written as a video: name a file that ends in {', '.join(SUFFIXES)}"
            )
        self._container: Any = None
        self._ticks = -1

    def write(self, image: np.ndarray, seconds: float | None = None) -> None:
        """Appends a frame.

        image: (H, W, 3) uint8, RGB. An odd row or column at the end is left out, since the format has none
        seconds: since the beginning; by default one frame's duration after the last one
        """
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        if self._container is None:
            self._open(image.shape[0], image.shape[1])
        elif image.shape[:2] != (self._stream.height, self._stream.width):  # a stream may change its size
            whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            image = whole.reformat(self._stream.width, self._stream.height).to_ndarray(format="rgb24")
        step = round(1 / self.rate / TIME_BASE)
        ticks = self._ticks + step if seconds is None and self._ticks >= 0 else round((seconds or 0.0) / TIME_BASE)
        self._ticks = max(ticks, self._ticks + 1)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = self._ticks, TIME_BASE
        self._container.mux(self._stream.encode(frame))

    def _open(self, height: int, width: int) -> None:
        if not height or not width:
            raise InputError(f"{self.path}: a video of {width} x {height} pixels cannot be written")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The index at the front: a browser need not load the whole file before it plays.
        options = {"movflags": "faststart"} if self.path.suffix.lower() != ".mkv" else {}
        try:
            self._container = av.open(str(self.path), "w", options=options)
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"the video {self.path} cannot be written ({_reason(error)})") from error
        self._stream = self._container.add_stream("libx264", rate=self.rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE
        self._stream.options = {"crf": "20", "preset": "veryfast"}

    def close(self) -> None:
        """Writes what the encoder still holds, and the index."""
        if self._container is not None:
            self._container.mux(self._stream.encode())
            self._container.close()
            self._container = None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def camera_frames(index: int = 0) -> Iterator[Frame]:
    """The frames of a camera through OpenCV, until it is unplugged. Raises InputError where there is none."""
    import time

    import cv2

    missing = f"there is no camera {index}: plug one in, or name a file with --video-input"
    if sys.platform == "linux" and not os.path.exists(f"/dev/video{index}"):
        raise InputError(missing)  # OpenCV would print warnings of its own
    camera = cv2.VideoCapture(index)
    if not camera.isOpened():
        raise InputError(missing)
    start = time.monotonic()
    try:
        while True:
            read, image = camera.read()
            if not read:
                return
            yield Frame(np.ascontiguousarray(image[:, :, ::-1]), time.monotonic() - start)
    finally:
        camera.release()


def _upright(frame: Any) -> np.ndarray:
    """A phone that is held upright records a rotation beside the pictures."""
    image = frame.to_ndarray(format="rgb24")
    quarters = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
