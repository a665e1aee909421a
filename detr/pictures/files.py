"""The files of drawn pictures and videos: whole or not there, none over another, none over an input."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from detr.errors import InputError

WRITTEN_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets ``write`` write a picture to a path, and moves it into its place once it is whole.

    Raises InputError where it cannot be written, or not in a format of that name.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder, path.name)
            write(new)
            os.replace(new, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"the picture {path} cannot be written ({reason}): name another --output") from error


def choose_video(output: Path, name: str, source: str | None) -> Path:
    """The video file to write. Raises InputError where it is the input."""
    path = output if output.suffix and not output.is_dir() else output / f"{name}.mp4"
    if source and os.path.realpath(path) == os.path.realpath(source):
        raise InputError(f"--output would write over {source}: name another folder or file")
    return path


def sheet_path(target: Path) -> Path:
    """Where the sheet of --attention goes, beside a drawn image."""
    return target.with_name(f"{target.stem}_attention.png")


def choose_targets(paths: list[str], output: Path, attention: bool = False) -> list[Path]:
    """The file to write for each image: no two alike. Raises InputError where one is an input.

    attention: whether a sheet is written beside each
    """
    written: set[Path] = set()

    def files(target: Path) -> set[Path]:
        return {target, sheet_path(target)} if attention else {target}

    if output.suffix.lower() in WRITTEN_SUFFIXES and not output.is_dir():
        if len(paths) > 1:
            raise InputError(f"--output {output} is one file, but --input names {len(paths)} images: name a folder")
        targets, written = [output], files(output)
    else:
        if output.exists() and not output.is_dir():
            raise InputError(f"--output {output} is a file: name a folder")
        targets = []
        for path in paths:
            name = PurePosixPath(urlparse(path).path) if "://" in path else Path(path)
            suffix = name.suffix if name.suffix.lower() in WRITTEN_SUFFIXES else ".png"
            target, number = output / (name.stem + suffix), 2
            while files(target) & written:
                target, number = output / f"{name.stem}_{number}{suffix}", number + 1
            targets.append(target)
            written |= files(target)
    overwritten = {os.path.realpath(path) for path in paths} & {os.path.realpath(file) for file in written}
    if overwritten:
        raise InputError(f"--output would write over {min(overwritten)}: name another folder")
    return targets
