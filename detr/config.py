"""Every config key that DETR adds to Detectron2's, with its reason.

The keys of the authors' old Detectron2 wrapper keep name, type and meaning, so its YAML files run
unchanged; the keys after them only add. Section and equation numbers are those of the paper
(Carion et al., "End-to-End Object Detection with Transformers", arXiv 2005.12872).
"""

from detectron2.config import CfgNode as CN


def add_detr_config(cfg: CN) -> None:
    """Adds ``MODEL.DETR``, the optimiser keys and the epoch keys to ``cfg``, in place."""
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
    # stage): the same as MODEL.WEIGHTS with FREEZE_DETR. Evaluation reads MODEL.WEIGHTS alone.
    cfg.MODEL.DETR.FROZEN_WEIGHTS = ""

    # New: "sine" (fixed) or "learned" (two tables of 50 rows, for feature maps up to 50 x 50).
    cfg.MODEL.DETR.POSITION_EMBEDDING = "sine"
    # New: the backbone feature that the transformer reads; "" takes the backbone's last.
    cfg.MODEL.DETR.IN_FEATURE = ""

    # New: parts whose insides are computed again for the gradient instead of being kept in memory (activation
    # checkpointing): any of "backbone" (a ResNet with frozen norms), "transformer" and "mask_head".
    cfg.MODEL.DETR.ACTIVATION_CHECKPOINT = ()
    # New: "bfloat16" or "float16" computes products and convolutions so outside training; weights, sums and
    # heads stay in float32.
    cfg.MODEL.DETR.INFERENCE_DTYPE = "float32"

    # New: masks are trained on a DETR that is left as it is (sec. 4.3): no gradients but the mask head's.
    cfg.MODEL.DETR.FREEZE_DETR = False
    # New: with masks, instances of a lower score are left out, and their masks are not computed.
    cfg.MODEL.DETR.INSTANCE_SCORE_THRESHOLD = 0.0

    # New: panoptic maps (sec. 4.3); they want MODEL.MASK_ON and a data set with things and stuff.
    cfg.MODEL.DETR.PANOPTIC = CN()
    cfg.MODEL.DETR.PANOPTIC.ENABLED = False
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
    # EVAL_PERIOD once the data set's size is known. 0 and () leave these as they are.
    cfg.SOLVER.MAX_EPOCHS = 0
    cfg.SOLVER.DROP_EPOCHS = ()
    cfg.SOLVER.CHECKPOINT_EPOCHS = 0
    cfg.TEST.EVAL_EPOCHS = 0

    # New: what counts the matches for AP of boxes and masks. "auto": hotcoco where it is installed, else pycocotools;
    # "hotcoco": an error where it is not; "pycocotools". The numbers are the same.
    cfg.TEST.COCO_BACKEND = "auto"

    # New: read the header of every image before training and compare its size with the data set's.
    cfg.DATALOADER.CHECK_IMAGES = True
