"""Sources of weights: equal tensors from every format, an error of one line for anything else."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save, save_file
from samserve.export.errors import ExportError
from samserve.export.families.base import Naming
from samserve.export.families.sam1 import sam_from
from samserve.export.families.sam1_names import original_names
from samserve.export.sources import files, identification, source
from samserve.export.sources.files import read_tensors
from samserve.export.sources.names import is_hub_name
from samserve.export.sources.source import Selection, Source, open_source
from torch import Tensor
from torch.nn import Parameter

from tests.export.hub import COMMIT, Hub, connect, running_hub
from tests.oracle import huggingface
from tests.oracle.sam import SMALL as SMALL_SAM
from tests.support.cases import check_all

State = dict[str, Tensor]

SMALL = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.ones(30)}
NO_TENSORS = (
    "sam.pth is corrupt or contains something other than tensors; no code in it was run; "
    "if you trust it, load it in PyTorch and save its state dict alone"
)


class Calls:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced: tuple[Any, ...] = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert "weights_only" not in text
    assert len(text) < 600
    return text


def error_of(action: Callable[[], object]) -> str:
    """Return the text of the error that an action raises."""
    with pytest.raises(ExportError) as error:
        action()
    return one_line(error.value)


def read_error(path: Path) -> str:
    return error_of(lambda: read_tensors(path))


def pth(folder: Path, content: object, *, zipped: bool = True, name: str = "sam.pth") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def directory(folder: Path) -> Path:
    """Create a directory with the configuration of a SAM, without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "sam"}))
    return folder


def index(folder: Path, format_: str, shards: dict[str, Any]) -> None:
    content = json.dumps({"metadata": {}, "weight_map": shards})
    (folder / f"{format_}.index.json").write_text(content)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype is value.dtype, name
        assert torch.equal(found[name], value), name


# --- the same weights in every format ----------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """A SamModel of the library with random weights, and the same under the original names."""

    library: huggingface.SamModel
    state: State


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(5)
    library = huggingface.model(SMALL_SAM, 4 * SMALL_SAM.width)
    for parameter in library.parameters():
        parameter.copy_(torch.randn_like(parameter))
    state = {huggingface.original_name(name): value for name, value in library.state_dict().items()}
    return Weights(library, state)


