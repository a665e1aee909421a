"""Checks of the values of config keys, as far as no data is needed for them."""

import logging

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from detr.errors import InputError

POSITION_EMBEDDINGS = ("sine", "learned")
CHECKPOINTED = ("backbone", "transformer", "mask_head")
COMPILE_MODES = ("", "default", "reduce-overhead")
INFERENCE_DTYPES = ("float32", "bfloat16", "float16")
STUFF_MERGES = ("original", "exact")
CLASS_LOSS_MEANS = ("rank", "all")

# Detectron2's keys that Detr does not read -> the key that does the same for it, or "".
UNREAD_KEYS = {
    **{f"MODEL.{name}": "" for name in ("ANCHOR_GENERATOR", "PANOPTIC_FPN", "PROPOSAL_GENERATOR", "RETINANET", "RPN")},
    **{f"MODEL.{name}": "" for name in ("ROI_BOX_HEAD", "ROI_KEYPOINT_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")},
    **{"MODEL.KEYPOINT_ON": "", "MODEL.LOAD_PROPOSALS": "", "TEST.AUG": "", "VIS_PERIOD": ""},
    "MODEL.ROI_HEADS": "",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.DETR.NUM_CLASSES",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.DETR.INSTANCE_SCORE_THRESHOLD",
}

logger = logging.getLogger(__name__)


def check_names(cfg: CN) -> None:
    """Raises InputError for a meta-architecture or a backbone that is not registered."""
    # The modules that are registered import this one.
    from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry:
            known = ", ".join(sorted(known for known, _ in registry))
            raise InputError(f"{key} is {name!r}, which is not registered: it must be one of {known}")


def check_model_keys(cfg: CN) -> None:
    """Raises InputError for sizes and combinations that no ``Detr`` can have."""
    keys = cfg.MODEL.DETR
    for key in ("NUM_CLASSES", "NUM_OBJECT_QUERIES", "HIDDEN_DIM", "NHEADS", "DIM_FEEDFORWARD", "DEC_LAYERS"):
        if keys[key] < 1:
            raise InputError(f"MODEL.DETR.{key} is {keys[key]}: it must be at least 1")
    if not 0 <= keys.PANOPTIC.THINGS <= keys.NUM_CLASSES:
        raise InputError(
            f"MODEL.DETR.PANOPTIC.THINGS is {keys.PANOPTIC.THINGS}: it must be from 0 to MODEL.DETR.NUM_CLASSES, "
            f"{keys.NUM_CLASSES}"
        )
    for key, value, choices in (
        ("POSITION_EMBEDDING", keys.POSITION_EMBEDDING, POSITION_EMBEDDINGS),
        ("INFERENCE_DTYPE", keys.INFERENCE_DTYPE, INFERENCE_DTYPES),
        ("PANOPTIC.STUFF_MERGE", keys.PANOPTIC.STUFF_MERGE, STUFF_MERGES),
        ("CLASS_LOSS_MEAN", keys.CLASS_LOSS_MEAN, CLASS_LOSS_MEANS),
        ("COMPILE", keys.COMPILE, COMPILE_MODES),
    ):
        if value not in choices:
            names = ", ".join(choice or '""' for choice in choices)
            raise InputError(f"MODEL.DETR.{key} is {value!r}: it must be one of {names}")
    if not 0 <= keys.DROPOUT < 1:
        raise InputError(f"MODEL.DETR.DROPOUT is {keys.DROPOUT}: it must be at least 0 and below 1")
    if unknown := set(keys.ACTIVATION_CHECKPOINT) - set(CHECKPOINTED):
        raise InputError(
            f"MODEL.DETR.ACTIVATION_CHECKPOINT has {sorted(unknown)}: it takes any of {', '.join(CHECKPOINTED)}"
        )
    _check_training_queries(keys, masks=cfg.MODEL.MASK_ON)
    if not cfg.MODEL.MASK_ON:
        for key, value in (("PANOPTIC.ENABLED", keys.PANOPTIC.ENABLED), ("FREEZE_DETR", keys.FREEZE_DETR)):
            if value:
                raise InputError(f"MODEL.DETR.{key} is {value!r}, which needs masks: set MODEL.MASK_ON True")
    _check_width(keys, masks=cfg.MODEL.MASK_ON)


