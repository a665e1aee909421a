"""The table of classes, counted by hand."""

from detectron2.structures import BoxMode

from detr.data.class_table import LONGEST, class_table


def _image(*objects):
    """objects: (class, width, height)."""
    annotations = [
        {"bbox": [0, 0, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label, "iscrowd": 0}
        for label, w, h in objects
    ]
    return {"file_name": "a.jpg", "image_id": 0, "height": 100, "width": 100, "annotations": annotations}


def _cells(table):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()[3:]]


def test_objects_images_and_sizes():
    train = [_image((0, 10, 40), (0, 10, 10), (1, 6, 6)), _image((0, 30, 30)), _image()]
    val = [_image((1, 5, 5), (1, 0, 5))]  # the second has no width: it is dropped
    rows = [
        [cell.strip() for cell in row]
        for row in _cells(class_table({"training": train, "validation": val}, ["cat", "big dog", "owl"]))
    ]
    assert rows == [
        ["cat", "3", "2", "0", "0", "20"],
        ["big dog", "1", "1", "1", "1", "6"],
        ["owl", "0", "0", "0", "0"],
    ]


def test_of_many_classes_the_rarest_share_a_row():
    names = [f"c{i}" for i in range(LONGEST + 5)]
    train = [_image(*((i, 5, 5) for i in range(LONGEST + 5)), (7, 5, 5))]
    lines = class_table({"training": train}, names).splitlines()
    assert len(lines) == LONGEST + 3
    assert lines[3].split()[:2] == ["c7", "2"]
    assert lines[-1].split() == ["6", "more", "classes", "6"]
