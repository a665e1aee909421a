"""Verifies a conversion: source and output run on the same images, and their outputs are compared.

Models of other programs run with those programs' own code, where it is installed. All run in double precision, so that
differences come from the function and not from the order of its sums.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchvision
from detectron2.config import CfgNode, get_cfg
from detectron2.structures import ImageList
from torch import Tensor, nn

from detr.checkpoint import formats
from detr.checkpoint.architecture import Architecture, CheckpointInfo, architecture, resnet_depth
from detr.checkpoint.files import WEIGHTS_IN_FOLDER
from detr.checkpoint.rows import COCO_ROWS, coco_rows
from detr.checkpoint.source import Source, read
from detr.config import add_detr_config
from detr.convert.reference import build, find_original, load_original
from detr.errors import InputError
from detr.modeling.backbone import build_detr_backbone
from detr.modeling.meta_arch import Detr

SIZES = ((160, 224), (192, 128))  # (height, width) in pixels: in one batch, both are padded

AGREEMENT = 1e-4  # more is another function


@dataclass
class ModelOutputs:
    """What a model predicts for the test images.

    logits: (N, Q, rows), as the program numbers the classes
    boxes: (N, Q, 4) cxcywh in [0, 1]
    masks: (N, Q, h, w) logits, or None
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None = None


def verify(source: Source, output: str, info: CheckpointInfo) -> str:
    """A line for the report: the largest differences, or why there is nothing to compare.

    source, info: of a conversion; output: the weights file that it wrote
    """
    written = read(output)
    if source.format is not None and source.format.backbone_only:
        return _verify_backbone(source, written)
    sides = (source, written)
    missing = [name for name in map(_missing_package, sides) if name]
    if missing:
        return f"no: {missing[0]}"
    try:
        first, second = (run(side, info) for side in sides)
    except RuntimeError as error:  # of torch, for weights that are not a model's
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{output} is written, but one of source and output does not run: {reason}") from error
    text, largest = compare(first, second)
    if not largest <= AGREEMENT:
        raise InputError(
            f"{output} is written, but does not do what {source.path} does: {text}; does the source need something "
            "that its tensors do not show, such as another activation?"
        )
    return f"on {len(SIZES)} images, in double precision: {text}"


def compare(first: ModelOutputs, second: ModelOutputs) -> tuple[str, float]:
    """The largest differences of each kind of output, in words, and the largest of all."""
    logits, others = first.logits, second.logits
    if logits.shape != others.shape:  # one of the two counts COCO's ids, and the other does not
        logits, others = _contiguous(logits), _contiguous(others)
    differences = {
        "logits": (logits - others).abs().max().item(),
        "boxes": (first.boxes - second.boxes).abs().max().item(),
    }
    if first.masks is not None and second.masks is not None:
        differences["mask logits"] = (first.masks - second.masks).abs().max().item()
    text = ", ".join(f"{name} differ by at most {value:.1e}" for name, value in differences.items())
    return text, max(differences.values())


def _contiguous(logits: Tensor) -> Tensor:
    """(N, Q, 92 or 251) -> (N, Q, 81 or 134); others stay as they are."""
    rows = logits.shape[-1]
    return logits[..., coco_rows(COCO_ROWS[rows])] if rows in COCO_ROWS else logits


@torch.no_grad()
def run(side: Source, info: CheckpointInfo) -> ModelOutputs:
    """The model of a checkpoint on the test images, by its own program's code."""
    state = side.to_detectron2().state
    sizes = architecture(state, info)
    with quiet():
        if side.format in formats.TRANSFORMERS:
            found = _run_transformers(side)
        elif side.format in (formats.ORIGINAL, formats.ORIGINAL_MASKS):
            found = _run_original(side, sizes)
        else:
            found = _run_ours(state, sizes)
    return found


