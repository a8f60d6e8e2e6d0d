"""Low-rank adapters of attention, by the library peft."""

from __future__ import annotations

import copy
import re
from typing import TypeVar

import torch
from torch import Tensor, nn

from samserve.tuning.errors import TuningError

Module = TypeVar("Module", bound=nn.Module)

PROJECTIONS = r"(.+\.)?attn\.(qkv|proj)"
"""Names of the projections of attention in the image encoders of all families."""


def add_adapters(module: nn.Module, rank: int, seed: int) -> None:
    """Add an adapter to each projection of attention, which changes no output yet.

    Only the adapters require gradients then.  Source: Hu et al., "LoRA" (2022), with a scale of 1,
    as Zhang and Liu do for SAM ("SAMed", 2023).  Raises `TuningError` if there is no attention,
    and `ModuleNotFoundError` without peft.
    """
    # Imported here: it is slow, and only needed with adapters.
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415

    if not any(re.fullmatch(PROJECTIONS, name) for name, _ in module.named_modules()):
        raise TuningError(
            "this image encoder has no attention to add adapters to: tune it with --adapter-rank 0"
        )
    config = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=PROJECTIONS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, module)


def merged_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the sums of the adapted weights and their adapters, under their names before."""
    from peft.tuners.lora import LoraLayer  # noqa: PLC0415  (see `add_adapters`)

    weights = {}
    for name, layer in copy_sharing_frozen(module).named_modules():
        if isinstance(layer, LoraLayer):
            # A safe merge makes a new tensor, so that those of `module` do not change.
            layer.merge(safe_merge=True)
            weights[f"{name}.weight"] = layer.get_base_layer().get_parameter("weight").detach()
    return weights


def copy_sharing_frozen(module: Module) -> Module:
    """Return a copy that shares the memory of what is not trained: an encoder may have gigabytes.

    Gradients are required as in *module*.
    """
    frozen = [each for each in module.parameters() if not each.requires_grad]
    memo: dict[int, object] = {id(each): each.detach() for each in module.buffers()}
    memo |= {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in frozen}
    return copy.deepcopy(module, memo)
