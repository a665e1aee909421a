"""A trained ``Detr`` as ONNX, OpenVINO, TorchScript or torch.export, and back as a Detectron2 model.

report = export(cfg, "detr_onnx", "onnx")
model = load("detr_onnx")
"""

import importlib.metadata
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from detr.checkpoint import DetrCheckpointer
from detr.checkpoint.files import save_folder
from detr.config import EXPORT_DESCRIPTION, changed_from_defaults
from detr.config_checks import check_names
from detr.engine.defaults import check_weights, check_whole, load_config
from detr.errors import InputError
from detr.export.checking import check, format_sizes
from detr.export.metadata import as_texts, make_metadata
from detr.export.model import NETWORK, Description, ExportedDetr
from detr.export.networks import parts
from detr.export.reduction import FLOAT32, Reduction
from detr.export.runtimes import FORMATS
from detr.export.script import write_script
from detr.export.writing import PACKAGES, check_packages, write_graph
from detr.modeling.card import ModelCard, without_training
from detr.modeling.meta_arch import Detr

__all__ = ["FORMATS", "Reduction", "Report", "export", "get_config", "load"]

CONFIG = "config.yaml"


@dataclass
class Report:
    """What was done: (name, value) rows, in the order to print them."""

    rows: list[tuple[str, str]]


def load(folder: str, device: torch.device | str | None = None) -> ExportedDetr:
    """The model in an exported folder, in evaluation mode. It needs nothing else, wherever the folder is.

    device: by default the config's MODEL.DEVICE, and the CPU where there is no GPU. Images are prepared and results
        come out there; see ``open_graph`` on where the graph runs

    Raises InputError for a folder that is no exported model or not whole, and for a missing package.
    """
    cfg = get_config(folder)
    cfg.MODEL.DEVICE = str(device or cfg.MODEL.DEVICE)
    model: ExportedDetr = build_model(cfg)
    return model.eval()


def get_config(folder: str) -> CfgNode:
    """The config of an exported folder, not frozen, for Detectron2's ``DefaultPredictor`` and the like.

    MODEL.DEVICE is the CPU where there is no GPU.
    """
    Description.read(folder)
    cfg = load_config(os.path.join(folder, CONFIG), [])
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def export(cfg: CfgNode, output: str, format: str, overwrite: bool = False, reduction: Reduction = FLOAT32) -> Report:
    """Writes the model of ``cfg`` with its MODEL.WEIGHTS into the folder ``output``.

    The files are run before they are put in their place: where they do not do what the model does, nothing is left.
    The graphs are in float32, or as ``reduction`` says, whatever the value of MODEL.DETR.INFERENCE_DTYPE. Empty
    weights are exported as they are, random. MODEL.DEVICE counts for TorchScript, which runs where it was traced.

    format: one of ``FORMATS``
    overwrite: whether an exported model in ``output`` may be replaced
    reduction: int8, or weights of half the size, and what to measure

    Raises InputError for bad input, a missing package, a graph that differs from the model, and an AP that int8 cannot
    keep.
    """
    check_names(cfg)
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), Detr):
        raise InputError(f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}: only Detr can be exported")
    check_packages(format)
    _check_output(output, overwrite)
    check_weights(cfg.MODEL.WEIGHTS)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DETR.INFERENCE_DTYPE, cfg.MODEL.DETR.COMPILE = "float32", ""
    if reduction != FLOAT32:
        # Only here and below: it imports what loads and evaluates data sets.
        from detr.export.reducing import check_reduction

        check_reduction(cfg, reduction, format)
    on_gpu = format == "torchscript" and cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    description = _write(_loaded(cfg, "cuda" if on_gpu else "cpu"), cfg, output, format, reduction)
    files = ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in description.files.items())
    versions = ", ".join(f"{name} {version}" for name, version in description.versions.items())
    return Report(
        [
            ("weights", description.weights or "none: random ones"),
            ("format", f"{format} ({versions})"),
            ("output", f"{output}: {files}"),
            *(("checked", _format_check(x)) for x in description.checked),
            *(("measured", row) for row in _format_measured(description)),
        ]
    )


def _format_check(checked: dict[str, Any]) -> str:
    if "agreement" in checked:
        parts = ", ".join(f"{name} {value:.4f}" for name, value in checked["agreement"].items())
        return f"on {format_sizes(checked['images'])}: agreement with the model, of 1: {parts}"
    found = ", ".join(f"{name} differ by at most {value:.1e}" for name, value in checked["differences"].items())
    return f"on {format_sizes(checked['images'])}: {found}"


