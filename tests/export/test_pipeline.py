"""The whole export: its result, its errors, and that a failed export leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from samserve.cli.export_options import card_lines
from samserve.export import pipeline
from samserve.export.errors import ExportError
from samserve.export.images import SAMPLES
from samserve.export.onnx_export import export_decoder, export_encoder
from samserve.export.overlays import Overlays, TensorRt
from samserve.export.pipeline import ExportOptions, Precision, export
from samserve.export.sources.source import Source
from samserve.models.repository import discover

from tests import photos
from tests.export.config_check import contents, read_config, unstamped
from tests.export.conftest import MakePair
from tests.oracle.sam import FOREGROUND, MOBILE, SMALL, original

ONE = (SAMPLES / "coffee.jpg",)


@pytest.fixture(scope="module")
def checkpoint(pairs: MakePair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small SAM whose masks follow its prompts."""
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    path.write_bytes(pairs(SMALL, FOREGROUND).checkpoint.read_bytes())
    return path


Graphs = dict[str, onnx.ModelProto]
UseGraphs = Callable[[Graphs], None]


def traced(checkpoint: Path) -> Graphs:
    """Return the graphs of a checkpoint by role."""
    network = pipeline.open_network(checkpoint)[0]
    # The functions themselves: those of `pipeline` may be replaced.
    return {"encoder": export_encoder(network), "decoder": export_decoder(network)}


@pytest.fixture(scope="module")
def graphs(checkpoint: Path) -> Graphs:
    return traced(checkpoint)


@pytest.fixture
def use_graphs(monkeypatch: pytest.MonkeyPatch) -> UseGraphs:
    """A function that replaces tracing, which takes seconds, by graphs that are traced once."""

    def use(graphs: Graphs) -> None:
        for role, graph in graphs.items():
            # The export changes the graph that it gets.
            monkeypatch.setattr(pipeline, f"export_{role}", lambda _, graph=graph: deepcopy(graph))

    return use


@pytest.fixture
def _traced_once(graphs: Graphs, use_graphs: UseGraphs) -> None:
    use_graphs(graphs)


traced_once = pytest.mark.usefixtures("_traced_once")