def test_images() -> list[Tensor]:
    """Normalized images (3, H, W) of the sizes above, always the same."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in SIZES]


def _missing_package(side: Source) -> str | None:
    """Why the side cannot be run; None where it can."""
    timm = side.format in (formats.TRANSFORMERS_TIMM, formats.TRANSFORMERS_TIMM_MASKS)
    if side.format in formats.TRANSFORMERS and importlib.util.find_spec("transformers") is None:
        return "transformers is not installed, which one of the two runs with; pip install transformers"
    if timm and importlib.util.find_spec("timm") is None:
        return "timm is not installed, which transformers takes the backbone from; pip install timm"
    if side.format in formats.TRANSFORMERS:
        folder, name = os.path.split(os.path.abspath(side.path))
        if name not in WEIGHTS_IN_FOLDER or not os.path.isfile(os.path.join(folder, "config.json")):
            return f"transformers needs a folder with config.json and {WEIGHTS_IN_FOLDER[0]}, and {folder} is not one"
    if side.format in (formats.ORIGINAL, formats.ORIGINAL_MASKS) and find_original() is None:
        return "the authors' code is not installed; in a checkout `make oracle`, or put their repository on PYTHONPATH"
    if side.format in (formats.WRAPPER, formats.WRAPPER_MASKS):
        return "the code of the authors' wrapper cannot be run beside ours"
    return None


def config_of(sizes: Architecture) -> CfgNode:
    """The config of a ``Detr`` on the CPU."""
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "Detr"
    cfg.MODEL.MASK_ON = sizes.masks
    cfg.MODEL.RESNETS.DEPTH = sizes.depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.RES5_DILATION = 2 if sizes.dilation else 1
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = sizes.channels[0]
    keys = cfg.MODEL.DETR
    keys.NUM_CLASSES, keys.NUM_OBJECT_QUERIES = sizes.num_classes, sizes.num_queries
    keys.HIDDEN_DIM, keys.NHEADS, keys.DIM_FEEDFORWARD = sizes.d, sizes.heads, sizes.feedforward
    keys.ENC_LAYERS, keys.DEC_LAYERS = sizes.encoder_layers, sizes.decoder_layers
    keys.PRE_NORM = sizes.pre_norm
    keys.POSITION_EMBEDDING = "learned" if sizes.learned_positions else "sine"
    return cfg


def _run_ours(state: dict[str, Tensor], sizes: Architecture) -> ModelOutputs:
    model = Detr(config_of(sizes))
    model.load_state_dict(state)
    outputs = model.eval().double().forward_network(ImageList.from_tensors(test_images()), return_intermediate=False)
    masks = None
    if model.mask_head is not None and outputs.mask_features is not None:
        n, q = outputs.logits.shape[1:3]
        image_of = torch.arange(n).repeat_interleave(q)
        masks = model.mask_head(outputs.mask_features, image_of, torch.arange(q).repeat(n)).unflatten(0, (n, q))
    return ModelOutputs(outputs.logits[-1], outputs.boxes[-1], masks)


def _run_original(side: Source, sizes: Architecture) -> ModelOutputs:
    root = find_original()
    assert root is not None  # _missing_package has looked
    original = load_original(root)
    rows = next(value.shape[0] for key, value in side.state.items() if key.endswith("class_embed.bias"))
    model, _, _ = build(
        original,
        depth=sizes.depth,
        dilation=sizes.dilation,
        num_classes=rows - 1,
        num_queries=sizes.num_queries,
        hidden_dim=sizes.d,
        nheads=sizes.heads,
        dim_feedforward=sizes.feedforward,
        enc_layers=sizes.encoder_layers,
        dec_layers=sizes.decoder_layers,
        pre_norm=sizes.pre_norm,
        position_embedding="learned" if sizes.learned_positions else "sine",
        masks=sizes.masks,
    )
    model.load_state_dict(side.state)
    outputs = model.double()(original.nested_tensor_from_tensor_list(test_images()))
    return ModelOutputs(outputs["pred_logits"], outputs["pred_boxes"], outputs.get("pred_masks"))


def _run_transformers(side: Source) -> ModelOutputs:
    import transformers  # not needed to convert

    masks = side.format in (formats.TRANSFORMERS_TIMM_MASKS, formats.TRANSFORMERS_RESNET_MASKS)
    kind = transformers.DetrForSegmentation if masks else transformers.DetrForObjectDetection
    folder = os.path.dirname(os.path.abspath(side.path))
    model: nn.Module = kind.from_pretrained(folder, local_files_only=True).eval().double()
    images = ImageList.from_tensors(test_images())
    pixel_mask = torch.zeros(len(images), *images.tensor.shape[-2:], dtype=torch.long)
    for i, (height, width) in enumerate(images.image_sizes):
        pixel_mask[i, :height, :width] = 1  # 1 = image, 0 = padding
    outputs = model(pixel_values=images.tensor, pixel_mask=pixel_mask)
    return ModelOutputs(outputs.logits, outputs.pred_boxes, outputs.pred_masks if masks else None)


@torch.no_grad()
def _verify_backbone(source: Source, written: Source) -> str:
    if source.format is not formats.TORCHVISION:
        return "no: there is no other program to run this backbone with"
    state = source.to_detectron2().state
    depth = resnet_depth(state)
    if state["backbone.res2.0.conv1.weight"].shape[0] != 64 or state["backbone.res2.0.conv2.weight"].shape[1] != 64:
        return "no: this is a wide ResNet or a ResNeXt, which is not built here"
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    theirs.load_state_dict(source.state, strict=False)  # without its classifier, for some
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
    ours = build_detr_backbone(cfg)
    ours.load_state_dict({key.removeprefix("backbone."): value for key, value in written.state.items()})
    image = test_images()[0][None]
    expected = nn.Sequential(*list(theirs.eval().double().children())[:-2])(image)
    difference = (ours.eval().double()(image)["res5"] - expected).abs().max() / expected.abs().max()
    return f"features differ from torchvision's by at most {difference:.1e} of the largest"


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the other programs while they load."""
    if importlib.util.find_spec("transformers"):
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
