"""The inputs and outputs that the graphs of a model must have, by the rules of its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from samserve.errors import EngineUnavailable
from samserve.models import families
from samserve.types import ModelInfo

IOU_THRESHOLD = "iou_threshold"
"""An input of decoders that can skip masks; those of earlier exports cannot."""

_ANY = -1


@dataclass(frozen=True, slots=True)
class GraphTensors:
    """Shapes of a graph's tensors by name, without a batch axis; -1 is an axis of any length."""

    inputs: Mapping[str, Sequence[int]]
    outputs: Mapping[str, Sequence[int]]


def check_tensors(role: str, graph: GraphTensors, info: ModelInfo) -> None:
    """Raise `EngineUnavailable` if the graph of an encoder or decoder does not fit its family.

    Inference would fail with the first call, or read logits that no run has written.  All inputs
    must be known, and `IOU_THRESHOLD` is one exactly if the configuration has it; additional
    outputs are ignored.
    """
    expected = _expected(role, info)
    if expected is None:
        return
    problem = next(_problems(graph, expected), None)
    if problem is not None:
        raise EngineUnavailable(
            f"the {role} of model {info.name!r} is not one of the family {info.family!r}: {problem}"
        )


def _problems(graph: GraphTensors, expected: GraphTensors) -> Iterator[str]:
    for name in sorted(graph.inputs.keys() - expected.inputs.keys()):
        yield f"it has the input {name!r}"
    for kind, actual, wanted in (
        ("input", graph.inputs, expected.inputs),
        ("output", graph.outputs, expected.outputs),
    ):
        for name, shape in wanted.items():
            if name not in actual:
                yield f"the {kind} {name!r} is missing"
            elif not _fits(actual[name], shape):
                yield f"the {kind} {name!r} has the shape {list(actual[name])}, not {list(shape)}"


def _fits(actual: Sequence[int], expected: Sequence[int]) -> bool:
    return len(actual) == len(expected) and all(
        _ANY in (own, other) or own == other for own, other in zip(actual, expected, strict=True)
    )


def _expected(role: str, info: ModelInfo) -> GraphTensors | None:
    """Return the tensors of a role, None for one that the gateway does not run."""
    family, side = families.of(info), info.mask_size
    embedding = {spec.name: spec.shape for spec in info.embedding}
    if role == "encoder":
        image = {"image": (info.image_size, info.image_size, 3)}
        valid = {} if family.fills_frame else {"image_size": (2,)}
        return GraphTensors({**image, **valid}, embedding)
    if role == "decoder":
        prompts = {
            "point_coords": (_ANY, _ANY, 2),
            "point_labels": (_ANY, _ANY),
            "mask_input": (_ANY, side, side),
            **({IOU_THRESHOLD: (family.mask_tokens,)} if info.skips_masks else {}),
        }
        masks = {
            "low_res_logits": (_ANY, family.mask_tokens, side, side),
            "predicted_iou": (_ANY, family.mask_tokens),
        }
        score = {"object_score_logits": (_ANY, 1)} if family.object_score else {}
        return GraphTensors({**embedding, **prompts}, {**masks, **score})
    return None
