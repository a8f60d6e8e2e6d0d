"""Mask decoders that can be tuned: that of `sam_tiny`, and those of exported checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samserve.export.families.base import Network
from samserve.export.onnx_export import export_decoder
from samserve.export.onnx_file import parsed
from samserve.export.tiny.graphs import LOGIT_SCALE, decoder_onnx
from samserve.export.tiny.layers import channels_last
from samserve.export.tiny.reading import read_decoder
from samserve.models.digest import TUNED_FILE
from samserve.tuning import interactive, losses
from samserve.tuning.errors import TuningError
from samserve.tuning.interactive import Interaction
from samserve.tuning.losses import Recipe
from samserve.tuning.weight_files import read_weights

_CLICKED = Interaction(share=1, rounds=2, another=0.5, all_masks=1.0, dropped=0.0, weight=1.0)
"""All prompts are corrected by clicks, with the previous logits, as in SAM's training."""


class TunableDecoder(ABC):
    """A decoder in PyTorch that computes what the served one does.

    ``module`` has all of its weights; those that are trained require gradients.  ``recipe`` and
    ``interaction`` are those of its family's training, ``rate`` is the default learning rate.
    """

    module: nn.Module
    recipe: Recipe
    interaction: Interaction
    rate: float
    autocast: bool = False
    """Whether products and convolutions are computed in bfloat16, in which they are faster."""

    @abstractmethod
    def decode(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return logits ``[B,P,T,L,L]`` and predicted IoU ``[B,P,T]`` of ``module`` or a copy.

        ``embedding`` are the tensors in the order of the graph, ``prompts`` coordinates, labels and
        mask prompts.  Logits and masks are on the scale of training.
        """

    def served(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the same as `decode`, as the exported graph does, on the scale of the service."""
        return self.decode(module, embedding, prompts)

    @abstractmethod
    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """Return the exported graph with the weights of a module."""

    def parameters(self) -> dict[str, str]:
        """Return further parameters of the model's configuration."""
        return {}

    @abstractmethod
    def keep(self, module: nn.Module, folder: Path) -> None:
        """Write what is needed to tune the decoder again, beside its graph in *folder*."""

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the weights that are trained, by name."""
        return (each for each in self.module.named_parameters() if each[1].requires_grad)


class TinyDecoder(TunableDecoder):
    """The decoder of `sam_tiny`, whose weights are read back from the graph; all are trained."""

    recipe, interaction = losses.TINY, interactive.TINY
    rate = 1e-3
    autocast = True

    def __init__(self, model: onnx.ModelProto) -> None:
        self.module = channels_last(read_decoder(model))

    def served(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `TunableDecoder.served`."""
        coords, labels, masks = prompts
        logits, iou = self.decode(module, embedding, (coords, labels, masks / LOGIT_SCALE))
        return logits * LOGIT_SCALE, iou

    def decode(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `TunableDecoder.decode`."""
        result: tuple[Tensor, Tensor] = module(embedding[0].float(), *prompts)
        return result

    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """See `TunableDecoder.graph`."""
        return parsed(decoder_onnx(module))  # type: ignore[arg-type]  # a copy of `module`

    def keep(self, module: nn.Module, folder: Path) -> None:
        """Write nothing: the graph has all weights."""


class NetworkDecoder(TunableDecoder):
    """The mask decoder of a checkpoint.

    The prompt encoder stays: it knows points, boxes and masks already, and a model that reads them
    in the same way keeps more of what it could (as in Ma et al., "MedSAM", 2024).  So do parts of
    the decoder whose outputs belong to the embedding.
    """

    recipe, interaction = losses.PAPER, _CLICKED
    rate = 1e-4

    def __init__(self, network: Network) -> None:
        self.network = network
        self.module = network.decoder_graph().eval()
        fixed = {id(each) for part in network.encoder_modules() for each in part.parameters()}
        for name, parameter in self.module.named_parameters():
            prompts = name.startswith(f"{network.prompt_encoder}.")
            parameter.requires_grad_(not prompts and id(parameter) not in fixed)

    def decode(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `TunableDecoder.decode`.

        A fifth token, that of SAM-HQ, is added to the multimask output that is predicted as the
        best, as it is served.
        """
        logits, iou = self.served(module, embedding, prompts)
        if logits.shape[2] > losses.PLAIN_TOKENS:
            best = 1 + iou[:, :, 1 : losses.PLAIN_TOKENS].argmax(2)
            index = best[:, :, None, None, None].expand(-1, -1, 1, *logits.shape[3:])
            added = logits[:, :, losses.PLAIN_TOKENS :] + logits.gather(2, index)
            logits = torch.cat([logits[:, :, : losses.PLAIN_TOKENS], added], 2)
        return logits, iou

    def served(
        self, module: nn.Module, embedding: Sequence[Tensor], prompts: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `TunableDecoder.served`."""
        every = torch.full((len(prompts[0]), self.network.family.mask_tokens), -torch.inf)
        logits, iou = module(*(each.float() for each in embedding), *prompts, every)[:2]
        return logits, iou

    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """See `TunableDecoder.graph`."""
        return export_decoder(self.network, module)

    def parameters(self) -> dict[str, str]:
        """See `TunableDecoder.parameters`."""
        return dict(self.network.parameters)

    def keep(self, module: nn.Module, folder: Path) -> None:
        """See `TunableDecoder.keep`."""
        names = {name for name, _ in self.trained()}
        state = {
            name: value.contiguous().clone()
            for name, value in module.state_dict().items()
            if name in names
        }
        save_file(state, folder / TUNED_FILE)

    def restore(self, file: Path) -> None:
        """Load the weights that `keep` has written.  Raises `TuningError`."""
        state = read_weights(file)
        shapes = {name: weights.shape for name, weights in self.trained()}
        if shapes != {name: weights.shape for name, weights in state.items()}:
            raise TuningError(f"{file} has the weights of another model than the checkpoint")
        self.module.load_state_dict(state, strict=False)
