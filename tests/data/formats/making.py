"""Writes Detectron2's dicts as YOLO's and Pascal VOC's files, in a few lines of its own that no reader shares."""

import shutil
from pathlib import Path

from detectron2.structures import BoxMode


def corners(obj):
    """x1, y1, x2, y2 in pixels."""
    x, y, a, b = obj["bbox"]
    return (x, y, a, b) if obj["bbox_mode"] == BoxMode.XYXY_ABS else (x, y, x + a, y + b)


def write_yolo(folder: Path, splits, names):
    """splits: "train" -> dicts. Returns the path of data.yaml; objects of one polygon are written as it."""
    for split, dicts in splits.items():
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for x in dicts:
            shutil.copy(x["file_name"], images)
            lines = []
            for obj in x["annotations"]:
                x1, y1, x2, y2 = corners(obj)
                box = ((x1 + x2) / 2 / x["width"], (y1 + y2) / 2 / x["height"])
                box += ((x2 - x1) / x["width"], (y2 - y1) / x["height"])
                polygons = obj.get("segmentation", [])
                if isinstance(polygons, list) and len(polygons) == 1:
                    sides = (x["width"], x["height"])
                    box = [value / sides[i % 2] for i, value in enumerate(polygons[0])]
                lines.append(" ".join([str(obj["category_id"]), *(f"{value:.8f}" for value in box)]))
            (labels / f"{Path(x['file_name']).stem}.txt").write_text("\n".join(lines))
    path = folder / "data.yaml"
    places = "".join(f"{split}: images/{split}\n" for split in splits)
    path.write_text(f"path: .\n{places}names:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(names)))
    return path


def xml_object(name, box, extra=""):
    """box: xmin, ymin, xmax, ymax as the file has them."""
    tags = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def xml_file(objects, width=64, height=48):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def write_voc(folder: Path, splits, names):
    """VOCdevkit's folders. splits: "train" -> dicts."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for split, dicts in splits.items():
        for x in dicts:
            shutil.copy(x["file_name"], folder / "JPEGImages")
            objects = []
            for obj in x["annotations"]:
                x1, y1, x2, y2 = corners(obj)
                extra = f"<difficult>{obj.get('iscrowd', 0)}</difficult>"
                objects.append(xml_object(names[obj["category_id"]], (x1 + 1, y1 + 1, x2, y2), extra))
            text = xml_file(objects, x["width"], x["height"])
            (folder / "Annotations" / f"{Path(x['file_name']).stem}.xml").write_text(text)
        stems = [Path(x["file_name"]).stem for x in dicts]
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))
    return folder
