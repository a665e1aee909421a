"""Pascal VOC XML: VOCdevkit's folders, images and XML in one or two folders, and Roboflow's train/valid/test."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from detectron2.structures import BoxMode

from detr.data.annotations import as_whole_number
from detr.data.formats.folder import (
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    SPLIT_WORDS,
    DataFolder,
    Split,
    entries,
    image_size,
    is_of_roboflow,
    optional,
    read_text,
    subfolder,
)
from detr.errors import InputError

CENTER = 0.5  # VOC numbers pixels from 1, and a pixel's index is its center

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """Where a split lies. listing: a file of the names of its images, or None where it has all of the folder."""

    annotations: Path
    images: Path
    listing: Path | None = None

    @property
    def source(self) -> str:
        return str(self.listing or self.annotations)


def find_layouts(folder: Path) -> dict[str, Layout]:
    """Split -> where it lies, in ``train``, ``val``, ``test``; empty where there is no Pascal VOC data.

    Raises InputError for a VOCdevkit of several years.
    """
    years = [path for path in sorted(folder.iterdir()) if path.name.startswith("VOC2") and _layout(path)]
    if len(years) > 1:
        raise InputError(f"{folder} has {' and '.join(path.name for path in years)}: give the path of one")
    folder = years[0] if years else folder
    lists = subfolder(folder, "ImageSets")
    lists = (lists and subfolder(lists, "Main")) or lists
    whole = _layout(folder)
    if whole and lists:
        named = {path.stem: path for path in entries(lists, {".txt"}) if path.stem in SPLIT_WORDS}
        found: dict[str, Layout] = {}
        for word in sorted(named):  # train comes before trainval
            found.setdefault(SPLIT_WORDS[word], Layout(whole.annotations, whole.images, named[word]))
        if found:
            return {split: found[split] for split in ("train", "val", "test") if split in found}
    if whole:
        return {"train": whole}
    parts = {name: place for name in SPLIT_FOLDERS if (place := subfolder(folder, name))}
    layouts = {name: layout for name, place in parts.items() if (layout := _layout(place))}
    return {SPLIT_WORDS[name]: layout for name, layout in layouts.items()}


def _layout(folder: Path) -> Layout | None:
    if not folder.is_dir():
        return None
    annotations = subfolder(folder, "Annotations", "xml") or folder
    if not entries(annotations, {".xml"}):
        return None
    return Layout(annotations, subfolder(folder, "JPEGImages", "images") or folder)


def voc_folder(path: Path, layouts: dict[str, Layout]) -> DataFolder:
    """path: that was recognized; layouts: of ``find_layouts``."""
    folder = DataFolder(
        str(path),
        "Pascal VOC (Roboflow)" if is_of_roboflow(path) else "Pascal VOC",
        {},
        partial(_class_names, list(layouts.values())),
    )
    for split, layout in layouts.items():
        folder.splits[split] = Split(layout.source, partial(_read_split, layout, folder))
    return folder


def _class_names(layouts: Sequence[Layout]) -> list[str]:
    """The names that occur in the objects of all splits, in alphabetical order: no file of VOC's lists them."""
    files = {xml for layout in layouts for xml, _ in _pairs(layout) if xml is not None}
    names = {_text(obj, "name", file) for file in sorted(files) for obj in _root(file).findall("object")}
    if not names:
        raise InputError(f"no XML of {layouts[0].source} has an object: check that these are the right files")
    return sorted(names)