@pytest.fixture(scope="module")
def forms(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every supported format."""
    folder = tmp_path_factory.mktemp("forms")
    state, named = weights.state, weights.library.state_dict()
    save_file(state, folder / "original.safetensors")
    weights.library.save_pretrained(folder / "directory")
    weights.library.save_pretrained(folder / "sharded", max_shard_size="3MB")
    # Earlier versions of the library wrote these, with both names of the tied tensor.
    shutil.copytree(folder / "directory", folder / "bin")
    (folder / "bin" / "model.safetensors").unlink()
    torch.save(named, folder / "bin" / "pytorch_model.bin")
    halves = directory(folder / "sharded_bin")
    names = sorted(named)
    shards = {name: f"pytorch_model-{number % 2 + 1:05}.bin" for number, name in enumerate(names)}
    for shard in set(shards.values()):
        torch.save({name: named[name] for name in names if shards[name] == shard}, halves / shard)
    index(halves, "pytorch_model.bin", shards)
    parameters = OrderedDict((key, Parameter(value)) for key, value in state.items())
    return {
        "pth": pth(folder, state),
        "legacy": pth(folder, state, zipped=False, name="legacy.pth"),
        "library's names": pth(folder, named, name="named.pt"),
        "model": pth(folder, {"model": state, "epoch": 3, "args": {"lr": 0.1}}, name="wrapped.pt"),
        "state_dict": pth(folder, {"state_dict": named, "model": {"type": "sam"}}, name="sd.pt"),
        "nested": pth(folder, {"state": {"net": {"state_dict": state}}, "epoch": 3}, name="n.pt"),
        "parameters": pth(folder, parameters, name="parameters.pth"),
        "safetensors": folder / "original.safetensors",
        "directory": folder / "directory",
        "sharded directory": folder / "sharded",
        "bin directory": folder / "bin",
        "sharded bin directory": halves,
    }


def opened(spec: str | Path, revision: str | None = None) -> tuple[State, Naming, Source]:
    """Return the tensors under their original names, the naming scheme and the source."""
    checkpoint, source = open_source(spec, revision)
    identification.of_names(checkpoint.tensors)
    naming, state = original_names(checkpoint.tensors)
    return state, naming, source


def test_every_format_gives_the_same_tensors(weights: Weights, forms: dict[str, Path]) -> None:
    def check(form: str) -> None:
        state, naming, found = opened(forms[form])

        assert_same(state, weights.state)
        of_the_library = "directory" in form or form in ("library's names", "state_dict")
        assert naming is (Naming.TRANSFORMERS if of_the_library else Naming.ORIGINAL)
        assert (found.name, found.revision, found.dtype) == (forms[form].name, "", "float32")
        assert not any(value.requires_grad for value in state.values())

    check_all(check, {form: form for form in forms})
    assert len(list(forms["sharded directory"].glob("model-*.safetensors"))) > 3
    assert_same(dict(sam_from(opened(forms["pth"])[0]).state_dict()), weights.state)


def test_the_format_is_detected_by_content_and_not_by_suffix(tmp_path: Path) -> None:
    for name in ("sam.bin", "sam.safetensors", "sam"):
        for container, write in BYTES.items():
            (tmp_path / name).write_bytes(write(tmp_path / container))
            assert_same(read_tensors(tmp_path / name), SMALL)


def test_the_checksum_covers_the_files_that_are_read(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(forms["sharded directory"], tmp_path / "copy")
    names = sorted(["config.json", *(path.name for path in folder.glob("model-*.safetensors"))])
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    lines = "".join(f"{name}\0{sum_}\n" for name, sum_ in zip(names, sums, strict=True))

    before = open_source(folder)[1].sha256
    (folder / "README.md").write_text("not read")
    unrelated = open_source(folder)[1].sha256
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    changed = open_source(folder)[1].sha256

    assert before == hashlib.sha256(lines.encode()).hexdigest() == unrelated
    assert changed != before
    path = forms["pth"]
    assert open_source(path)[1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_name_of_a_source_is_not_a_path(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = shutil.copy(forms["safetensors"], tmp_path / "sam\n\x1b[31m.safetensors")
    monkeypatch.chdir(forms["directory"])

    for spelling in ("{0}", "{0}/", "{0}/.", "{0}/../directory", "."):
        assert open_source(spelling.format(forms["directory"]))[1].name == "directory"
    assert open_source(hostile)[1].name == "sam??[31m.safetensors"


def test_types_are_kept_and_the_narrowest_is_reported(tmp_path: Path) -> None:
    prefix = "image_encoder.layers.0"
    content = {
        f"{prefix}.a.weight": torch.ones(3).double(),
        f"{prefix}.b.weight": torch.ones(3).bfloat16(),
        f"{prefix}.bn.num_batches_tracked": torch.tensor(7),
    }
    save_file(content, tmp_path / "sam.safetensors")

    for path in (pth(tmp_path, content), tmp_path / "sam.safetensors"):
        state, _, found = opened(path)
        assert_same(state, content)
        assert found.dtype == "bfloat16"


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["value", "other entry", "key"])
def test_code_is_rejected_and_not_run(tmp_path: Path, position: str) -> None:
    trace = tmp_path / "trace"
    code = Calls(Path.touch, trace)
    content: dict[str, Any] = {
        "value": {**SMALL, "b": code},
        "other entry": {"state_dict": SMALL, "optimizer": [code]},
        "key": {"model": {**SMALL, ("b", code): torch.ones(1)}},
    }[position]
    alone, legacy = pth(tmp_path, content), pth(tmp_path, content, zipped=False, name="legacy.pth")
    shard = directory(tmp_path / "shard")
    index(shard, "pytorch_model.bin", dict.fromkeys(SMALL, "one.bin"))
    pth(shard, content, name="one.bin")
    bare = tmp_path / "bare.pth"
    bare.write_bytes(pickle.dumps(content))

    specs = {"sam.pth": alone, "legacy.pth": legacy, "one.bin": shard, "bare.pth": bare}
    for name, spec in specs.items():
        text = error_of(lambda spec=spec: open_source(spec))
        assert text == NO_TENSORS.replace("sam.pth", name)
    assert not trace.exists()

    torch.load(alone, weights_only=False)
    assert trace.exists()


def test_a_torchscript_program_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "sam.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"sam/{name}", b"3\n")

    assert read_error(path) == "sam.pt is a TorchScript program; no code in it was run"


@pytest.mark.filterwarnings("ignore")  # some of these are prototypes
def test_a_tensor_that_is_not_a_weight_is_named(tmp_path: Path) -> None:
    cases = [
        (
            "has type float8_e4m3fn, which is not a type of weights",
            torch.ones(3).to(torch.float8_e4m3fn),
        ),
        ("has type int64, which is not a type of weights", torch.ones(3, dtype=torch.int64)),
        ("has values that are not finite in float32", torch.tensor([1.0, float("nan")])),
        ("has values that are not finite in float32", torch.tensor([1e300], dtype=torch.float64)),
        ("declares more values than it contains", torch.ones(1).expand(1 << 40)),
        ("is not a dense tensor", torch._neg_view(torch.ones(3))),
        ("is not a dense tensor", torch.eye(3).to_sparse()),
        ("is not a dense tensor", torch.eye(3).to_sparse_csr()),
        ("is not a dense tensor", torch.empty(3, device="meta")),
        ("has no values", torch.zeros(0, 3)),
    ]

    for message, value in cases:
        path = pth(tmp_path, {**SMALL, "mask_decoder.x": value})
        assert read_error(path) == f"sam.pth: mask_decoder.x {message}"


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_tensors_larger_than_the_file_are_rejected(tmp_path: Path) -> None:
    """They would contain uninitialised memory."""
    rebuild, storage = torch._utils._rebuild_tensor_v2, torch.ones(3)._typed_storage()
    larger = Calls(rebuild, storage, 0, (1 << 20,), (1,), False, OrderedDict())
    zipped = pth(tmp_path, {"a.weight": larger})
    legacy = pth(tmp_path, {"a.weight": torch.ones(1 << 16)}, zipped=False, name="legacy.pth")
    stream = io.BytesIO(legacy.read_bytes())
    for _ in range(4):  # the fifth pickle lists the storages that follow
        list(pickletools.genops(stream))
    legacy.write_bytes(stream.getvalue()[: stream.tell()] + pickle.dumps([], 2))

    assert read_error(zipped) == "sam.pth is corrupt or incomplete"
    assert read_error(legacy) == "legacy.pth declares more values than it contains"


def test_training_state_next_to_weights_is_accepted(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": {"image_encoder.blocks.0.norm1.weight": torch.ones(3)},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 4]).state_dict(),
        "args": {"lr": 1e-4, "size": (1024, 1024), "dtype": torch.bfloat16, "best": None},
    }

    for zipped in (True, False):
        assert_same(read_tensors(pth(tmp_path, content, zipped=zipped)), content["model"])


def test_the_weights_under_a_key_are_used(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in SMALL.items()}
    nested = {"ema": {"0": 3}, "ema.0": {"net": other}, "net": SMALL}
    path = pth(tmp_path, {"model": SMALL, "ema": other, "state": nested, "epoch": 3})

    expected = {"model": SMALL, "ema": other, "state.ema.0.net": other, "state.net": SMALL}
    for key, state in expected.items():
        assert_same(read_tensors(path, key), state)
        assert_same(dict(open_source(path, selection=Selection(key))[0].tensors), state)


def test_several_networks_in_a_file_are_reported_with_the_option_that_chooses(
    tmp_path: Path,
) -> None:
    path = pth(tmp_path, {"ema": SMALL, "training": {"model": SMALL}, "epoch": 3})

    assert read_error(path) == (
        "sam.pth has tensors under 'ema' and 'training.model': choose with --key"
    )


def test_a_key_without_weights_is_reported(tmp_path: Path) -> None:
    content = {"model": SMALL, "training": {"epoch": 3, "lr\n": 0.1}, 5: SMALL}
    files = (pth(tmp_path, content), pth(tmp_path, content, zipped=False, name="legacy.pth"))
    save_file(SMALL, tmp_path / "sam.safetensors")
    cases = {
        "ema": "has no key 'ema'; it has 'model', 'training'",
        "training": "has something other than named tensors under 'training'",
        "training.epoch": "has something other than named tensors under 'training.epoch'",
        "training.model": "has no key 'training.model'; under 'training' it has 'epoch', 'lr?'",
        "training.epoch.x": "has no key 'training.epoch.x'; under 'training.epoch' it has none",
        "model.a.weight": "has something other than named tensors under 'model.a.weight'",
    }

    for key, message in cases.items():
        for path in files:
            text = error_of(lambda path=path, key=key: read_tensors(path, key))
            assert text == f"{path.name} {message}"
    text = error_of(lambda: read_tensors(tmp_path / "sam.safetensors", "model"))
    assert text == "sam.safetensors has no key 'model'; it has 'a.bias', 'a.weight'"


def test_only_the_tensors_with_a_prefix_are_used(tmp_path: Path) -> None:
    other = {f"ema.net.{name}": value + 1 for name, value in SMALL.items()}
    path = pth(tmp_path, {**other, **{f"net.{name}": value for name, value in SMALL.items()}})
    wrapped = pth(tmp_path, {"weights": torch.load(path), "ema": SMALL}, name="wrapped.pth")
    save_file(torch.load(path), tmp_path / "sam.safetensors")

    for prefix in ("net", "net."):
        for spec in (path, tmp_path / "sam.safetensors"):
            found, _ = open_source(spec, selection=Selection(prefix=prefix))
            assert_same(dict(found.tensors), SMALL)
    both, _ = open_source(wrapped, selection=Selection("weights", "ema.net"))
    assert torch.equal(both.tensors["a.bias"], SMALL["a.bias"] + 1)
    text = error_of(lambda: open_source(path, selection=Selection(prefix="ne")))
    assert text.startswith("no name begins with 'ne.'; the names are ema.net.a.weight, ")


def test_dictionaries_that_contain_themselves_are_rejected(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["again"] = content

    assert read_error(pth(tmp_path, content)) == (
        "sam.pth contains something other than named tensors"
    )


def test_files_beyond_the_limits_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many names of one storage need little disk space; each single shard is within the limit."""
    one = torch.ones(1 << 16)
    views = pth(tmp_path, {str(number): one for number in range(5)})
    large = pth(tmp_path, {"a": torch.ones(1 << 18)}, name="large.pth")
    many = pth(tmp_path, {str(number): torch.ones(1) for number in range(50)}, name="many.pth")
    folder = directory(tmp_path / "folder")
    index(folder, "pytorch_model.bin", {str(number): f"{number}.bin" for number in range(5)})
    for number in range(5):
        pth(folder, {str(number): one}, name=f"{number}.bin")
    save_file({str(number): torch.ones(1) for number in range(51)}, tmp_path / "many.safetensors")
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(files, "MAX_ENTRIES", 50)

    assert views.stat().st_size < 1 << 19
    assert read_error(views) == "sam.pth has more than 0 GiB of weights"
    assert error_of(lambda: open_source(folder)) == "folder has more than 0 GiB of weights"
    assert read_error(large) == "large.pth is larger than 0 GiB"
    assert read_error(many) == "many.pth has more than 50 entries"
    many = tmp_path / "many.safetensors"
    assert read_error(many) == "many.safetensors has more than 50 tensors"


def test_attributes_that_hide_methods_are_not_called(tmp_path: Path) -> None:
    value = torch.arange(3.0)
    value.numel = value.detach = 5  # type: ignore[method-assign, assignment]
    mapping = Calls(OrderedDict, [("x", value)])
    mapping.reduced = (*mapping.reduced, {"items": 5, "get": 5, "keys": 5, "values": 5})

    assert_same(read_tensors(pth(tmp_path, mapping)), {"x": torch.arange(3.0)})


def test_contents_other_than_named_tensors_are_rejected(tmp_path: Path) -> None:
    cases: list[object] = [
        *([1, 2], {}, {"epoch": 3}, torch.ones(3), "sam", {**SMALL, "epoch": 3}),
        *({**SMALL, 3: torch.ones(1)}, {"model": {**SMALL, "epoch": 3}}),
        {"a": {"b": {"c": {"d": SMALL}}}},
        {"optimizer": {"exp_avg": torch.ones(3), "step": torch.ones(1)}},
    ]

    for content in cases:
        text = read_error(pth(tmp_path, content))
        assert text == "sam.pth contains something other than named tensors", content
    assert read_error(pth(tmp_path, torch.nn.Linear(2, 2))) == NO_TENSORS


def test_control_characters_in_names_are_replaced(tmp_path: Path) -> None:
    name = "a\nError: \x1b[31mfake" + "x" * 1000
    path = pth(tmp_path, {name: torch.tensor([float("nan")])}, name="sam\n.pth")

    assert read_error(path).startswith("sam?.pth: a?Error: ?[31mfakexxx")


def test_no_warnings_are_emitted(tmp_path: Path) -> None:
    """PyTorch warns about other pickle protocols, which users of the export cannot change."""
    torch.save(SMALL, tmp_path / "sam.pth", pickle_protocol=3)

    assert_same(read_tensors(tmp_path / "sam.pth"), SMALL)


# --- corruption ----------------------------------------------------------------------------------

BYTES: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda folder: pth(folder, SMALL).read_bytes(),
    "legacy": lambda folder: pth(folder, SMALL, zipped=False).read_bytes(),
    "safetensors": lambda _: save(SMALL),
}


