#!/usr/bin/env python3
"""Detects objects in images, videos and camera pictures, and draws them, with the flags of Detectron2's own demo.

python demo.py --model detr_R_50 --input photo.jpg --output predictions
python demo.py --model output/mine/model_best.pth --input photos 'more/*.png' --output predictions --json found.json
python demo.py --model exported_folder --video-input clip.mp4 --output clip_detected.mp4 --batch 8
python demo.py --config-file configs/COCO-Detection/detr_R_50.yaml --input aerial.jpg --output drawn --tiles 800 \\
    --opts MODEL.WEIGHTS detr://detr_R_50
python demo.py --model detr_R_50 --input photo.jpg --output predictions --attention
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import detr
from detr.errors import INTERRUPTED, InputError, OneLineParser, exit_with_one_line
from detr.inference.coco_results import ResultsFile, coco_results
from detr.inference.image_inputs import find_images
from detr.inference.predictor import Predictor
from detr.inference.streams import Item, detect, detect_with_attention, read_frames, read_images
from detr.pictures.attention import attention_sheet
from detr.pictures.drawing import draw_prediction
from detr.pictures.files import choose_targets, choose_video, sheet_path
from detr.pictures.sheets import save_picture

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")

Sink = Callable[[Item, np.ndarray], None]  # takes the drawn picture of an item
Point = tuple[float, float]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = parser.add_argument_group("the model, by one or both of")
    model.add_argument(
        "--model",
        default="",
        metavar="NAME|FILE|FOLDER",
        help="a checkpoint (its config is in it or beside it), the folder of an exported model, or a released model: "
        + ", ".join(detr.model_zoo.names()),
    )
    model.add_argument("--config-file", default="", metavar="FILE", help="the model's config; weights: --opts")
    model.add_argument("--classes", metavar="A,B,C", help="names of the classes; default: those of the training")
    given = parser.add_argument_group("what to look at, one of").add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders, URLs, patterns such as 'photos/*.jpg'"
    )
    given.add_argument("--video-input", metavar="FILE", help="a video")
    given.add_argument("--webcam", action="store_true", help="the first camera, until Ctrl-C")
    result = parser.add_argument_group("what to make of it; a window opens without --output and --json")
    result.add_argument(
        "--output",
        metavar="PATH",
        help="folder of the drawn images or of the video; for one of them also its file (videos: .mp4)",
    )
    result.add_argument(
        "--attention", action="store_true", help="for each image where the model looks, as NAME_attention.png beside it"
    )
    result.add_argument("--json", metavar="FILE", help="file of the detections, in COCO's results format")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--confidence-threshold",
        type=float,
        metavar="P",
        help="least score of an object; default: the one saved with the weights, else 0.5",
    )
    how.add_argument("--batch", type=int, default=1, metavar="N", help="images or tiles at once (%(default)s)")
    how.add_argument(
        "--tiles", type=int, default=0, metavar="N", help="find small objects too, in tiles of N x N pixels"
    )
    how.add_argument(
        "--points",
        nargs="+",
        type=parse_point,
        metavar="X,Y",
        help="pixels whose encoder attention --attention shows (default: the centers of the best objects)",
    )
    how.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config keys and values, at the end")
    args, rest = parser.parse_known_args(argv)
    if rest:
        hint = "" if rest[0].startswith("-") else "; config keys go behind --opts"
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    if args.attention and not (args.input and args.output):
        parser.error("--attention is for images, and writes beside the drawn ones: name both --input and --output")
    if args.attention and args.tiles:
        parser.error("--attention shows where the model looks in a whole image: leave out --tiles")
    if args.points and not args.attention:
        parser.error("--points are for --attention, which is missing")
    if not args.model and not args.config_file:
        parser.error("name a model: --model detr_R_50, or a checkpoint, or --config-file with --opts MODEL.WEIGHTS")
    return args


def parse_point(text: str) -> Point:
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no point: give X,Y in pixels, as 320,200") from None
    return x, y


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 1 where an input was skipped, 130 after Ctrl-C."""
    args = parse_args(argv)
    if args.tiles:
        import detr.inference.tiles  # noqa: F401  an extra, missed before the model is loaded
    paths = find_images(args.input) if args.input else []
    targets = choose_targets(paths, Path(args.output), args.attention) if args.input and args.output else []
    with contextlib.ExitStack() as stack:
        video = None
        if args.video_input:
            from detr.inference.video import VideoReader  # an extra

            video = stack.enter_context(VideoReader(args.video_input))
        sink = open_sink(args, targets, video, stack)
        predictor = Predictor(
            args.model,
            config_file=args.config_file,
            opts=args.opts,
            classes=args.classes and [name.strip() for name in args.classes.split(",")],
            threshold=args.confidence_threshold,
            batch_size=args.batch,
        )
        results = stack.enter_context(ResultsFile(args.json)) if args.json else None
        skipped: list[str] = []

        def skip(path: str, error: InputError) -> None:
            skipped.append(path)
            progress.update()
            hint = "; --video-input takes videos" if Path(path).suffix.lower() in VIDEO_SUFFIXES else ""
            tqdm.write(f"skipped: {error}{hint}", file=sys.stderr)

        unit = "image" if args.input else "frame"
        total = len(paths) if args.input else video and video.num_frames
        progress = stack.enter_context(tqdm(total=total, unit=unit, file=sys.stderr, disable=None))
        if args.input:
            items = read_images(paths, skip)
        elif video:
            items = read_frames(video, args.video_input)
        else:
            from detr.inference.video import camera_frames

            items = read_frames(camera_frames(), "camera 0")
        count, found, kind, start, status = 0, 0, "objects", time.monotonic(), 0
        try:
            if args.attention:
                detected = detect_with_attention(predictor, items, args.points)
            else:
                detected = detect(predictor, items, args.tiles)
            for item, prediction in detected:
                if sink:
                    sink(item, draw_prediction(item.image, prediction, predictor.class_names))
                if args.attention:
                    sheet = attention_sheet(item.image, prediction["attention"], predictor.class_names)
                    save_picture(sheet, sheet_path(targets[item.number - 1]))
                if results:
                    names = predictor.class_names, predictor.category_ids
                    results.write(coco_results(prediction["instances"], item.number, item.file_name, *names))
                count, kind = count + 1, "segments" if "panoptic_seg" in prediction else kind
                found += len(prediction["panoptic_seg"][1] if kind == "segments" else prediction["instances"])
                progress.update()
        except KeyboardInterrupt:
            status = INTERRUPTED
    seconds = (time.monotonic() - start) / max(count, 1)
    line = f"{count} {unit}{'s' * (count != 1)}, {found} {kind}, {seconds:.2f} s each"
    line += "".join(f" -> {place}" for place in (args.output, args.json) if place)
    line += f"; {len(skipped)} skipped" if skipped else ""
    print(line + ("; interrupted" if status else ""))
    return status or int(bool(skipped))


