"""Attention maps beside those of transformers' DETR, with the same weights."""

import pytest
import torch
import transformers

from detr.checkpoint import DetrCheckpointer
from detr.convert.conversion import Request, convert
from detr.modeling.attention_maps import attention
from detr.modeling.meta_arch import Detr
from tests.lively import batch, build_lively
from tests.parity.pairs import CONFIGS

SIZES = {"HIDDEN_DIM": 64, "DIM_FEEDFORWARD": 64, "ENC_LAYERS": 2, "DEC_LAYERS": 2, "NUM_CLASSES": 5}


@pytest.mark.slow
@torch.no_grad()
def test_maps_are_those_of_transformers(tmp_path):
    """Every layer and head, in double precision, of a batch with one image padded below and one on the right."""
    settings = {f"MODEL.DETR.{key}": value for key, value in SIZES.items()}
    ours = build_lively(CONFIGS / "COCO-Detection" / "detr_R_50.yaml", {**settings, "MODEL.DEVICE": "cpu"})
    DetrCheckpointer(ours, str(tmp_path)).save("ours")
    folder = str(tmp_path / "theirs")
    convert(Request(source=str(tmp_path / "ours.pth"), output=folder, to="transformers"))
    theirs = transformers.DetrForObjectDetection.from_pretrained(folder, attn_implementation="eager").double().eval()

    def preprocess(batched_inputs):
        images = Detr.preprocess(ours, batched_inputs)
        images.tensor = images.tensor.double()
        return images

    ours = ours.double()
    ours.preprocess = preprocess
    inputs = batch([(192, 256), (256, 160)])
    centers = [
        [(x + 0.5, y + 0.5) for y in range(0, h, 32) for x in range(0, w, 32)] for h, w in ((192, 256), (256, 160))
    ]
    for x, size in zip(inputs, ((192, 256), (256, 160)), strict=True):
        x["height"], x["width"] = size
    found = attention(ours, inputs, points=centers, decoder_layers=[0, 1], encoder_layers=[0, 1])
    images = ours.preprocess(inputs)
    mask = torch.zeros(2, *images.tensor.shape[-2:], dtype=torch.long)
    for image_mask, (height, width) in zip(mask, images.image_sizes, strict=True):
        image_mask[:height, :width] = 1
    outputs = theirs(pixel_values=images.tensor, pixel_mask=mask, output_attentions=True)
    for index, (x, (h, w)) in enumerate(zip(found, ((6, 8), (8, 5)), strict=True)):
        decoder = torch.stack(outputs.cross_attentions)[:, index].unflatten(-1, (8, 8))  # (L, M, Q, 8, 8)
        encoder = torch.stack(outputs.encoder_attentions)[:, index].unflatten(-1, (8, 8)).unflatten(2, (8, 8))
        torch.testing.assert_close(x.decoder, decoder[..., :h, :w].float(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(x.encoder, encoder[:, :, :h, :w, :h, :w].flatten(2, 3).float(), atol=1e-5, rtol=1e-4)
        assert x.decoder.std() > 0.005