@pytest.mark.parametrize("container", BYTES)
def test_truncated_files_are_rejected(tmp_path: Path, container: str) -> None:
    content = BYTES[container](tmp_path)
    path = tmp_path / "truncated.pth"

    for length in [*range(0, len(content), 23), *range(len(content) - 40, len(content))]:
        path.write_bytes(content[:length])
        text = read_error(path)
        assert text.startswith("truncated.pth "), length
        assert any(word in text for word in ("empty", "neither", "corrupt")), text


def test_a_flipped_bit_of_a_tensor_is_detected(tmp_path: Path) -> None:
    content = BYTES["zip"](tmp_path)
    first = content.index(SMALL["a.weight"].numpy().tobytes())
    path = tmp_path / "flipped.pth"

    for position in range(first, first + SMALL["a.weight"].nbytes, 101):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        assert "does not match its checksum" in read_error(path)


def test_compressed_and_overlapping_archives_are_rejected(tmp_path: Path) -> None:
    valid = pth(tmp_path, SMALL)
    bomb, overlapping = tmp_path / "bomb.pth", tmp_path / "overlapping.pth"
    with zipfile.ZipFile(valid) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
        for entry in archive.infolist():
            to.writestr(entry.filename, archive.read(entry))
    with zipfile.ZipFile(overlapping, "w") as archive:
        archive.writestr("archive/data/0", bytes(1 << 16))
        first = archive.infolist()[0]
        for number in range(100):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            for key in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(again, key, getattr(first, key))
            archive.filelist.append(again)

    assert read_error(bomb) == "bomb.pth is a compressed archive, not a checkpoint"
    assert read_error(overlapping) == "overlapping.pth is corrupt or incomplete"