def _pairs(layout: Layout) -> list[tuple[Path | None, Path]]:
    """The XML, or None, and the image of every image of a split. Raises InputError for a listed one that is missing."""
    xmls = {path.stem: path for path in entries(layout.annotations, {".xml"})}
    images: dict[str, Path] = {}
    for path in entries(layout.images, IMAGE_SUFFIXES):
        if path.stem in images:
            raise InputError(f"{images[path.stem]} and {path.name} would have the same XML: rename one of them")
        images[path.stem] = path
    if layout.listing is None:
        return [(xmls.get(stem), image) for stem, image in images.items()]
    pairs = []
    for number, line in enumerate(read_text(layout.listing).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if words[0] not in images:
            raise InputError(
                f"{layout.listing}, line {number}: there is no image {words[0]} in {layout.images}: restore it, or "
                "take the line out"
            )
        pairs.append((xmls.get(words[0]), images[words[0]]))
    return pairs


def _read_split(layout: Layout, folder: DataFolder) -> list[dict[str, Any]]:
    pairs = _pairs(layout)
    without = [image for xml, image in pairs if xml is None]
    if len(without) == len(pairs):
        raise InputError(
            f"{layout.source} has {len(pairs)} images, and none of them has an XML in {layout.annotations}: the XML of "
            f"{without[0] if without else 'an image'} must have its name"
        )
    if without:
        logger.warning(
            "%s: %d of %d images have no XML and count as images without objects; the first is %s",
            layout.source, len(without), len(pairs), without[0],
        )  # fmt: skip
    if layout.listing is None:
        _warn_of_orphans(entries(layout.annotations, {".xml"}), (xml for xml, _ in pairs if xml is not None))
    numbers = {name: index for index, name in enumerate(folder.class_names)}
    return [_read_image(index, xml, str(image), numbers) for index, (xml, image) in enumerate(pairs)]


def _warn_of_orphans(files: Sequence[Path], used: Iterable[Path]) -> None:
    alone = sorted(set(files) - set(used))
    if alone:
        logger.warning("%d XML files are left out, because there is no image of their name; the first is %s",
                       len(alone), alone[0])  # fmt: skip


def _read_image(index: int, xml: Path | None, image: str, numbers: dict[str, int]) -> dict[str, Any]:
    root = None if xml is None else _root(xml)
    sides = [None if root is None else as_whole_number(root.findtext(f"size/{key}")) for key in ("height", "width")]
    # Some tools write 0, and many nothing; a wrong size is an error of the checks, since boxes would be misplaced.
    height, width = sides if all(sides) else image_size(image)
    annotations = [] if root is None else _annotations(root, xml, numbers)
    return {"file_name": image, "height": height, "width": width, "image_id": index, "annotations": annotations}


def _annotations(root: Element, file: Path | None, numbers: dict[str, int]) -> list[dict[str, Any]]:
    reader = optional("supervision.dataset.formats.pascal_voc")  # imported late: it takes a second
    annotations = []
    for obj in root.findall("object"):
        try:
            polygons = [reader.parse_polygon_points(element) - CENTER for element in obj.findall("polygon")]
            for element in obj.findall("polygon"):
                obj.remove(element)  # supervision would make pixels of it, many megabytes an image
            alone = Element("annotation")
            alone.append(obj)
            # As Detectron2's pascal_voc: xmin = 1 and xmax = W fill the image, which are 0 and W here.
            found, _ = reader.detections_from_xml_obj(alone, [], (1, 1))
        except (ValueError, IndexError) as error:
            reason = str(error).rstrip(".")
            raise InputError(f"{file} has the object {obj.findtext('name')!r}: {reason}: correct the file") from error
        annotation = {
            "category_id": numbers[_text(obj, "name", file)],
            "bbox": found.xyxy[0].tolist(),
            "bbox_mode": BoxMode.XYXY_ABS,
            # VOC's evaluation passes over difficult objects, as COCO's over crowds.
            "iscrowd": int((obj.findtext("difficult") or "").strip() in ("1", "true", "True")),
        }
        if polygons:
            annotation["segmentation"] = [polygon.ravel().tolist() for polygon in polygons]
        annotations.append(annotation)
    return annotations


def _root(file: Path) -> Element:
    reader = optional("defusedxml.ElementTree")  # comes with supervision
    try:
        root = reader.parse(file).getroot()
    except (ParseError, OSError, ValueError) as error:  # of the last kind are defusedxml's
        raise InputError(f"{file} is no XML ({type(error).__name__}: {error}): restore or delete it") from error
    if root.tag != "annotation":
        raise InputError(
            f"{file} has the root <{root.tag}>: Pascal VOC's files have <annotation>; delete it, or convert it"
        )
    return root


def _text(obj: Element, key: str, file: Path | None) -> str:
    text = (obj.findtext(key) or "").strip()
    if not text:
        raise InputError(f"{file} has an object without a {key}: give it one")
    return text
