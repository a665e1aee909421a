"""Videos: read and written frame by frame."""

from fractions import Fraction

import av
import numpy as np
import pytest

from detr.errors import InputError
from detr.inference.video import VideoReader, VideoWriter, camera_frames


def frames(count, height=48, width=64):
    """A bright square that moves to the right by a pixel a frame."""
    images = np.full((count, height, width, 3), 40, dtype=np.uint8)
    for i, image in enumerate(images):
        image[10:26, i : i + 16] = (230, 30, 30)
    return images


def write(path, images, rate=Fraction(25), seconds=None):
    with VideoWriter(path, rate) as writer:
        for i, image in enumerate(images):
            writer.write(image, None if seconds is None else seconds[i])
    return path


def stream_of(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        return {
            "codec": (codec.name, codec.pix_fmt),
            "rate": stream.average_rate,
            "size": (stream.height, stream.width),
            "frames": stream.frames,
        }


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_what_is_written_plays_in_a_browser(rate, tmp_path):
    path = write(tmp_path / "deep" / "a.mp4", frames(12, 47, 65), rate)
    assert stream_of(path) == {"codec": ("h264", "yuv420p"), "rate": rate, "size": (46, 64), "frames": 12}
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # it plays while it loads


def test_what_is_read_is_what_was_written(tmp_path):
    images = frames(12)
    with VideoReader(write(tmp_path / "a.mp4", images)) as reader:
        assert (reader.rate, reader.num_frames) == (25, 12)
        read = list(reader)
    assert [frame.seconds for frame in read] == pytest.approx([i / 25 for i in range(12)])
    for frame, image in zip(read, images, strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 3  # a frame's shift would make 6


def test_times_of_a_variable_frame_rate_are_kept(tmp_path):
    seconds = [0, 0.1, 0.15, 0.6, 0.6, 0.9]
    with VideoReader(write(tmp_path / "a.mp4", frames(6), seconds=seconds)) as reader:
        assert [frame.seconds for frame in reader] == pytest.approx(seconds, abs=1e-3)


def test_a_phone_held_upright(tmp_path):
    path = tmp_path / "a.mov"
    images = frames(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        set_rotation(stream, 90)
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    with VideoReader(path) as reader:
        first = next(iter(reader)).image
    assert first.shape == (64, 48, 3)
    red = first[..., 0].astype(int) - first[..., 1] > 100
    assert red[-16:, 10:26].mean() > 0.8  # turned counterclockwise: what was left is below


def set_rotation(stream, degrees):
    if not hasattr(stream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    stream.set_display_rotation(degrees)


def test_an_interrupt_leaves_a_file_that_plays(tmp_path):
    path = tmp_path / "a.mp4"

    def interrupted():
        yield from frames(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, interrupted())
    with VideoReader(path) as reader:
        assert len(list(reader)) == 5


def test_a_video_without_frames_is_not_written(tmp_path):
    write(tmp_path / "a.mp4", [])
    assert not (tmp_path / "a.mp4").exists()


def test_what_is_no_video(tmp_path):
    with pytest.raises(InputError, match=r"there is no video .*no\.mp4"):
        VideoReader(tmp_path / "no.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(InputError, match="cannot be read as a video"):
        VideoReader(tmp_path / "text.mp4")
    whole = write(tmp_path / "whole.mp4", frames(5)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with (
        pytest.raises(InputError, match=r"is damaged|holds no frame|cannot be read"),
        VideoReader(tmp_path / "cut.mp4") as reader,
    ):
        list(reader)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        container.mux([*stream.encode(sound), *stream.encode()])
    with pytest.raises(InputError, match="holds no pictures"):
        VideoReader(tmp_path / "sound.mp4")
    with pytest.raises(InputError, match=r"ends in \.mp4"):
        VideoWriter(tmp_path / "a.gif")


def test_a_camera_that_is_not_there():
    with pytest.raises(InputError, match="there is no camera 97"):
        next(camera_frames(97))
