"""Parameter names in every format, as rules that are read in both directions.

A rule is a pair of templates, (name in the format, name in ``Detr``). The first rule that fits decides. In them

    {n}    a number
    {p}    a parameter or buffer of one layer: weight, bias, running_mean, running_var
    {a}    one of an attention layer, whose query, key and value projections may be stacked or apart
    {any}  the rest of the name, whatever it is
"""

import functools
import re
from collections.abc import Iterable

Rule = tuple[str, str]

_FIELDS = {
    "n": r"\d+",
    "p": r"weight|bias|running_mean|running_var",
    "a": r"in_proj_weight|in_proj_bias|(?:q|k|v|out)_proj\.(?:weight|bias)",
    "any": r".+",
}


def translate(name: str, rules: tuple[Rule, ...], *, backwards: bool = False) -> str | None:
    """The name on the rules' other side; None where no rule fits. ``backwards``: from ``Detr`` to the format."""
    for rule in rules:
        source, target = reversed(rule) if backwards else rule
        if match := _pattern(source).fullmatch(name):
            return target.format(**match.groupdict())
    return None


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for field, pattern in _FIELDS.items():
        text = text.replace(rf"\{{{field}\}}", rf"(?P<{field}>{pattern})")
    return re.compile(text)


def _prefixed(theirs: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple((theirs + source, target) for source, target in rules)


def _torchvision_body() -> tuple[Rule, ...]:
    """torchvision's ResNet, whose names timm has too, against Detectron2's."""
    rules = [("conv1.{p}", "backbone.stem.conv1.{p}"), ("bn1.{p}", "backbone.stem.conv1.norm.{p}")]
    for i in (1, 2, 3, 4):
        theirs, ours = f"layer{i}.{{n}}", f"backbone.res{i + 1}.{{n}}"
        for k in (1, 2, 3):
            rules += [(f"{theirs}.conv{k}.{{p}}", f"{ours}.conv{k}.{{p}}")]
            rules += [(f"{theirs}.bn{k}.{{p}}", f"{ours}.conv{k}.norm.{{p}}")]
        rules += [(f"{theirs}.downsample.0.{{p}}", f"{ours}.shortcut.{{p}}")]
        rules += [(f"{theirs}.downsample.1.{{p}}", f"{ours}.shortcut.norm.{{p}}")]
    return tuple(rules)


def _transformers_body() -> tuple[Rule, ...]:
    """transformers' own ResNet against Detectron2's."""
    stem = "embedder.embedder"
    rules = [(f"{stem}.convolution.{{p}}", "backbone.stem.conv1.{p}")]
    rules += [(f"{stem}.normalization.{{p}}", "backbone.stem.conv1.norm.{p}")]
    for i in (1, 2, 3, 4):
        theirs, ours = f"encoder.stages.{i - 1}.layers.{{n}}", f"backbone.res{i + 1}.{{n}}"
        for layer, name in (("layer.0", "conv1"), ("layer.1", "conv2"), ("layer.2", "conv3"), ("shortcut", "shortcut")):
            rules += [(f"{theirs}.{layer}.convolution.{{p}}", f"{ours}.{name}.{{p}}")]
            rules += [(f"{theirs}.{layer}.normalization.{{p}}", f"{ours}.{name}.norm.{{p}}")]
    return tuple(rules)


_ENCODER = "transformer.encoder.layers.{n}"
_DECODER = "transformer.decoder.layers.{n}"
# Names that the original and ``Detr`` share; only the pre-norm variant has an encoder norm.
_ALIKE = (
    *(f"{_ENCODER}.{layer}.{{p}}" for layer in ("linear1", "linear2", "norm1", "norm2")),
    *(f"{_DECODER}.{layer}.{{p}}" for layer in ("linear1", "linear2", "norm1", "norm2", "norm3")),
    *(f"{_ENCODER}.self_attn.{{a}}", f"{_DECODER}.self_attn.{{a}}", f"{_DECODER}.multihead_attn.{{a}}"),
    *("transformer.encoder.norm.{p}", "transformer.decoder.norm.{p}", "bbox_embed.layers.{n}.{p}"),
    *("input_proj.{p}", "query_embed.{p}", "class_embed.{p}"),
)
_HEADS = (
    *((name, name) for name in _ALIKE),
    # The learned position encoding; the sine one has no parameters.
    ("backbone.1.row_embed.{p}", "position_encoding.row_embed.{p}"),
    ("backbone.1.col_embed.{p}", "position_encoding.col_embed.{p}"),
)
_MASK_LAYERS = ("lay{n}", "gn{n}", "adapter{n}", "out_lay")
_MASKS = (
    ("bbox_attention.q_linear.{p}", "mask_head.attention.q_linear.{p}"),
    ("bbox_attention.k_linear.{p}", "mask_head.attention.k_linear.{p}"),
    *((f"mask_head.{layer}.{{p}}", f"mask_head.{layer}.{{p}}") for layer in _MASK_LAYERS),
)

ORIGINAL = (*_prefixed("backbone.0.body.", _torchvision_body()), *_HEADS)
ORIGINAL_MASKS = (*_prefixed("detr.", ORIGINAL), *_MASKS)

_WRAPPED = (("backbone.0.backbone.{any}", "backbone.{any}"), *_HEADS)
WRAPPER = _prefixed("detr.", _WRAPPED)
WRAPPER_MASKS = _prefixed("detr.", (*_prefixed("detr.", _WRAPPED), *_MASKS))

TORCHVISION = _torchvision_body()
RESNET = (("{any}", "backbone.{any}"),)

_MASK_NAMES = tuple(ours for _, ours in _MASKS)
_POSITIONS = ("position_encoding.row_embed.{p}", "position_encoding.col_embed.{p}")
DETECTRON2 = tuple((name, name) for name in ("backbone.{any}", *_ALIKE, *_POSITIONS, *_MASK_NAMES))

_TRANSFORMERS_HEADS = (
    ("model.encoder.layers.{n}.self_attn.{a}", _ENCODER + ".self_attn.{a}"),
    ("model.encoder.layers.{n}.self_attn_layer_norm.{p}", _ENCODER + ".norm1.{p}"),
    ("model.encoder.layers.{n}.fc1.{p}", _ENCODER + ".linear1.{p}"),
    ("model.encoder.layers.{n}.fc2.{p}", _ENCODER + ".linear2.{p}"),
    ("model.encoder.layers.{n}.final_layer_norm.{p}", _ENCODER + ".norm2.{p}"),
    ("model.decoder.layers.{n}.self_attn.{a}", _DECODER + ".self_attn.{a}"),
    ("model.decoder.layers.{n}.self_attn_layer_norm.{p}", _DECODER + ".norm1.{p}"),
    ("model.decoder.layers.{n}.encoder_attn.{a}", _DECODER + ".multihead_attn.{a}"),
    ("model.decoder.layers.{n}.encoder_attn_layer_norm.{p}", _DECODER + ".norm2.{p}"),
    ("model.decoder.layers.{n}.fc1.{p}", _DECODER + ".linear1.{p}"),
    ("model.decoder.layers.{n}.fc2.{p}", _DECODER + ".linear2.{p}"),
    ("model.decoder.layers.{n}.final_layer_norm.{p}", _DECODER + ".norm3.{p}"),
    ("model.decoder.layernorm.{p}", "transformer.decoder.norm.{p}"),
    ("model.input_projection.{p}", "input_proj.{p}"),
    ("model.query_position_embeddings.{p}", "query_embed.{p}"),
    ("model.position_embedding.row_embeddings.{p}", "position_encoding.row_embed.{p}"),
    ("model.position_embedding.column_embeddings.{p}", "position_encoding.col_embed.{p}"),
    # where version 4 had them
    ("model.backbone.position_embedding.row_embeddings.{p}", "position_encoding.row_embed.{p}"),
    ("model.backbone.position_embedding.column_embeddings.{p}", "position_encoding.col_embed.{p}"),
    ("class_labels_classifier.{p}", "class_embed.{p}"),
    ("bbox_predictor.layers.{n}.{p}", "bbox_embed.layers.{n}.{p}"),
)
_TRANSFORMERS_BACKBONE = "model.backbone.conv_encoder.model."
TRANSFORMERS_TIMM = (*_prefixed(_TRANSFORMERS_BACKBONE, _torchvision_body()), *_TRANSFORMERS_HEADS)
TRANSFORMERS_RESNET = (*_prefixed(_TRANSFORMERS_BACKBONE, _transformers_body()), *_TRANSFORMERS_HEADS)
TRANSFORMERS_TIMM_MASKS = (*_prefixed("detr.", TRANSFORMERS_TIMM), *_MASKS)
TRANSFORMERS_RESNET_MASKS = (*_prefixed("detr.", TRANSFORMERS_RESNET), *_MASKS)