def open_sink(args: argparse.Namespace, targets: list[Path], video: Any, stack: contextlib.ExitStack) -> Sink | None:
    """Where drawn pictures go; None where nobody wants them."""
    if targets:
        return lambda item, picture: save_picture(picture, targets[item.number - 1])
    if args.output:
        from detr.inference.video import VideoWriter  # an extra

        name = Path(args.video_input).stem if args.video_input else "camera"
        path = choose_video(Path(args.output), name, args.video_input)
        writer = stack.enter_context(VideoWriter(path, video.rate) if video else VideoWriter(path))
        return lambda item, picture: writer.write(picture, item.seconds)
    return None if args.json else open_window(waits=bool(args.input))


def open_window(waits: bool) -> Sink:
    """Shows pictures in a window until Esc; ``waits``: for a key after each. Raises InputError without a display."""
    import cv2

    missing = "there is no display to show pictures on: name a folder or file for them with --output"
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise InputError(missing)
    try:
        cv2.namedWindow("DETR", cv2.WINDOW_NORMAL)
    except cv2.error as error:  # OpenCV's headless package, as Detectron2's list has it, has no windows
        raise InputError(missing) from error

    def show(item: Item, picture: np.ndarray) -> None:
        cv2.imshow("DETR", np.ascontiguousarray(picture[:, :, ::-1]))
        if cv2.waitKey(0 if waits else 1) == 27:
            raise KeyboardInterrupt

    return show


if __name__ == "__main__":
    with exit_with_one_line():
        sys.exit(main())
