"""Every config key that DETR adds to Detectron2's, with its reason.

The keys of the authors' old Detectron2 wrapper keep name, type and meaning, so its YAML files run
unchanged; the keys after them only add. Section and equation numbers are those of the paper
(Carion et al., "End-to-End Object Detection with Transformers", arXiv 2005.12872).
"""

import copy
import logging

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from detr.config_node import track
from detr.errors import InputError

EXPORT_DESCRIPTION = "export.json"  # in the folder of an exported model, beside its config.yaml

POSITION_EMBEDDINGS = ("sine", "learned")
CHECKPOINTED = ("backbone", "transformer", "mask_head")
INFERENCE_DTYPES = ("float32", "bfloat16", "float16")
STUFF_MERGES = ("original", "exact")

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


def add_detr_config(cfg: CN) -> None:
    """Adds ``MODEL.DETR``, the optimizer keys and the epoch keys to ``cfg``, in place.

    From then on ``cfg`` knows which of two competing keys was set last (see ``config_node``).
    """
    cfg.MODEL.DETR = CN()
    cfg.MODEL.DETR.NUM_CLASSES = 80  # without the no-object class, which is always the last row

    # Losses and matching cost (sec. 3.1, appendix A.2). The L1 and GIoU weights serve both.
    cfg.MODEL.DETR.GIOU_WEIGHT = 2.0
    cfg.MODEL.DETR.L1_WEIGHT = 5.0
    cfg.MODEL.DETR.NO_OBJECT_WEIGHT = 0.1  # most queries match nothing: down-weighted by 10
    cfg.MODEL.DETR.DEEP_SUPERVISION = True  # auxiliary losses on the earlier decoder layers

    # Transformer (sec. 3.2, fig. 10)
    cfg.MODEL.DETR.NHEADS = 8
    cfg.MODEL.DETR.DROPOUT = 0.1
    cfg.MODEL.DETR.DIM_FEEDFORWARD = 2048
    cfg.MODEL.DETR.ENC_LAYERS = 6
    cfg.MODEL.DETR.DEC_LAYERS = 6
    cfg.MODEL.DETR.PRE_NORM = False  # True: LayerNorm before each sublayer, and after the encoder
    cfg.MODEL.DETR.HIDDEN_DIM = 256  # d; divisible by NHEADS, by 4 (half for each image axis), by 16 with masks
    cfg.MODEL.DETR.NUM_OBJECT_QUERIES = 100  # N; an image with more objects loses the surplus

    # A trained box DETR to start from, and to leave as it is, when masks are trained (the wrapper's second
    # stage): the same as MODEL.WEIGHTS with FREEZE_DETR. Evaluation only reads MODEL.WEIGHTS.
    cfg.MODEL.DETR.FROZEN_WEIGHTS = ""

    # New: "sine" (fixed) or "learned" (two tables of 50 rows, for feature maps up to 50 x 50).
    cfg.MODEL.DETR.POSITION_EMBEDDING = "sine"
    # New: the backbone feature that the transformer reads; "" takes the backbone's last.
    cfg.MODEL.DETR.IN_FEATURE = ""

    # New: for MODEL.BACKBONE.NAME "build_timm_backbone", a model of timm by its name (docs/backbones.md).
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""  # with or without the tag of its weights: "resnet50", "resnet50.a1_in1k"
    cfg.MODEL.TIMM.PRETRAINED = True  # a training without MODEL.WEIGHTS starts from timm's weights, which it fetches
    cfg.MODEL.TIMM.OUT_INDICES = ()  # the features to give, by timm's numbers; (): the last
    cfg.MODEL.TIMM.NORM = "FrozenBN"  # of batch norms; "BN" trains them. Other norms stay as they are
    # New: (name, value) pairs, more arguments of a backbone of timm, or of Detectron2's RegNet, Swin, ViT or MViT.
    cfg.MODEL.BACKBONE.ARGUMENTS = ()

    # New: what is in the model while it is trained, and not in the model that comes out (docs/training.md).
    # Denoising queries: the true boxes with noise, which the decoder learns to correct (DN-DETR, arXiv 2203.01305).
    cfg.MODEL.DETR.DENOISING = CN()
    cfg.MODEL.DETR.DENOISING.ENABLED = False
    cfg.MODEL.DETR.DENOISING.COPIES = 4  # of an image's objects; fewer where it has more than the batch's mean
    cfg.MODEL.DETR.DENOISING.BOX_NOISE = 0.4  # change of center and extent at most, as a share of the box's extent
    cfg.MODEL.DETR.DENOISING.LABEL_NOISE = 0.2  # odds of a random label
    cfg.MODEL.DETR.DENOISING.NEGATIVES = True  # with up to twice the noise, to be no-object (DINO, arXiv 2203.03605)
    cfg.MODEL.DETR.QUERY_GROUPS = 1  # groups of N queries, of which the first is kept (Group DETR, arXiv 2207.13085)
    cfg.MODEL.DETR.ANCHOR_QUERIES = False  # queries are embedded boxes, which are learned (DAB-DETR, arXiv 2201.12329)

    # New: parts whose insides are computed again for the gradient instead of being kept in memory (activation
    # checkpointing): any of "backbone" (a ResNet or a timm model without trained batch norms), "transformer" and
    # "mask_head".
    cfg.MODEL.DETR.ACTIVATION_CHECKPOINT = ()
    # New: "bfloat16" or "float16" computes products and convolutions so outside training; weights, sums and
    # heads stay in float32.
    cfg.MODEL.DETR.INFERENCE_DTYPE = "float32"

    # New: masks are trained on a DETR that is left as it is (sec. 4.3): no gradients but the mask head's.
    cfg.MODEL.DETR.FREEZE_DETR = False
    # New: instances of a lower score are left out, and their masks are not computed. COCO's AP needs them all.
    cfg.MODEL.DETR.INSTANCE_SCORE_THRESHOLD = 0.0

    # New: panoptic maps (sec. 4.3); they need MODEL.MASK_ON and a data set with things and stuff.
    cfg.MODEL.DETR.PANOPTIC = CN()
    cfg.MODEL.DETR.PANOPTIC.ENABLED = False
    # How many classes are things, the first ones; 0: as the metadata of DATASETS say. Checkpoints record it, so that a
    # model can be used where the data set that it learned from is not registered.
    cfg.MODEL.DETR.PANOPTIC.THINGS = 0
    cfg.MODEL.DETR.PANOPTIC.SCORE_THRESHOLD = 0.85  # of queries that take part
    cfg.MODEL.DETR.PANOPTIC.MIN_AREA = 4  # in pixels: segments that are not larger are dropped
    # "original": stuff is merged once, as for the published PQ; "exact": again after segments were dropped
    cfg.MODEL.DETR.PANOPTIC.STUFF_MERGE = "original"

    # New: the folder that tools/export_model.py wrote, for the meta-architecture "ExportedDetr". The config.yaml in
    # it sets both.
    cfg.MODEL.DETR.EXPORTED = ""

    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone / BASE_LR

    # New: a schedule in epochs of DATASETS.TRAIN, turned into MAX_ITER, STEPS, CHECKPOINT_PERIOD and
    # EVAL_PERIOD once the data set's size is known. 0 and () leave these as they are. Of two keys for the same thing,
    # the one set last is in force, be it by a file, the command line or Python.
    cfg.SOLVER.MAX_EPOCHS = 0
    cfg.SOLVER.DROP_EPOCHS = ()
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    cfg.TEST.EVAL_EPOCHS = 0
    # New: how many of the periodic checkpoints to keep, 0 for all. Those from just before a drop of the learning rate,
    # the one with the best AP or PQ and the final one are kept besides.
    cfg.SOLVER.CHECKPOINTS_KEPT = 3

    # New: ends the training after so many evaluations in a row without a better AP (or PQ), 0 never. `model_best.pth`
    # is the best state, `model_final.pth` the last one.
    cfg.SOLVER.PATIENCE = 0

    # New: what counts the matches for AP of boxes and masks. "auto": hotcoco where it is installed, else pycocotools;
    # "hotcoco": an error where it is not; "pycocotools". The numbers are the same.
    cfg.TEST.COCO_BACKEND = "auto"
    # New: in training, an evaluation also computes the losses on the test sets, as `val_loss`, `val_loss_ce` and so on.
    cfg.TEST.LOSS = False
    # New: evaluate one image of each test set before the first training step. False is for an evaluator that cannot
    # work on a single image.
    cfg.TEST.DRY_RUN = True

    # New: data sets of your own, (name, path) or (name, path, split) each, in any format that detr.data.formats reads.
    cfg.DATASETS.REGISTER = ()

    # New: read every image before training (of a JPEG the header) and compare its size with the data set's.
    cfg.DATALOADER.CHECK_IMAGES = True

    # New: where metrics go beside TensorBoard and metrics.json, "" for nowhere. The run has the name of OUTPUT_DIR.
    cfg.LOGGING = CN()
    cfg.LOGGING.WANDB = ""  # a project of Weights & Biases
    cfg.LOGGING.MLFLOW = ""  # a tracking URI of MLflow
    # New: how queries and objects are matched, as `health/...`, and warnings where a training is stuck. It costs a
    # hundredth of a step at most, and the training stays the same to the last bit.
    cfg.LOGGING.HEALTH = True

    track((cfg, cfg.SOLVER, cfg.TEST))


def check_names(cfg: CN) -> None:
    """Raises InputError for a meta-architecture or a backbone that is not registered."""
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
    ):
        if value not in choices:
            raise InputError(f"MODEL.DETR.{key} is {value!r}: it must be one of {', '.join(choices)}")
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


def changed_from_defaults(cfg: CN) -> CN:
    """What differs from the defaults of Detectron2 and ``add_detr_config``; other versions have other keys beside it.

    Keys that are in neither, as a subclass of ``Detr`` may have some, are left out.
    """
    defaults = get_cfg()
    add_detr_config(defaults)
    return _changed(cfg, defaults)


def _changed(cfg: CN, defaults: CN) -> CN:
    changed = CN()
    for key, value in cfg.items():
        if isinstance(value, CN) and isinstance(defaults.get(key), CN):
            inner = _changed(value, defaults[key])
            if inner:
                changed[key] = inner
        elif key in defaults and value != defaults[key]:
            changed[key] = copy.deepcopy(value)
    return changed


def _differences(value: object, default: object, name: str) -> list[str]:
    if isinstance(value, CN) and isinstance(default, CN):
        return [x for key in value if key in default for x in _differences(value[key], default[key], f"{name}.{key}")]
    return [] if value == default else [name]
