"""Folders as transformers' ``from_pretrained`` reads them: config.json, preprocessor_config.json, model.safetensors."""

import json
import os
from typing import Any

from safetensors.torch import save_file as save_safetensors

from detr.checkpoint.architecture import Architecture
from detr.checkpoint.coco_categories import coco_categories
from detr.checkpoint.files import WEIGHTS_IN_FOLDER, save_folder
from detr.checkpoint.rows import COCO_ROWS, State
from detr.errors import InputError

FILES = (WEIGHTS_IN_FOLDER[0], "config.json", "preprocessor_config.json")


def check_transformers(arch: Architecture, *, timm: bool) -> None:
    """Raises InputError for a model that transformers cannot run."""
    if arch.dilation and not timm:
        raise InputError(
            "the model is a DC5 one, and transformers' own ResNet has no dilation: --backbone timm is needed"
        )


def save_transformers(
    state: State, arch: Architecture, *, timm: bool, path: str, classes: tuple[str, ...] | None = None
) -> None:
    """Writes a whole folder in one step.

    state: named as in transformers, with ``num_classes + 1`` class rows as transformers numbers the classes
    arch: the sizes of the model; its ``num_classes`` is Detectron2's
    classes: their names; by default COCO's where the state counts its ids, else place-holders
    """
    num_classes = next(value.shape[0] for key, value in state.items() if key.endswith("classifier.bias")) - 1
    names = list(classes) if classes is not None and len(classes) == num_classes else _labels(num_classes)

    def write(folder: str) -> None:
        tensors = {key: value.contiguous() for key, value in state.items()}
        save_safetensors(tensors, os.path.join(folder, FILES[0]), metadata={"format": "pt"})
        _write_json(_config(arch, timm, names), os.path.join(folder, FILES[1]))
        _write_json(_preprocessor(arch), os.path.join(folder, FILES[2]))

    save_folder(write, path)


def _write_json(content: dict[str, Any], path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _config(arch: Architecture, timm: bool, names: list[str]) -> dict[str, Any]:
    return {
        "model_type": "detr",
        "architectures": ["DetrForSegmentation" if arch.masks else "DetrForObjectDetection"],
        "d_model": arch.d,
        "encoder_layers": arch.encoder_layers,
        "decoder_layers": arch.decoder_layers,
        "encoder_attention_heads": arch.heads,
        "decoder_attention_heads": arch.heads,
        "encoder_ffn_dim": arch.feedforward,
        "decoder_ffn_dim": arch.feedforward,
        "num_queries": arch.num_queries,
        "position_embedding_type": "learned" if arch.learned_positions else "sine",
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
        "use_pretrained_backbone": False,  # the weights beside this file are all there is
        **(_timm(arch) if timm else _own_resnet(arch)),
    }


def _timm(arch: Architecture) -> dict[str, Any]:
    return {"use_timm_backbone": True, "backbone": f"resnet{arch.depth}", "dilation": arch.dilation}


def _own_resnet(arch: Architecture) -> dict[str, Any]:
    return {
        "use_timm_backbone": False,
        "backbone": None,
        "dilation": False,
        "backbone_config": {
            "model_type": "resnet",
            "depths": list(arch.blocks),
            "hidden_sizes": list(arch.channels),
            "embedding_size": 64,
            "layer_type": "bottleneck" if arch.depth >= 50 else "basic",
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    }


def _preprocessor(arch: Architecture) -> dict[str, Any]:
    """The original's test-time preprocessing, in the form of transformers' files."""
    return {
        "image_processor_type": "DetrImageProcessor",
        "format": "coco_panoptic" if arch.masks else "coco_detection",
        "do_resize": True,
        "size": {"shortest_edge": 800, "longest_edge": 1333},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "do_pad": True,
    }


def _labels(num_classes: int) -> list[str]:
    """Names by id: COCO's where the head counts its ids, transformers' place-holders otherwise."""
    if num_classes + 1 not in COCO_ROWS:
        return [f"LABEL_{i}" for i in range(num_classes)]
    names = {int(str(category["id"])): str(category["name"]) for category in coco_categories()}
    return [names.get(i, "N/A") for i in range(num_classes)]
