"""The plain decoders return what the original libraries return."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from tests.oracle import photos, plain_decoder, sam, sam2, sam_hq
from tests.oracle.onnx_sam import session

pytestmark = pytest.mark.slow

PROMPTS, POINTS = 3, 2


def outputs(model: onnx.ModelProto, embedding: dict[str, Tensor], **prompts: Tensor) -> Any:
    """Run a decoder on one image; points have a padding point."""
    coords = torch.cat([prompts["points"], torch.zeros(PROMPTS, 1, 2)], 1)
    labels = torch.cat([prompts["labels"], -torch.ones(PROMPTS, 1)], 1)
    feeds = {name: value.half().numpy() for name, value in embedding.items()}
    feeds |= {"point_coords": coords[None].numpy(), "point_labels": labels[None].numpy()}
    side = model.graph.input[-1].type.tensor_type.shape.dim[-1].dim_value
    masks = prompts.get("masks", torch.zeros(0, side, side))
    feeds["mask_input"] = masks[None].numpy()
    return [output[0] for output in session(model.SerializeToString(), 1).run(None, feeds)]


def drawn(*shape: int) -> Tensor:
    """Draw values that float16 can represent."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).half().float()


def prompts_on(side: int) -> dict[str, Tensor]:
    return {
        "points": drawn(PROMPTS, POINTS, 2).abs() * side / 4,
        "labels": torch.tensor([[1.0, 0.0]] * PROMPTS),
    }


def close(ours: np.ndarray, theirs: Tensor) -> bool:
    expected = theirs.numpy()
    return bool(np.abs(ours - expected).max() < 1e-3 * expected.std())


@pytest.fixture(scope="module")
def original() -> sam.Sam:
    return sam.build_sam(sam.SMALL, photos.calibration())


@pytest.mark.parametrize("with_masks", [False, True])
def test_plain_decoder_is_that_of_segment_anything(original: sam.Sam, with_masks: bool) -> None:
    embedding, prompts = drawn(1, 256, 16, 16), prompts_on(256)
    masks = drawn(PROMPTS, 64, 64) if with_masks else None
    more = {} if masks is None else {"masks": masks}
    with torch.no_grad():
        points = (prompts["points"], prompts["labels"])
        given = None if masks is None else masks[:, None]
        sparse, dense = original.prompt_encoder(points, None, given)
        expected = original.mask_decoder.predict_masks(
            embedding, original.prompt_encoder.get_dense_pe(), sparse, dense
        )
        model = plain_decoder.plain_decoder(original)

    found = outputs(model, {"image_embedding": embedding}, **prompts, **more)

    assert all(close(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_plain_hq_decoder_is_that_of_segment_anything_hq() -> None:
    original = sam_hq.build()
    embedding, features, prompts = drawn(1, 256, 16, 16), drawn(1, 32, 64, 64), prompts_on(256)
    with torch.no_grad():
        points = (prompts["points"], prompts["labels"])
        sparse, dense = original.prompt_encoder(points, None, None)
        masks, iou = original.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=original.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            hq_features=features,
        )
        model = plain_decoder.plain_hq_decoder(original)

    logits, predicted = outputs(
        model, {"image_embedding": embedding, "hq_features": features}, **prompts
    )

    assert close(logits, masks)
    assert close(predicted[:, :4], iou)
    assert (predicted[:, 4] == predicted[:, 1:4].max(1)).all()


def test_plain_sam2_decoder_is_that_of_transformers() -> None:
    original = sam2.model()
    width, grid = sam2.TOY.channels, sam2.TOY.grid
    embedding = {
        "high_res_0": drawn(1, width // 8, 4 * grid, 4 * grid),
        "high_res_1": drawn(1, width // 4, 2 * grid, 2 * grid),
        "image_embedding": drawn(1, width, grid, grid),
    }
    prompts = prompts_on(16 * grid)
    with torch.no_grad():
        expected = original(
            image_embeddings=list(embedding.values()),
            input_points=prompts["points"][None],
            input_labels=prompts["labels"][None].int(),
            multimask_output=True,
        )
        model = plain_decoder.plain_sam2_decoder(original)

    logits, iou, score = outputs(model, embedding, **prompts)

    assert close(logits[:, 1:], expected.pred_masks[0])
    assert close(iou[:, 1:], expected.iou_scores[0])
    assert close(score, expected.object_score_logits[0])
