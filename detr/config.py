"""Every config key that DETR adds to Detectron2's, with its reason.

The keys of the authors' old Detectron2 wrapper keep name, type and meaning, so its YAML files run
unchanged; the keys after them only add. Section and equation numbers are those of the paper
(Carion et al., "End-to-End Object Detection with Transformers", arXiv 2005.12872).
"""

import copy

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from detr.config_node import track

EXPORT_DESCRIPTION = "export.json"  # in the folder of an exported model, beside its config.yaml


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
    # New: the class loss is a weighted mean over the queries of a "rank", as in the original, or of "all" ranks: then
    # two ranks of one image train as one process of two images does.
    cfg.MODEL.DETR.CLASS_LOSS_MEAN = "rank"

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
    # New: outside training, images of different sizes never share a batch, so that none is padded and the results of
    # each are those of the image alone (docs/reliability.md).
    cfg.MODEL.DETR.IMAGES_ALONE = False
    # New: both sides of a batch are padded to multiples of so many pixels, in training and inference, so that few sizes
    # occur: for COMPILE. 0 is off. Padding is masked, but changes results a little (docs/reliability.md), with
    # IMAGES_ALONE too: each image's are then those of that image alone with its padding.
    cfg.MODEL.DETR.PAD_MULTIPLE = 0
    # New: "default" or "reduce-overhead" (CUDA graphs, on a GPU) compiles backbone, transformer and heads when they are
    # first called, by torch.compile, in training and inference. It takes a minute, and again for sizes of another kind.
    cfg.MODEL.DETR.COMPILE = ""

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
    # New: of a ViT, the learning rate of each layer / that of the one after it; 1 is off. With it, a multiplier of 1 is
    # usual.
    cfg.SOLVER.LAYER_DECAY = 1.0

    # New: of SOLVER.AMP.ENABLED, mixed precision in training: "float16", with scaled losses, on a GPU alone; or
    # "bfloat16", on a CPU too.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # New: computes a step's images in so many equal parts, one after the other, with a fraction of the memory. The
    # optimizer still sees the gradients of IMS_PER_BATCH images: learning rate and schedule stay as they are.
    cfg.SOLVER.ACCUMULATION_STEPS = 1

    # New: an average of the weights over the last steps (EMA), which is evaluated in their place, in training too:
    # after each step, average = EMA_DECAY * average + (1 - EMA_DECAY) * weights. 0 is off; 0.9997 suits long trainings.
    cfg.SOLVER.EMA_DECAY = 0.0

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

    # New: ends the training after so many evaluations in a row without a better AP (or PQ, see TEST.BEST_METRIC), 0
    # never. `model_best.pth` is the best state, `model_final.pth` the last one.
    cfg.SOLVER.PATIENCE = 0

    # New: the metric of the best checkpoint and of PATIENCE, by its name in metrics.json, such as "bbox/AP50",
    # "panoptic_seg/PQ" or "val_loss"; of several test sets with the set in front. "": PQ, else mask AP, else box AP.
    # Less is better where the last part of the name has "loss" or "error" in it, else more.
    cfg.TEST.BEST_METRIC = ""
    # New: at most so many images are evaluated at a time, on each GPU. They have one size after resizing, so that none
    # is padded: the results are those of single images but for rounding, and come in the order of the data set.
    cfg.TEST.IMS_PER_BATCH = 1
    # New: what counts the matches for AP of boxes and masks, and for PQ. "auto": hotcoco where it is installed, else
    # pycocotools and panopticapi; "hotcoco": an error where it is not; "pycocotools". The numbers are the same.
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
