"""Data sets in the formats that people have: COCO's JSON, YOLO, Pascal VOC's XML, and Roboflow's exports of them."""

from detr.data.formats.coco_writing import write_coco
from detr.data.formats.folder import DataFolder, Split
from detr.data.formats.recognition import recognize
from detr.data.formats.registration import register_any
from detr.data.formats.splitting import split_off

__all__ = ["DataFolder", "Split", "recognize", "register_any", "split_off", "write_coco"]
