"""From a checkpoint in any format to a file in another one, with a report."""

import os
from dataclasses import dataclass, replace

import torch
from torch import nn

from detr.checkpoint.architecture import CheckpointInfo, architecture, missing_keys
from detr.checkpoint.class_rows import coco_names, listed
from detr.checkpoint.files import WEIGHTS_IN_FOLDER, save_file, sha256
from detr.checkpoint.formats import from_detectron2, target_format
from detr.checkpoint.hub import RELEASED, ZOO, local_path
from detr.checkpoint.options import split_options
from detr.checkpoint.rows import CLASS_KEYS, QUERY_KEY, State, fit, num_rows, to_category_ids
from detr.checkpoint.source import NOTE, Source, as_note, read
from detr.convert.transformers_folder import FILES, check_transformers, save_transformers
from detr.errors import InputError

TARGETS = ("detectron2", "original", "transformers")
BACKBONES = ("resnet", "timm")  # transformers' own ResNet, or timm's


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    source: str  # file, folder, URL, name of a released model, torchvision://NAME
    output: str  # a file; for transformers a folder
    to: str = "detectron2"  # one of TARGETS
    num_classes: int | None = None  # another number than the source's, without no-object
    num_queries: int | None = None
    backbone: str | None = None  # for transformers, one of BACKBONES; None: its own where that can run the model
    dc5: bool = False  # the weights are of a DC5 model; the tensors do not show it
    heads: int | None = None  # of attention; the tensors do not show it either
    own_classes: bool = False  # 80, 91, 133 or 250 classes are not COCO's
    weights: str | None = None  # "ema", "model" or a name, where the source holds several
    overwrite: bool = False
    unsafe: bool = False  # unpickle without restriction


@dataclass(frozen=True)
class Report:
    """What was done: for the user a table, and for a check of the output what it takes."""

    rows: list[tuple[str, str]]
    source: Source
    info: CheckpointInfo
    output: str  # the weights file; for transformers in its folder


def convert(request: Request) -> Report:
    """Reads, maps and writes. Raises InputError for whatever is wrong with the source, before anything is written."""
    suffix = os.path.splitext(request.output)[1]
    if request.to != "transformers" and suffix in (".pkl", ".pyth", ".safetensors", ".json"):
        raise InputError(f"--output_model {request.output} is written by torch.save: let its name end in .pth")
    if os.path.lexists(request.output) and not request.overwrite:
        raise InputError(f"{request.output} exists: name another --output_model, or add --overwrite")
    path, options = split_options(request.source)
    source = read(_found(path), unsafe=request.unsafe, weights=request.weights or options.weights)
    _check_output(source.path, request.output, is_folder=request.to == "transformers")
    # Between programs that both count COCO's ids, class rows stay as they are.
    keep_ids = request.to != "detectron2"
    conversion = source.to_detectron2(own_classes=request.own_classes, keep_ids=keep_ids)
    info = CheckpointInfo(dilation=True if request.dc5 else None, heads=request.heads).or_else(source.info)
    if conversion.source.backbone_only and (request.to != "detectron2" or request.num_classes or request.num_queries):
        raise InputError(
            f"{request.source} is a backbone alone: it goes --to detectron2, without --num-classes and --num-queries"
        )
    lost = [] if conversion.source.backbone_only else missing_keys(conversion.state)
    if lost and (request.to != "detectron2" or request.num_classes or request.num_queries):
        raise InputError(f"{source.path} lacks {len(lost)} tensors that a whole DETR has, the first: {lost[0]}")
    coco = conversion.coco
    expanded = num_rows(to_category_ids(conversion.state)) if coco and request.to != "detectron2" else 0
    if request.num_classes is not None and request.num_classes + 1 != expanded:
        state, resized = _resized(conversion.state, request.num_classes, request.num_queries)
        coco = coco and not resized
    else:
        state, resized = _resized(conversion.state, None, request.num_queries)
    info = _info_of_output(request, source, info, num_rows(state) - 1)
    lines = [*source.lines, *conversion.lines, *resized]
    if lost:
        lines.append(f"INCOMPLETE: {len(lost)} tensors that a whole DETR has are missing, the first: {lost[0]}")
    if unused := sorted(source.rest.keys() - {NOTE}):
        lines.append(f"left out: {', '.join(unused)} (of a training, which the output cannot go on with)")

    timm = request.backbone == "timm" or (request.backbone is None and bool(info.dilation))
    target = target_format(state, request.to, timm=timm)
    if request.to == "detectron2":
        written, output = state, request.output
        save_file({"model": state, **as_note(info)}, output)
    else:
        back = from_detectron2(state, target, coco=coco)
        written, output = back.state, request.output
        lines += back.lines
        if request.to == "original":
            save_file({"model": written, **as_note(info)}, output)
        else:
            sizes = architecture(state, info)
            check_transformers(sizes, timm=timm)
            save_transformers(written, sizes, timm=timm, path=output, classes=info.classes)
            output = os.path.join(output, WEIGHTS_IN_FOLDER[0])
    rows = [
        ("source", source.path),
        ("format", conversion.source.title),
        ("keys mapped", f"{len(source.state)} -> {len(written)}"),
        *(("note", line) for line in lines),
        *(() if conversion.source.backbone_only else _format_info(info)),
        ("output", f"{output} ({target.title})"),
        ("size", f"{os.path.getsize(output) / 2**20:.1f} MiB"),
        ("SHA-256", sha256(output)),
    ]
    return Report(rows, source, info, output)