def _format_measured(description: Description) -> list[str]:
    if description.measured is None:
        return []
    before, after = description.measured["float32"], description.measured[description.dtype]
    return [
        f"on {description.measured['dataset']}: {name} {before[name]:.2f} in float32, {after[name]:.2f} in "
        f"{description.dtype}"
        for name in before
    ]


def _check_output(output: str, overwrite: bool) -> None:
    if not os.path.lexists(output):
        return
    if not os.path.isdir(output):
        raise InputError(f"--output {output} is there and is no folder: name another one")
    if os.listdir(output) and not overwrite:
        raise InputError(f"--output {output} exists: name another folder, or replace it with --overwrite")
    if os.listdir(output) and not os.path.isfile(os.path.join(output, EXPORT_DESCRIPTION)):
        raise InputError(f"--output {output} holds no exported model, and would be lost: name another folder")


def _loaded(cfg: CfgNode, device: str) -> Detr:
    built_for, cfg.MODEL.DEVICE = cfg.MODEL.DEVICE, device
    model: Detr = build_model(cfg)
    cfg.MODEL.DEVICE = built_for
    if cfg.MODEL.WEIGHTS:
        of_config, checkpointer = model.card, DetrCheckpointer(model)
        model.forget_classes()  # the config's data set may be another one than that of the weights
        checkpointer.load(cfg.MODEL.WEIGHTS)
        check_whole(checkpointer.reinitialized, "this would export")
        names = model.card.class_names or of_config.class_names
        threshold = of_config.score_threshold or checkpointer.card.score_threshold
        model.card = ModelCard(names, of_config.config, threshold)
    else:
        print("WARNING: MODEL.WEIGHTS is empty, so that random weights are exported", file=sys.stderr)
    methods = ("inference", "preprocess", "postprocess")
    overridden = [name for name in methods if getattr(type(model), name) is not getattr(Detr, name)]
    if overridden:
        print(
            f"WARNING: {type(model).__name__} overrides {', '.join(overridden)}, which the exported model does not: it "
            "prepares images and postprocesses as Detr",
            file=sys.stderr,
        )
    if model.training_queries is not None:
        print("left out: what the model has for training alone (training_queries)", file=sys.stderr)
        model.fold_queries()
    return model.eval().requires_grad_(False)


def _write(model: Detr, cfg: CfgNode, output: str, format: str, reduction: Reduction) -> Description:
    described: list[Description] = []

    metadata = make_metadata(model, cfg)

    def write(folder: str) -> None:
        for part in parts(model):
            if part.name == NETWORK:
                part.metadata = as_texts(metadata)
            write_graph(format, part, folder)
        description = Description(
            format=format,
            device=model.device.type,
            masks=model.mask_head is not None,
            size_divisibility=model.backbone.size_divisibility,
            padding_constraints=model.padding_constraints,
            files={name: os.path.getsize(os.path.join(folder, name)) for name in sorted(os.listdir(folder))},
            dtype="float32",
            weights=os.path.basename(cfg.MODEL.WEIGHTS),
            versions={name: importlib.metadata.version(name) for name in ("torch", *PACKAGES[format])},
            checked=[],
            **metadata,
        )
        write_script(format, metadata, folder)
        with open(os.path.join(folder, CONFIG), "w", encoding="utf-8") as file:
            file.write(_config_of_export(cfg, os.path.abspath(output)).dump())
        description.write(folder)
        description.checked = check(load(folder, model.device), model)
        description.write(folder)
        if reduction.dtype != "float32":
            from detr.export.reducing import reduce_graphs

            reduce_graphs(folder, model, cfg, reduction, description, lambda: load(folder, model.device))
            description.write(folder)
        described.append(description)

    save_folder(write, output)
    return described[0]


def _config_of_export(cfg: CfgNode, folder: str) -> CfgNode:
    """What differs from the defaults and counts in inference, so that other versions of Detectron2 can read it."""
    config = without_training(cfg)
    config.MODEL.META_ARCHITECTURE = "ExportedDetr"
    config.MODEL.DEVICE = cfg.MODEL.DEVICE
    config.MODEL.setdefault("DETR", CfgNode()).EXPORTED = folder
    config.MODEL.WEIGHTS = ""
    changed = changed_from_defaults(cfg)
    for name in ("DATASETS", "DATALOADER", "TEST"):
        if name in changed:
            config[name] = changed[name]
    return config