def test_other_contents_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    cases = {
        b"": "is empty",
        b"version https://git-lfs.github.com/spec/v1": "is neither a PyTorch file nor",
        struct.pack("<Q", 1 << 60) + b"{}": "is corrupt or incomplete",
        struct.pack("<Q", 8) + b"{broken}": "is corrupt or incomplete",
        b"PK\x03\x04 not a full archive": "is corrupt or incomplete",
    }

    for content, message in cases.items():
        path.write_bytes(content)
        assert read_error(path).startswith(f"sam.pth {message}")


# --- directories ---------------------------------------------------------------------------------


def test_configurations_of_other_models_are_rejected(tmp_path: Path) -> None:
    folder = tmp_path / "sam"
    folder.mkdir()
    save_file(SMALL, folder / "model.safetensors")
    supported = "supported are SAM, MobileSAM, SAM-HQ, SAM 2, SAM 2.1 and EdgeTAM"
    cases = {
        b"{": "config.json is not a JSON file",
        b"[" * 100_000: "config.json is not a JSON file",
        b"[]": "config.json is not a JSON object",
        b"{}": f"sam has a model of an unknown type; {supported}",
        b'{"model_type": ["sam"]}': f"sam has a model of the type ['sam']; {supported}",
        b'{"model_type": "a\\nb"}': f"sam has a model of the type 'a\\nb'; {supported}",
        b'{"model_type": "sam3_video"}': (
            f"this looks like SAM 3 or SAM 3.1 (model_type sam3_video); {supported}"
        ),
    }

    assert error_of(lambda: open_source(folder)) == "sam has no config.json"
    for config, message in cases.items():
        (folder / "config.json").write_bytes(config)
        assert error_of(lambda: open_source(folder)) == message