def changed(path: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a checkpoint with modified values."""
    state = torch.load(path, weights_only=True)
    change(state)
    target = folder / "changed.pth"
    torch.save(state, target)
    return target


def weights(path: Path) -> dict[str, int]:
    """Return the number of weights of a model, by type."""
    found: dict[str, int] = {}
    for tensor in onnx.load(path).graph.initializer:
        name = TensorProto.DataType.Name(tensor.data_type)
        found[name] = found.get(name, 0) + int(np.prod(tensor.dims))
    return found


def test_the_card_has_the_source_and_the_parity_of_an_export(
    checkpoint: Path, tmp_path: Path
) -> None:
    steps: list[str] = []

    exported = export(checkpoint, ExportOptions(tmp_path, images=ONE), steps.append)

    (files,) = discover(tmp_path)
    card, parity = files.info.card, files.info.card.parity
    assert (exported.name, files.info.name) == ("small", "small")
    assert exported.digest == files.info.digest
    assert (card.variant, card.source, card.precision) == ("custom", "small.pth", "fp32")
    assert card.source_format == "original, float32"
    assert card.source_sha256 == exported.card.source_sha256
    assert parity is not None
    assert (parity.images, parity.prompts) == (1, 25)
    assert 0.999 < parity.mean_iou <= 1
    assert 0.99 < parity.worst_iou <= parity.mean_iou
    # Rounding the embedding to float16 must be visible, else nothing was compared.
    assert 1e-5 < parity.embedding_error < 1e-3
    assert len(steps) >= 4
    assert str(tmp_path) not in (tmp_path / "small_encoder" / "config.pbtxt").read_text()


@pytest.mark.slow
def test_fp16_applies_to_the_encoder_and_not_to_the_decoder(
    checkpoint: Path, tmp_path: Path
) -> None:
    full = export(checkpoint, ExportOptions(tmp_path, "full", check_parity=False))
    half = export(checkpoint, ExportOptions(tmp_path, "half", precision=Precision.FP16, images=ONE))

    wide, narrow = (weights(exported.folders[0] / "1" / "model.onnx") for exported in (full, half))
    assert wide["FLOAT"] > 500_000
    assert narrow["FLOAT16"] > 0.95 * wide["FLOAT"]
    # Norms and the image's normalisation remain in float32.
    assert 0 < narrow["FLOAT"] < 0.01 * wide["FLOAT"]
    decoders = [exported.folders[1] / "1" / "model.onnx" for exported in (full, half)]
    assert unstamped(decoders[0]) == unstamped(decoders[1])
    assert half.card.precision == "fp16"
    assert half.card.parity is not None
    assert half.card.parity.embedding_error > 3e-4
    assert full.digest != half.digest


@pytest.mark.slow
def test_fp16_that_overflows_fails_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Hidden values beyond 65504 mean nothing to float32 and are infinite in float16."""

    def raise_hidden_values(state: dict[str, Any]) -> None:
        for block in range(2):
            mlp = f"image_encoder.blocks.{block}.mlp"
            state[f"{mlp}.lin1.weight"] *= 200_000
            state[f"{mlp}.lin1.bias"] *= 0
            state[f"{mlp}.lin2.weight"] /= 200_000

    source = changed(checkpoint, tmp_path, raise_hidden_values)
    repository = tmp_path / "repository"

    export(source, ExportOptions(repository, "wide", images=ONE))
    before = contents(repository)
    with pytest.raises(ExportError, match=r"^parity check failed: .* in fp16 ") as error:
        export(source, ExportOptions(repository, "wide", precision=Precision.FP16, images=ONE))

    assert "\n" not in str(error.value)
    assert contents(repository) == before
    assert len(list(repository.iterdir())) == 2


@pytest.mark.slow
def test_weights_beyond_the_range_of_fp16_are_rejected(checkpoint: Path, tmp_path: Path) -> None:
    def raise_one(state: dict[str, Any]) -> None:
        state["image_encoder.blocks.1.attn.qkv.bias"][7] = 70_000.0

    source = changed(checkpoint, tmp_path, raise_one)

    with pytest.raises(ExportError, match=r"blocks\.1\.attn\.qkv\.bias .* range of float16"):
        export(source, ExportOptions(tmp_path / "repository", precision=Precision.FP16))
    assert not any((tmp_path / "repository").iterdir())


def test_masks_below_the_minimum_iou_fail(checkpoint: Path, tmp_path: Path) -> None:
    options = ExportOptions(tmp_path, precision=Precision.FP16, images=ONE, min_iou=1.0)

    with pytest.raises(ExportError, match=r"mean IoU of 0\.99\d+ .* below 1 \(worst 0\.\d+, 25"):
        export(checkpoint, options)
    assert not any(tmp_path.iterdir())


def test_a_wrong_export_fails_the_parity_check(
    checkpoint: Path, graphs: Graphs, use_graphs: UseGraphs, tmp_path: Path
) -> None:
    """Here the traced decoder is not that of the checkpoint."""
    other = pipeline.open_network(changed(checkpoint, tmp_path, _swap_masks))[0]
    use_graphs({**graphs, "decoder": export_decoder(other)})

    with pytest.raises(
        ExportError, match=r"^parity check failed: masks in fp32 have a mean IoU of 0\.[0-8]"
    ):
        export(checkpoint, ExportOptions(tmp_path / "repository", images=ONE))


def _swap_masks(state: dict[str, Any]) -> None:
    name = "mask_decoder.output_hypernetworks_mlps"
    for key in list(state):
        if key.startswith(f"{name}.1"):
            one, other = key, key.replace(f"{name}.1", f"{name}.3")
            state[one], state[other] = state[other].clone(), state[one].clone()


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two small SAMs with different weights, whose masks are all empty."""
    paths = [tmp_path_factory.mktemp("blank") / f"{seed}.pth" for seed in range(2)]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        state = original(SMALL).state_dict()
        # Masks are products of these two, which are large and of opposite signs.
        state["mask_decoder.output_upscaling.3.bias"] += 5
        for token in range(4):
            state[f"mask_decoder.output_hypernetworks_mlps.{token}.layers.2.bias"] -= 10
        torch.save(state, path)
    return paths


@pytest.fixture(scope="module")
def blank_graphs(blank: list[Path]) -> list[Graphs]:
    return [traced(path) for path in blank]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "encoder",
            r"^parity check failed: embeddings in fp32 differ .* by 1\.\de\+00, more than 0\.001",
        ),
        (
            "decoder",
            r"^parity check failed: masks of 25 prompts are nearly empty or full, and their",
        ),
    ],
)
def test_empty_masks_do_not_hide_a_wrong_export(
    blank: list[Path],
    blank_graphs: list[Graphs],
    use_graphs: UseGraphs,
    tmp_path: Path,
    part: str,
    message: str,
) -> None:
    own, other = blank_graphs
    use_graphs({**own, part: other[part]})

    with pytest.raises(ExportError, match=message):
        export(blank[0], ExportOptions(tmp_path / "repository", images=ONE))
    assert not any((tmp_path / "repository").iterdir())


def test_empty_masks_are_compared_by_their_logits(
    blank: list[Path], blank_graphs: list[Graphs], use_graphs: UseGraphs, tmp_path: Path
) -> None:
    steps: list[str] = []
    use_graphs(blank_graphs[0])

    exported = export(blank[0], ExportOptions(tmp_path, images=ONE), steps.append)

    parity = exported.card.parity
    assert parity is not None
    assert (parity.prompts, parity.mean_iou) == (0, 0)
    assert any(
        "25 prompts are nearly empty or full: compared by their logits" in step for step in steps
    )
    assert "no masks to compare" in card_lines(exported.card)[-1]


@pytest.mark.parametrize(
    "failure",
    [MemoryError(), RuntimeError("[enforce fail]\nDefaultCPUAllocator: can't allocate memory")],
)
def test_too_little_memory_is_one_line(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("samserve.export.parity.run_in_torch", fail)

    with pytest.raises(ExportError, match=r"^there is not enough memory for this export$"):
        export(checkpoint, ExportOptions(tmp_path / "repository", images=ONE))


def test_a_required_name_is_of_one_family() -> None:
    """SAM and SAM-HQ have variants of the same names."""
    source = Source("owner/name", "", "", "float32")
    options = ExportOptions(Path("models"), variant="sam_hq_vit_b")
    plain, hq = (
        SimpleNamespace(variant="vit_b", name=f"{each}_vit_b") for each in ("sam", "sam_hq")
    )

    pipeline._check_variant(hq, source, options)  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="owner/name has a model of the variant vit_b, not sam_h"):
        pipeline._check_variant(plain, source, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": Precision.FP16, "check_parity": False},
            "fp16 requires the parity check",
        ),
        ({"min_iou": 1.5}, "from 0 to 1, not 1.5"),
        ({"min_iou": float("nan")}, "from 0 to 1, not nan"),
        ({"name": "../up"}, "model name"),
        ({"variant": "vit_h"}, "small.pth has a model of the variant custom, not vit_h"),
        ({"images": (SAMPLES / "README.md",)}, "README.md cannot be read as an image"),
        ({"images": (Path("missing.jpg"),)}, "missing.jpg cannot be read as an image"),
    ],
)
def test_invalid_options_fail_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    repository = tmp_path / "repository"

    with pytest.raises(ExportError, match=message) as error:
        export(checkpoint, ExportOptions(repository, **options))
    assert "\n" not in str(error.value)
    assert not repository.exists()


def test_an_invalid_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    source, repository = tmp_path / "sam.pth", tmp_path / "repository"
    source.write_bytes(b"\x80\x02cposix\nsystem\n.")

    with pytest.raises(ExportError, match=r"^sam\.pth ") as error:
        export(source, ExportOptions(repository))
    assert "\n" not in str(error.value)
    assert not repository.exists()


@traced_once
def test_an_interrupted_export_keeps_the_existing_models(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ExportOptions(tmp_path, check_parity=False)
    export(checkpoint, options)
    before = contents(tmp_path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "write_configs", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, options)

    assert contents(tmp_path) == before
    assert len(list(tmp_path.iterdir())) == 2


EXPORT = """
import sys, torch
from pathlib import Path
from samserve.export.pipeline import ExportOptions, Precision, export
torch.set_num_threads(int(sys.argv[3]))
for precision in Precision:
    options = ExportOptions(
        Path(sys.argv[2]), precision.value, precision=precision, images=(Path(sys.argv[4]),)
    )
    print(export(sys.argv[1], options).digest)
"""


@pytest.mark.slow
def test_exports_are_reproducible_across_processes(checkpoint: Path, tmp_path: Path) -> None:
    """For any hash seed, number of threads, and path and name of the checkpoint."""
    copy = tmp_path / "elsewhere" / "other.pth"
    copy.parent.mkdir()
    copy.write_bytes(checkpoint.read_bytes())
    printed = []
    for number, source in enumerate([checkpoint, copy]):
        arguments = [source, tmp_path / str(number), 1 + number, ONE[0]]
        command = [sys.executable, "-W", "ignore", "-c", EXPORT, *map(str, arguments)]
        seeded = ["env", f"PYTHONHASHSEED={number}", *command]
        ended = subprocess.run(seeded, capture_output=True, text=True, check=True)
        printed.append(ended.stdout)

    models = [
        {name: data for name, data in contents(tmp_path / str(number)).items() if "onnx" in name}
        for number in range(2)
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0].split())) == 2
    assert len(models[0]) == 4
    assert models[0] == models[1]


@traced_once
def test_overlays_set_gpus_and_tensorrt(checkpoint: Path, tmp_path: Path) -> None:
    overlays = Overlays(gpus=(0, 2), tensorrt=TensorRt.FP16)

    export(checkpoint, ExportOptions(tmp_path, "toy", overlays=overlays, check_parity=False))

    encoder, decoder = (read_config(tmp_path / f"toy_{role}") for role in ("encoder", "decoder"))
    for config, count in ((encoder, 1), (decoder, 2)):
        (group,) = config.instance_group
        assert (group.count, group.kind, list(group.gpus)) == (count, group.KIND_GPU, [0, 2])
    (accelerator,) = encoder.optimization.execution_accelerators.gpu_execution_accelerator
    parameters = accelerator.parameters
    assert (accelerator.name, parameters["precision_mode"]) == ("tensorrt", "FP16")
    assert parameters["trt_engine_cache_enable"] == "1"
    assert not decoder.HasField("optimization")


@traced_once
@pytest.mark.parametrize(
    ("cores", "encoder_threads", "decoder_threads"),
    # Triton runs two decoder inferences concurrently.
    [(0, "", "1"), (1, "1", "1"), (8, "8", "4")],
)
def test_threads_of_an_inference_on_a_cpu(
    checkpoint: Path, tmp_path: Path, cores: int, encoder_threads: str, decoder_threads: str
) -> None:
    overlays = Overlays(cpu_cores=cores)

    export(checkpoint, ExportOptions(tmp_path, "toy", overlays=overlays, check_parity=False))

    for role, threads in (("encoder", encoder_threads), ("decoder", decoder_threads)):
        parameters = read_config(tmp_path / f"toy_{role}").parameters
        assert parameters["intra_op_thread_count"].string_value == threads


@pytest.mark.slow
def test_given_images_are_used_for_the_parity_check(checkpoint: Path, tmp_path: Path) -> None:
    files = []
    for number, data in enumerate(photos.files()[:2]):
        files.append(tmp_path / f"{number}.jpg")
        files[-1].write_bytes(data)

    exported = export(checkpoint, ExportOptions(tmp_path / "repository", images=tuple(files)))

    assert exported.card.parity is not None
    assert exported.card.parity.images == 2
    assert 45 <= exported.card.parity.prompts <= 50  # some masks may be nearly empty


@pytest.mark.slow
def test_a_mobile_sam_is_identified(tmp_path: Path) -> None:
    torch.save(original(MOBILE).state_dict(), tmp_path / "weights.pt")

    exported = export(
        tmp_path / "weights.pt",
        ExportOptions(tmp_path / "repository", variant="mobile", check_parity=False),
    )

    assert exported.name == "mobile_sam"
    assert exported.card.variant == "mobile"
