"""Served models, and the limits of a caller, as protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from types import MappingProxyType

from samserve.models import families
from samserve.models.card import TEXTS
from samserve.models.families.base import Family
from samserve.security.principal import UNLIMITED, Allowance
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.settings import LimitSettings
from samserve.types import ModelCard, ModelInfo, Transport
from samserve.v1 import samserve_pb2 as pb

_NO_DECODERS: Mapping[str, str] = MappingProxyType({})


class ModelLists:
    """Builds the lists of models, each once until other models are served."""

    def __init__(self, limits: LimitSettings, decoders: Mapping[str, str] = _NO_DECODERS) -> None:
        """Build lists with the SHA-256 of the *decoders* that clients may download, by model."""
        self._limits = limits
        self._decoders = decoders
        self._served: tuple[Sequence[ModelInfo], Transport] = ((), Transport.IN_PROCESS)
        # By what differs between callers; there are as many as there are quotas.
        self._built: dict[tuple[int | None, int | None], pb.ListModelsResponse] = {}

    def of(
        self, models: Iterable[ModelInfo], transport: Transport, allowance: Allowance = UNLIMITED
    ) -> pb.ListModelsResponse:
        """Return the list for a caller, which must not be changed; see `model_list`."""
        served = (list(models), transport)
        if served != self._served:
            self._served, self._built = served, {}
        key = (allowance.max_image_pixels, allowance.max_prompts)
        found = self._built.get(key)
        if found is None:
            found = model_list(*served, self._limits, allowance)
            for model in found.models:
                model.decoder_sha256 = self._decoders.get(model.name, "")
            self._built[key] = found
        return found


def model_list(
    models: Iterable[ModelInfo],
    transport: Transport,
    limits: LimitSettings,
    allowance: Allowance = UNLIMITED,
) -> pb.ListModelsResponse:
    """Build the list of models, the default model first, with the limits of this caller."""
    served = list(models)
    return pb.ListModelsResponse(
        models=[_model(info, transport, default=index == 0) for index, info in enumerate(served)],
        limits=pb.Limits(
            max_request_bytes=limits.max_request_bytes,
            max_response_bytes=limits.max_response_bytes,
            max_image_pixels=_lower(limits.max_image_pixels, allowance.max_image_pixels),
            max_image_side=limits.max_image_side,
            max_prompts=_lower(limits.max_prompts, allowance.max_prompts),
            max_points=limits.max_points,
            max_points_per_side=limits.max_points_per_side,
            max_points_per_batch=limits.max_points_per_batch,
            max_crop_n_layers=limits.max_crop_n_layers,
            max_exclude_masks=limits.max_exclude_masks,
        ),
        automask_defaults=_automask_defaults(families.of(served[0])),
    )


@cache
def _automask_defaults(family: Family) -> pb.AutoMaskOptions:
    options = asdict(AutoMaskOptions.of(family, {}))
    for name in ("point_grids", "region_of_interest", "hq_mode", "exclude"):
        del options[name]
    return pb.AutoMaskOptions(**options)


@cache
def _capabilities(family: Family) -> pb.Capabilities:
    return pb.Capabilities(**asdict(family.capabilities))


def _lower(limit: int, quota: int | None) -> int:
    return limit if quota is None else min(limit, quota)


def _model(info: ModelInfo, transport: Transport, *, default: bool) -> pb.Model:
    family, rule = families.of(info), info.dynamic_multimask
    return pb.Model(
        name=info.name,
        family=info.family,
        digest=info.digest,
        description=info.description,
        image_side=info.image_size,
        mask_side=info.mask_size,
        embedding_bytes=info.embedding_bytes,
        capabilities=_capabilities(family),
        default=default,
        transport=pb.Transport.Value(f"TRANSPORT_{transport.name}"),
        card=_card(info.card),
        encoder_digest=info.encoder_digest,
        automask_defaults=_automask_defaults(family),
        mask_tokens=family.mask_tokens,
        stability_rule=None if rule is None else pb.StabilityRule(**asdict(rule)),
    )


def _card(card: ModelCard) -> pb.ModelCard:
    message = pb.ModelCard(**{name: getattr(card, name) for name in TEXTS})
    if card.parity is not None:
        message.parity.CopyFrom(pb.Parity(**asdict(card.parity)))
    return message