def test_safetensors_take_precedence_over_pickles(forms: dict[str, Path], tmp_path: Path) -> None:
    both = shutil.copytree(forms["directory"], tmp_path / "both")
    pth(both, {"x": Calls(Path.touch, tmp_path / "trace")}, name="pytorch_model.bin")
    neither = directory(tmp_path / "sam")
    save_file(SMALL, neither / "adapter_model.safetensors")

    text = error_of(lambda: open_source(neither))

    assert open_source(both)[1].sha256 == open_source(forms["directory"])[1].sha256
    assert text == "sam has neither model.safetensors nor pytorch_model.bin"


def test_an_index_must_not_name_files_outside_of_its_directory(tmp_path: Path) -> None:
    folder = directory(tmp_path / "sam")
    (folder / "sub").mkdir()
    for path in (tmp_path / "out.safetensors", folder / "sub" / "in.safetensors"):
        save_file(SMALL, path)
    outside = [
        *("../out.safetensors", "sub/../../out.safetensors", "sub/in.safetensors"),
        *("/etc/passwd", "..", ".", "", "./model.safetensors", 3, None),
    ]

    for shard in outside:
        index(folder, "model.safetensors", {"a.weight": shard, "a.bias": shard})
        text = error_of(lambda: open_source(folder))
        assert text == "model.safetensors.index.json names files outside of its directory", shard


