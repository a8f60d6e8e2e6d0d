"""What a run trains: one place decides it from the model, its checkpoint and the options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from samserve.export.checkpoint import open_network
from samserve.export.errors import ExportError
from samserve.export.families.base import Network
from samserve.export.stamp import without_stamp
from samserve.export.tiny.reading import is_tiny_decoder
from samserve.models.digest import TUNED_FILE
from samserve.models.repository import Bundle
from samserve.tuning.decoders import NetworkDecoder, TinyDecoder, TunableDecoder
from samserve.tuning.encoders import AdaptedEncoder, FixedEncoder, TunableEncoder
from samserve.tuning.errors import TuningError


class Networks(nn.Module):
    """The modules of a run, or a copy of them with other weights."""

    def __init__(self, decoder: nn.Module, encoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.encoder = decoder, encoder


@dataclass(frozen=True)
class Tunable:
    """A mask decoder that is trained, and the image encoder of its embeddings."""

    decoder: TunableDecoder
    encoder: TunableEncoder
    networks: Networks = field(init=False)

    def __post_init__(self) -> None:
        networks = Networks(self.decoder.module, self.encoder.module)
        object.__setattr__(self, "networks", networks)


class TrainedWeights:
    """The weights of a module that are trained, as a part of a checkpoint of the run."""

    def __init__(self, module: nn.Module) -> None:
        self.by_name = {
            name: each for name, each in module.named_parameters() if each.requires_grad
        }

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights; a change of these tensors changes the module."""
        return {name: each.detach() for name, each in self.by_name.items()}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> None:
        """Set the weights.  Raises `TuningError` for those of another module."""
        if state_dict.keys() != self.by_name.keys():
            raise TuningError("the checkpoint of the run has the weights of another model")
        for name, each in self.by_name.items():
            each.copy_(state_dict[name])


def open_tunable(
    bundle: Bundle[Path], checkpoint: str | Path | None, adapter_rank: int = 0, seed: int = 0
) -> Tunable:
    """Return what is trained of a served model.

    Its weights are read from its graph or from its checkpoint.  With an *adapter_rank* above 0,
    that is also the image encoder, by adapters whose first weights depend on *seed*.  Raises
    `TuningError` if that is not possible, and `ExportError` for an invalid checkpoint.
    """
    path, name = bundle.graphs["decoder"], bundle.info.name
    fixed = FixedEncoder(bundle.graphs["encoder"])
    model = without_stamp(onnx.load(path, load_external_data=False))
    if is_tiny_decoder(model):
        if adapter_rank:
            raise TuningError(
                f"the image encoder of model {name!r} is a graph without a checkpoint and cannot "
                "have adapters: tune it with --adapter-rank 0"
            )
        if checkpoint is not None:
            raise TuningError(f"the weights of model {name!r} are in its graph: omit --checkpoint")
        return Tunable(TinyDecoder(model), fixed)
    network = _network(bundle, checkpoint)
    decoder = NetworkDecoder(network)
    tuned = path.with_name(TUNED_FILE)
    if tuned.exists():
        decoder.restore(tuned)
    encoder = AdaptedEncoder(network, bundle, adapter_rank, seed) if adapter_rank else fixed
    return Tunable(decoder, encoder)


def _network(bundle: Bundle[Path], checkpoint: str | Path | None) -> Network:
    name, card = bundle.info.name, bundle.info.card
    if checkpoint is None:
        raise TuningError(
            f"the weights of model {name!r} are read from its checkpoint"
            f"{f', {card.source}' if card.source else ''}: name it with --checkpoint"
        )
    try:
        network, opened = open_network(checkpoint)
    except ExportError as error:
        raise TuningError(str(error)) from error
    if opened.sha256 != card.source_sha256:
        raise TuningError(f"model {name!r} was not exported from this checkpoint")
    return network