def _info_of_output(request: Request, source: Source, info: CheckpointInfo, num_classes: int) -> CheckpointInfo:
    """``info`` with the names of the classes that are written, and the config where it is still theirs."""
    names = source.class_names()
    if (request.own_classes and info.classes is None) or names is None or len(names) != num_classes:
        # That they are not COCO's must be known even where their names are not.
        own = request.own_classes or info.classes not in (None, coco_names(len(info.classes or ())))
        names = tuple(f"class {i}" for i in range(num_classes)) if own else None
    changed = request.num_classes or request.num_queries or request.dc5 or request.heads
    return replace(info, classes=names, config=None if changed else info.config)


def _found(source: str) -> str:
    """The file or folder here that the source is or stands for. Raises InputError where there is none."""
    if os.path.exists(source):
        return source
    return local_path(ZOO + source if source in RELEASED else source)


def _check_output(source: str, output: str, *, is_folder: bool) -> None:
    if os.path.exists(output):
        inside = os.path.realpath(source) + os.sep
        if os.path.samefile(source, output) or inside.startswith(os.path.realpath(output) + os.sep):
            raise InputError(f"--output_model {output} is the source, or holds it: name another place")
        if not (os.path.isdir(output) if is_folder else os.path.isfile(output)):
            kind = "a folder" if is_folder else "a file"
            raise InputError(f"--output_model {output} is there and is not {kind}, which is what is to be written")
        others = sorted(set(os.listdir(output)) - set(FILES)) if is_folder else []
        if others:
            raise InputError(f"--output_model {output} holds {others[0]}, which would be lost: name another folder")


def _resized(state: State, num_classes: int | None, num_queries: int | None) -> tuple[State, list[str]]:
    """Rows that are new have the values that a new model would have, always the same ones."""
    if num_classes is None and num_queries is None:
        return state, []
    rows = num_rows(state) if num_classes is None else num_classes + 1
    queries, d = state[QUERY_KEY].shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = nn.Linear(d, rows)
        embedding = nn.Embedding(queries if num_queries is None else num_queries, d)
    values = (head.weight.detach(), head.bias.detach())
    return fit(state, {**dict(zip(CLASS_KEYS, values, strict=True)), QUERY_KEY: embedding.weight.detach()})


def _format_info(info: CheckpointInfo) -> list[tuple[str, str]]:
    dilation = {None: "unknown, assumed no (--dc5)", True: "yes", False: "no"}[info.dilation]
    heads = "unknown, assumed 8 (--heads)" if info.heads is None else str(info.heads)
    return [("DC5", dilation), ("heads", heads), *([("classes", listed(info.classes))] if info.classes else [])]