@pytest.mark.parametrize(
    ("folder", "target", "allowed"),
    [
        ("models/sam", "../out", False),
        ("models/sam", "../../blobs/one", False),
        ("snapshots/sam", "../../blobs/one", True),
        ("snapshots/sam", "../../linked/one", False),
    ],
)
def test_shards_may_link_only_to_the_blobs_of_the_hub_cache(
    tmp_path: Path, folder: str, target: str, allowed: bool
) -> None:
    for name in ("blobs", "elsewhere", "models", "snapshots"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    sam = directory(tmp_path / folder)
    save_file(SMALL, sam / target)
    index(sam, "model.safetensors", dict.fromkeys(SMALL, "one.safetensors"))
    (sam / "one.safetensors").symlink_to(target)

    text = error_of(lambda: opened(sam))

    link = "one.safetensors is a link to outside of its directory"
    assert text.startswith("this is not a SAM" if allowed else link)


def test_an_index_must_name_existing_shards_without_repetition(tmp_path: Path) -> None:
    folder = directory(tmp_path / "sam")
    name = "model.safetensors.index.json"

    for content in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'):
        (folder / name).write_text(content)
        assert error_of(lambda: open_source(folder)).startswith(f"{name} "), content
    index(folder, "model.safetensors", {"a": "one\n\x1b.safetensors"})
    text = error_of(lambda: open_source(folder))

    assert text == f"sam has no one??.safetensors, which {name} lists"
    index(folder, "model.safetensors", {"a.weight": "1.safetensors", "a.bias": "2.safetensors"})
    for shard in ("1.safetensors", "2.safetensors"):
        save_file(SMALL, folder / shard)
    assert error_of(lambda: open_source(folder)) == "2.safetensors repeats a.bias"


# --- existing and missing files ------------------------------------------------------------------


def test_a_missing_file_that_is_not_a_hub_name_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    valid = ["facebook/sam-vit-base", "a/b", "Zigeng/SlimSAM-uniform-50", "o1/n_2.x-3"]
    invalid = ["sam", "a/b/c", "/a/b", "a/", "../b", "-a/b", "a/.b", "a b/c", "owner/nåme", "a/b\n"]

    assert [name for name in valid if not is_hub_name(name)] == []
    for spec in invalid:
        text = error_of(lambda spec=spec: open_source(spec))
        shown = spec.replace("\n", "?")
        assert text == f"{shown}: no such file or directory, and not a name on the hub"


def test_a_file_takes_precedence_over_the_hub_and_has_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = pth(tmp_path / "owner", SMALL, name="name")

    assert error_of(lambda: opened("owner/name")).startswith("this is not a SAM: its 2 tensors")
    text = error_of(lambda: open_source(path, "main"))
    assert text == "name is a local path; only models on the hub have revisions"


def test_read_errors_are_reported_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> object:
        raise OSError(5, "Input/output error")

    path = pth(tmp_path, SMALL)
    os.mkfifo(tmp_path / "pipe.pth")
    monkeypatch.setattr(torch, "load", load)

    assert error_of(lambda: open_source(path)) == "sam.pth cannot be read: Input/output error"
    text = error_of(lambda: open_source("x" * 5000))
    assert text == f"{'x' * 200}... cannot be read: File name too long"
    for special in (tmp_path / "pipe.pth", Path("/dev/zero")):
        text = error_of(lambda special=special: open_source(special))
        assert text.endswith("is neither a file nor a directory")


def test_a_file_that_changes_between_hashing_and_reading_is_rejected(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = shutil.copytree(forms["directory"], tmp_path / "sam")
    file = spec / "model.safetensors"
    read = source.read_files

    def change_and_read(*arguments: Any) -> State:
        content, found = file.read_bytes(), file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
        return read(*arguments)

    assert open_source(spec)[1].name == "sam"
    monkeypatch.setattr(source, "read_files", change_and_read)
    assert error_of(lambda: open_source(spec)) == "sam changed while it was read"


# --- the hub -------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, with an empty cache."""
    with running_hub() as found:
        connect(found, tmp_path / "hub", monkeypatch)
        yield found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("form", ["directory", "sharded directory", "sharded bin directory"])
def test_a_name_on_the_hub_gives_the_same_tensors(
    hub: Hub, weights: Weights, forms: dict[str, Path], form: str
) -> None:
    hub.publish(contents(forms[form]))

    state, _, found = opened("owner/name", "v1")

    local = open_source(forms[form])[1]
    assert_same(state, weights.state)
    assert found == Source("owner/name", COMMIT, local.sha256, "float32")
    paths = [request.path for request in hub.server.requests if "/revision/" in request.path]
    assert {path.rpartition("/")[2] for path in paths} == {"v1"}
    assert hub.downloads == sorted(contents(forms[form]))


def test_only_required_files_are_downloaded_and_only_once(
    hub: Hub, weights: Weights, forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unneeded = ("README.md", "adapter_model.safetensors", "fp16/model.safetensors")
    published = {**contents(forms["bin directory"]), **contents(forms["directory"])}
    hub.publish(published | dict.fromkeys(unneeded, b"-"))

    online = [open_source("owner/name")[1] for _ in range(2)]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    state, _, offline = opened("owner/name")

    assert_same(state, weights.state)
    assert online == [offline, offline]
    assert hub.downloads == ["config.json", "model.safetensors"]


def test_errors_of_the_hub_are_one_line(hub: Hub) -> None:
    page = f"{hub.server.address}/owner/name"
    token = "set HF_TOKEN to a token of your account, or run `hf auth login`"
    reasons = {
        (
            404,
            "RepoNotFound",
        ): f"the model does not exist or is private; for a private one, {token}",
        (403, "GatedRepo"): f"its owner must grant access first: accept the terms on {page}, "
        f"then {token}",
        (401, ""): f"the hub rejects the token; {token}",
        (404, "RevisionNotFound"): "the revision does not exist",
        (500, ""): "the hub is unreachable, and the model is not in its cache",
    }

    for error, reason in reasons.items():
        hub.reject(*error)
        text = error_of(lambda: open_source("owner/name"))
        assert text.startswith("owner/name: no such file or directory, and not available from the")
        assert text.endswith(f" hub: {reason}")


def test_an_unreachable_hub_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    text = error_of(lambda: open_source("owner/name"))

    assert text.endswith("hub: the hub is unreachable, and the model is not in its cache")
    assert "not available from the hub" in error_of(lambda: open_source("owner/na--me"))
