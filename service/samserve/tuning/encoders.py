"""The image encoder of a run: as it is served, or with adapters that are trained and merged."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import onnx
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from samserve.export.families.base import Network
from samserve.export.half import halve
from samserve.export.onnx_export import export_encoder
from samserve.export.parity import BOUNDS
from samserve.models.digest import TUNED_FILE
from samserve.models.repository import Bundle
from samserve.tuning import adapters
from samserve.tuning.embeddings import Embeddings, Pixels, Source
from samserve.tuning.errors import TuningError
from samserve.tuning.weight_files import read_weights


class TunableEncoder(ABC):
    """Where the embeddings of training steps come from, and which encoder a tuned model has.

    ``module`` computes the tensors of an embedding, in the order of the graph, from those of
    `source`.  ``fixed`` is whether the new model has the encoder of the base.  ``precision`` is
    that of the bounds of the parity check, ``summary`` names what is trained, if anything is.
    """

    module: nn.Module
    fixed: bool
    precision: str
    summary: str

    @abstractmethod
    def source(self, embeddings: Embeddings) -> Source:
        """Return what steps begin with; *embeddings* are those of a model with this encoder."""

    @abstractmethod
    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """Return the exported graph with the weights of a copy of ``module``."""

    @abstractmethod
    def keep(self, module: nn.Module, folder: Path) -> None:
        """Write what is needed to tune the encoder again, beside its graph in *folder*."""


class Given(nn.Module):
    """Returns its inputs: the tensors of embeddings that have been computed."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the inputs."""
        return tensors


class FixedEncoder(TunableEncoder):
    """The encoder of the base, of which training needs embeddings only."""

    fixed, precision, summary = True, "fp32", ""

    def __init__(self, path: Path) -> None:
        self._path, self.module = path, Given()

    def source(self, embeddings: Embeddings) -> Source:
        """See `TunableEncoder.source`."""
        return embeddings

    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """See `TunableEncoder.graph`."""
        return onnx.load(self._path)

    def keep(self, module: nn.Module, folder: Path) -> None:
        """See `TunableEncoder.keep`."""
        tuned = self._path.with_name(TUNED_FILE)
        if tuned.exists():
            shutil.copyfile(tuned, folder / TUNED_FILE)


class Uncast(nn.Module):
    """An encoder's graph without the tensors in float16."""

    def __init__(self, graph: nn.Module, tensors: int) -> None:
        super().__init__()
        self.graph, self.tensors = graph, tensors

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of an embedding in float32, which have exact gradients."""
        outputs: tuple[Tensor, ...] = self.graph(*inputs)
        return outputs[self.tensors :]


class AdaptedEncoder(TunableEncoder):
    """The encoder of a checkpoint with adapters; it runs in every step."""

    fixed = False

    def __init__(self, network: Network, base: Bundle[Path], rank: int, seed: int) -> None:
        self._network = network
        tuned = base.graphs["encoder"].with_name(TUNED_FILE)
        if tuned.exists():
            self._load(read_weights(tuned), str(tuned))
        self.precision = base.info.card.precision or "fp32"
        if self.precision not in BOUNDS:
            raise TuningError(f"an image encoder in {self.precision} cannot be tuned")
        self.summary = f", with adapters of rank {rank} in the image encoder"
        # A copy: the network stays as `export_encoder` expects it.
        graph = adapters.copy_sharing_frozen(network.encoder_graph())
        adapters.add_adapters(graph, rank, seed)
        self.module = Uncast(graph, len(network.shapes.embedding)).eval()

    def source(self, embeddings: Embeddings) -> Source:
        """See `TunableEncoder.source`."""
        return Pixels(embeddings.info)

    def graph(self, module: nn.Module) -> onnx.ModelProto:
        """See `TunableEncoder.graph`.  The network has the merged weights then."""
        self._load(_merged(module), "the merged encoder")
        if self.precision == "fp16":
            for each in self._network.encoder_modules():
                halve(each)
        return export_encoder(self._network)

    def keep(self, module: nn.Module, folder: Path) -> None:
        """See `TunableEncoder.keep`."""
        save_file(
            {name: value.contiguous().clone() for name, value in _merged(module).items()},
            folder / TUNED_FILE,
        )

    def _load(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Replace weights of the network, not their content, which the adapted copy shares."""
        graph = self._network.encoder_graph()
        known = dict(graph.named_parameters())
        for name, value in weights.items():
            if name not in known or known[name].shape != value.shape:
                raise TuningError(f"{source} has the weights of another model than the checkpoint")
            owner, _, attribute = name.rpartition(".")
            parameter = nn.Parameter(value.to(torch.float32), requires_grad=False)
            setattr(graph.get_submodule(owner), attribute, parameter)


def _merged(module: nn.Module) -> dict[str, Tensor]:
    assert isinstance(module, Uncast)
    return adapters.merged_weights(module.graph)