def _check_training_queries(keys: CN, masks: bool) -> None:
    noise = keys.DENOISING
    for key, value in (("DENOISING.COPIES", noise.COPIES), ("QUERY_GROUPS", keys.QUERY_GROUPS)):
        if value < 1:
            raise InputError(f"MODEL.DETR.{key} is {value}: it must be at least 1")
    for key, value in (("BOX_NOISE", noise.BOX_NOISE), ("LABEL_NOISE", noise.LABEL_NOISE)):
        if not 0 <= value <= 1:
            raise InputError(f"MODEL.DETR.DENOISING.{key} is {value}: it must be from 0 to 1")
    if noise.ENABLED and noise.NEGATIVES and not noise.BOX_NOISE:
        raise InputError(
            "MODEL.DETR.DENOISING.BOX_NOISE is 0, so that a negative would be the same query as its positive, with the "
            "opposite answer: set it above 0, or MODEL.DETR.DENOISING.NEGATIVES False"
        )
    used = {"DENOISING.ENABLED": noise.ENABLED, "ANCHOR_QUERIES": keys.ANCHOR_QUERIES}
    used["QUERY_GROUPS"] = keys.QUERY_GROUPS > 1
    if masks and (keys.FREEZE_DETR or keys.FROZEN_WEIGHTS) and any(used.values()):  # without masks nothing is frozen
        names = " and ".join(f"MODEL.DETR.{name}" for name, value in used.items() if value)
        raise InputError(
            f"{names} would train nothing, because MODEL.DETR.FREEZE_DETR or FROZEN_WEIGHTS freezes the box model: "
            "leave one or the other out"
        )


def _check_width(keys: CN, masks: bool) -> None:
    d, heads, positions = keys.HIDDEN_DIM, keys.NHEADS, keys.POSITION_EMBEDDING
    embeds_boxes = keys.ANCHOR_QUERIES or keys.DENOISING.ENABLED
    for divisor, name, reason, applies in (
        (heads, f"MODEL.DETR.NHEADS {heads}", "every head takes an equal share of it", True),
        (4, "4", "the sine position encoding gives half of it to each image axis", positions == "sine"),
        (4, "4", "an embedded box has sines and cosines of each of its numbers", embeds_boxes),
        (2, "2", "the learned position encoding gives half of it to each image axis", positions == "learned"),
        (16, "16", "the mask head halves it four times", masks),
    ):
        if applies and d % divisor:
            raise InputError(
                f"MODEL.DETR.HIDDEN_DIM {d} is not divisible by {name}: {reason}; "
                f"{max(d // divisor, 1) * divisor} would do"
            )


def warn_of_unread_keys(cfg: CN) -> None:
    """One warning that names the keys of other models that were changed from Detectron2's defaults: they do nothing."""
    defaults, changed = get_cfg(), []
    for name in UNREAD_KEYS:
        node, default = cfg, defaults
        for part in name.split("."):
            node, default = node[part], default[part]
        changed += _differences(node, default, name)
    named = {key: UNREAD_KEYS.get(key, "") for key in changed}
    if named:
        texts = [f"{key} (set {instead} instead)" if instead else key for key, instead in named.items()]
        logger.warning("these keys differ from their defaults, but Detr does not read them: %s", ", ".join(texts))


def _differences(value: object, default: object, name: str) -> list[str]:
    if isinstance(value, CN) and isinstance(default, CN):
        return [x for key in value if key in default for x in _differences(value[key], default[key], f"{name}.{key}")]
    return [] if value == default else [name]
