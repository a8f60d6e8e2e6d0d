"""Where weights come from: equal ones from every form, one line for whatever is not one.

The hub is a server on this machine that speaks as much of its HTTP interface as the real
huggingface_hub asks for; only that library's constants are changed.
"""

from __future__ import annotations

import codecs
import copy
import hashlib
import io
import json
import os
import pickle
import pickletools
import random
import shutil
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from pickle import UnpicklingError
from threading import Thread
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from samserve.export.checkpoint import open_sam, sam_from
from samserve.export.errors import ExportError
from samserve.export.sam.graphs import DecoderGraph
from samserve.export.sam.model import Sam
from samserve.export.sources import files, source
from samserve.export.sources.files import read_tensors
from samserve.export.sources.hub import is_hub_name
from samserve.export.sources.naming import Naming
from samserve.export.sources.pickles import check_pickle
from samserve.export.sources.source import Source, open_source
from torch import Tensor
from torch.nn import Parameter

from tests.export.bars import relative_l2
from tests.oracle import huggingface, pictures
from tests.oracle.sam import PATCH, build_sam
from tests.oracle.sam import SMALL as SMALL_SAM

State = dict[str, Tensor]

FRAME = PATCH * SMALL_SAM.grid
MLP_DIM = 4 * SMALL_SAM.width
COMMIT = "5ca1ab1e" * 5


class RunsCode:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable()
    assert "weights_only" not in text
    assert len(text) < 600
    return text


def refusal(open_it: Callable[[], object]) -> str:
    """What is said instead of opening it."""
    with pytest.raises(ExportError) as refused:
        open_it()
    return one_line(refused.value)


SMALL = {"a.weight": torch.arange(600.0).reshape(20, 30), "a.bias": torch.ones(30)}


def refused(path: Path) -> str:
    return refusal(lambda: read_tensors(path))


def pth(folder: Path, content: object, *, zipped: bool = True, name: str = "sam.pth") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def directory(folder: Path, **more: object) -> Path:
    """A directory that says it is a SAM's, without weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "sam", **more}))
    return folder


def index(folder: Path, format_: str, shards: dict[str, Any]) -> None:
    content = json.dumps({"metadata": {}, "weight_map": shards})
    (folder / f"{format_}.index.json").write_text(content)


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype is value.dtype, name
        assert torch.equal(found[name], value), name


# --- the same weights in every form ------------------------------------------------------------


@dataclass(frozen=True)
class Weights:
    """A SamModel of the library with random weights, and these under the original names."""

    library: huggingface.SamModel
    state: State


@pytest.fixture(scope="module")
def weights() -> Weights:
    torch.manual_seed(5)
    library = huggingface.model(SMALL_SAM, MLP_DIM)
    for parameter in library.parameters():
        parameter.copy_(torch.randn_like(parameter))
    state = {huggingface.original_name(name): value for name, value in library.state_dict().items()}
    return Weights(library, state)


@pytest.fixture(scope="module")
def forms(weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same weights in every form that is read."""
    folder = tmp_path_factory.mktemp("forms")
    state, named = weights.state, weights.library.state_dict()
    save_file(state, folder / "original.safetensors")
    weights.library.save_pretrained(folder / "directory")
    weights.library.save_pretrained(folder / "sharded", max_shard_size="3MB")
    # The library has stopped writing these, and wrote both names of the tied tensor.
    shutil.copytree(folder / "directory", folder / "bin")
    (folder / "bin" / "model.safetensors").unlink()
    torch.save(named, folder / "bin" / "pytorch_model.bin")
    halves = directory(folder / "sharded_bin")
    names = sorted(named)
    shards = {name: f"pytorch_model-{number % 2 + 1:05}.bin" for number, name in enumerate(names)}
    for shard in set(shards.values()):
        part = {name: named[name] for name in names if shards[name] == shard}
        torch.save(part, halves / shard)
    index(halves, "pytorch_model.bin", shards)
    return {
        "pth": pth(folder, state),
        "legacy": pth(folder, state, zipped=False, name="legacy.pth"),
        "library's names": pth(folder, named, name="named.pt"),
        "model": pth(folder, {"model": state, "epoch": 3, "args": {"lr": 0.1}}, name="wrapped.pt"),
        "state_dict": pth(folder, {"state_dict": named, "model": {"type": "sam"}}, name="sd.pt"),
        "parameters": pth(
            folder, OrderedDict((k, Parameter(v)) for k, v in state.items()), name="parameters.pth"
        ),
        "safetensors": folder / "original.safetensors",
        "directory": folder / "directory",
        "sharded directory": folder / "sharded",
        "bin directory": folder / "bin",
        "sharded bin directory": halves,
    }


FORMS = (
    *("pth", "legacy", "library's names", "model", "state_dict", "parameters", "safetensors"),
    *("directory", "sharded directory", "bin directory", "sharded bin directory"),
)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_tensors(
    weights: Weights, forms: dict[str, Path], form: str
) -> None:
    state, found = open_source(forms[form])

    assert_same(state, weights.state)
    assert_same(dict(sam_from(state).state_dict()), weights.state)
    of_the_library = "directory" in form or form in ("library's names", "state_dict")
    assert found.naming is (Naming.TRANSFORMERS if of_the_library else Naming.ORIGINAL)
    assert (found.name, found.revision, found.dtype) == (forms[form].name, "", "float32")
    assert not any(value.requires_grad for value in state.values())


def test_the_library_has_really_cut_shards(forms: dict[str, Path]) -> None:
    assert len(list(forms["sharded directory"].glob("model-*.safetensors"))) > 3
    assert not (forms["sharded directory"] / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["sam.bin", "sam.safetensors", "sam"])
def test_the_content_decides_and_not_the_suffix(tmp_path: Path, name: str) -> None:
    for container, write in BYTES.items():
        (tmp_path / name).write_bytes(write(tmp_path / container))
        assert_same(read_tensors(tmp_path / name), SMALL)


def test_checksum_of_a_file_is_its_own(forms: dict[str, Path]) -> None:
    path = forms["pth"]

    assert open_source(path)[1].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_checksum_of_a_directory_is_that_of_what_is_read(
    forms: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(forms["sharded directory"], tmp_path / "copy")
    names = ["config.json", *(path.name for path in folder.glob("model-*.safetensors"))]
    sums = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sorted(names)]
    lines = "".join(f"{name}\0{sum_}\n" for name, sum_ in zip(sorted(names), sums, strict=True))

    before = open_source(folder)[1].sha256
    (folder / "README.md").write_text("what is not read does not count")
    beside = open_source(folder)[1].sha256
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    changed = open_source(folder)[1].sha256

    assert before == hashlib.sha256(lines.encode()).hexdigest() == beside
    assert changed != before


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "{0}/.", "{0}/../directory"])
def test_a_source_has_a_name_and_no_path(forms: dict[str, Path], spelling: str) -> None:
    spec = spelling.format(forms["directory"])

    assert open_source(spec)[1].name == "directory"


def test_the_directory_that_one_is_in_has_a_name(
    forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(forms["directory"])

    assert open_source(".")[1].name == "directory"


def test_a_name_cannot_write_on_the_terminal_either(forms: dict[str, Path], tmp_path: Path) -> None:
    path = shutil.copy(forms["safetensors"], tmp_path / "sam\n\x1b[31m.safetensors")

    assert open_source(path)[1].name == "sam??[31m.safetensors"


@pytest.mark.parametrize(
    ("types", "narrowest"),
    [
        ((torch.float64, torch.float64), "float64"),
        ((torch.float32, torch.bfloat16), "bfloat16"),
        ((torch.float16, torch.float64), "float16"),
    ],
)
def test_types_stay_and_the_narrowest_is_told(
    weights: Weights, tmp_path: Path, types: tuple[torch.dtype, torch.dtype], narrowest: str
) -> None:
    stored = {
        name: value.to(types[number == 7])
        for number, (name, value) in enumerate(weights.state.items())
    }
    save_file(stored, tmp_path / "sam.safetensors")

    for path in (pth(tmp_path, stored), tmp_path / "sam.safetensors"):
        state, found = open_source(path)
        assert_same(state, stored)
        assert found.dtype == narrowest


def test_counters_of_batch_norms_are_kept_and_have_no_say_in_the_type(tmp_path: Path) -> None:
    content = {
        "image_encoder.layers.0.bn.num_batches_tracked": torch.tensor(7),
        "image_encoder.layers.0.bn.weight": torch.ones(3).double(),
    }

    state, found = open_source(pth(tmp_path, content))

    assert_same(state, content)
    assert found.dtype == "float64"


# --- the library's own forward pass --------------------------------------------------------------


@pytest.fixture(scope="module")
def lively() -> huggingface.SamModel:
    """Weights whose masks follow prompts, in the library's model."""
    sam = build_sam(SMALL_SAM, pictures.calibration()[:1])
    return huggingface.from_original(SMALL_SAM, sam.state_dict())


@pytest.fixture(scope="module")
def opened(lively: huggingface.SamModel, tmp_path_factory: pytest.TempPathFactory) -> Sam:
    """Our networks with the weights of the library's directory."""
    return open_sam(huggingface.save(lively, tmp_path_factory.mktemp("lively") / "sam"))[0]


def test_the_image_encoder_embeds_as_the_librarys(
    lively: huggingface.SamModel, opened: Sam
) -> None:
    picture = torch.randn(1, 3, FRAME, FRAME, generator=torch.Generator().manual_seed(3))

    expected = huggingface.embed(lively, picture)
    with torch.no_grad():
        embedding = opened.image_encoder(picture).numpy()

    assert expected.std() > 0.1
    assert relative_l2(embedding, expected) < 1e-5


@pytest.fixture(scope="module")
def equalised(lively: huggingface.SamModel) -> huggingface.SamModel:
    """The library's model with the epsilon that the original has in its decoder's norms."""
    model = copy.deepcopy(lively)
    for layer in model.mask_decoder.transformer.layers:
        for number in range(1, 5):
            getattr(layer, f"layer_norm{number}").eps = 1e-5
    return model


@dataclass(frozen=True)
class Prompts:
    """The same prompts as the library takes them, and as the served decoder does."""

    theirs: dict[str, Tensor]
    coords: Tensor
    labels: Tensor
    masks: Tensor


def prompts(kind: str) -> Prompts:
    generator = torch.Generator().manual_seed(4)
    corners = FRAME * torch.rand(1, 4, 2, 2, generator=generator).sort(2).values
    none = torch.zeros(1, 0, FRAME // 4, FRAME // 4)
    if kind == "boxes":
        labels = torch.tensor([2.0, 3.0]).expand(1, 4, 2)
        return Prompts({"input_boxes": corners.flatten(2)}, corners, labels, none)
    if kind == "points":
        labels = torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0]]).unsqueeze(0)
        theirs = {"input_points": corners, "input_labels": labels}
        padded = torch.cat([corners, torch.zeros(1, 4, 1, 2)], 2)
        marked = torch.cat([labels, -torch.ones(1, 4, 1)], 2)
        return Prompts(theirs, padded, marked, none)
    masks = 5 * torch.randn(1, 1, FRAME // 4, FRAME // 4, generator=generator)
    point, label = corners[:, :1, :1], torch.ones(1, 1, 1)
    theirs = {"input_points": point, "input_labels": label.int(), "input_masks": masks}
    padded = torch.cat([point, torch.zeros(1, 1, 1, 2)], 2)
    return Prompts(theirs, padded, torch.cat([label, -label], 2), masks)


@pytest.mark.parametrize("kind", ["points", "boxes", "mask"])
def test_the_mask_decoder_decodes_as_the_librarys(
    lively: huggingface.SamModel, equalised: huggingface.SamModel, opened: Sam, kind: str
) -> None:
    """What is left is the library's epsilon: 1e-6 in norms where the original has 1e-5."""
    embedding = torch.randn(
        1, 256, SMALL_SAM.grid, SMALL_SAM.grid, generator=torch.Generator().manual_seed(4)
    )
    asked = prompts(kind)

    def decode(model: huggingface.SamModel) -> tuple[np.ndarray, np.ndarray]:
        answer = model(image_embeddings=embedding, multimask_output=True, **asked.theirs)
        return answer.pred_masks[0].numpy(), answer.iou_scores[0].numpy()

    with torch.no_grad():
        answer = DecoderGraph(opened)(embedding, asked.coords, asked.labels, asked.masks)
    logits, iou = (part[0, :, 1:].numpy() for part in answer)
    theirs, at_our_epsilon = decode(lively), decode(equalised)

    assert theirs[0].std() > 2
    assert kind == "mask" or np.ptp(theirs[0], axis=0).std() > 1
    assert relative_l2(logits, theirs[0]) < 5e-5
    assert np.abs(iou - theirs[1]).max() < 5e-5
    assert relative_l2(logits, at_our_epsilon[0]) < 5e-6
    assert np.abs(iou - at_our_epsilon[1]).max() < 5e-6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda name, value: None if ".blocks.1." in name else value,
            "no SAM checkpoint: 'image_encoder.blocks.1.attn.rel_pos_h' is not there",
        ),
        (
            lambda name, value: value[:-1] if name.endswith("blocks.2.norm2.bias") else value,
            "no SAM checkpoint: image_encoder.blocks.2.norm2.bias has shape (63,), not (64,)",
        ),
        (
            lambda name, value: None if name.endswith("mask_embed.weight") else value,
            "no SAM checkpoint: lacks prompt_encoder.no_mask_embed.weight",
        ),
    ],
    ids=["block missing", "other shape", "tensor missing"],
)
def test_weights_of_nearly_a_sam_are_refused(
    weights: Weights,
    tmp_path: Path,
    change: Callable[[str, Tensor], Tensor | None],
    message: str,
) -> None:
    changed = {name: change(name, value) for name, value in weights.state.items()}
    path = pth(tmp_path, {name: value for name, value in changed.items() if value is not None})

    assert refusal(lambda: open_sam(path)) == message


def test_a_tensor_too_many_is_refused(weights: Weights, tmp_path: Path) -> None:
    path = pth(tmp_path, {**weights.state, "mask_decoder.extra.weight": torch.ones(1)})

    text = refusal(lambda: open_sam(path))

    assert text == "no SAM checkpoint: does not belong there: mask_decoder.extra.weight"


# --- files ---------------------------------------------------------------------------------------


def containers(folder: Path, content: dict[str, Any]) -> dict[str, tuple[Path, Path]]:
    """*content* in each form of a pickle: what to open, and the file that holds it."""
    folder.mkdir(exist_ok=True)
    inside = directory(folder / "inside")
    shard = directory(folder / "shard")
    index(shard, "pytorch_model.bin", dict.fromkeys(SMALL, "one.bin"))
    zipped, legacy = pth(folder, content), pth(folder, content, zipped=False, name="legacy.pth")
    nested = pth(folder, {"model": content}, name="nested.pth")
    return {
        "zip": (zipped, zipped),
        "legacy": (legacy, legacy),
        "nested": (nested, nested),
        "directory": (inside, pth(inside, content, name="pytorch_model.bin")),
        "shard": (shard, pth(shard, content, zipped=False, name="one.bin")),
    }


@pytest.mark.parametrize("place", ["value", "beside", "key"])
def test_code_is_refused_and_not_run(tmp_path: Path, place: str) -> None:
    trace = tmp_path / "trace"
    code = RunsCode(trace)
    content: dict[str, Any] = {
        "value": {**SMALL, "b": code},
        "beside": {"state_dict": SMALL, "optimizer": [code]},
        "key": {**SMALL, ("b", code): torch.ones(1)},
    }[place]

    texts = {
        file: refusal(lambda spec=spec: open_source(spec))
        for spec, file in containers(tmp_path / "files", content).values()
    }

    assert len(texts) == 5
    for file, text in texts.items():
        assert text == (
            f"{file.name} holds something else than tensors, or is damaged; "
            "it was refused, and no code in it was run"
        )
    assert not trace.exists()


def test_the_code_would_have_run(tmp_path: Path) -> None:
    path = pth(tmp_path, {"b": RunsCode(tmp_path / "trace")})

    torch.load(path, weights_only=False)

    assert (tmp_path / "trace").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(pickle.dumps(RunsCode(tmp_path / "trace"), protocol=protocol))

    # The oldest form does not begin as a pickle.
    neither = "sam.pth is neither a PyTorch file nor a safetensors file"
    assert refused(path) == (NO_TENSORS if protocol else neither)
    assert not (tmp_path / "trace").exists()


def test_a_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sam.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"sam/{name}", b"3\n")

    assert refused(path) == "sam.pt is a TorchScript program; no code in it was run"


class Calls:
    """Unpickled, it is what a function that PyTorch allows gives."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.reduced: tuple[Any, ...] = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(3).to(torch.float8_e4m3fn), "has type float8_e4m3fn, which no weight has"),
        (torch.ones(3, dtype=torch.complex64), "has type complex64, which no weight has"),
        (torch.ones(3, dtype=torch.int64), "has type int64, which no weight has"),
        (torch.ones(3, dtype=torch.bool), "has type bool, which no weight has"),
        (torch.tensor([1.0, float("nan")]), "has values that are not finite in float32"),
        (torch.tensor([1.0, -float("inf")]).half(), "has values that are not finite in float32"),
        (torch.tensor([1e300], dtype=torch.float64), "has values that are not finite in float32"),
        (torch.ones(1).expand(1 << 40), "claims more numbers than it holds"),
        (torch.ones(2, 1).expand(2, 3), "claims more numbers than it holds"),
        (torch._neg_view(torch.ones(3)), "is a negated view"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_a_tensor_that_is_no_weight_is_named(tmp_path: Path, value: object, message: str) -> None:
    path = pth(tmp_path, {**SMALL, "mask_decoder.x": value})

    assert refused(path) == f"sam.pth: mask_decoder.x {message}"


NO_TENSORS = (
    "sam.pth holds something else than tensors, or is damaged; "
    "it was refused, and no code in it was run"
)


@pytest.mark.filterwarnings("ignore")  # some of these are prototypes
@pytest.mark.parametrize("kind", ["quantized", "nested", "coo", "csr", "meta"])
def test_other_kinds_of_tensors_are_refused(tmp_path: Path, kind: str) -> None:
    value = {
        "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
        "coo": lambda: torch.eye(3).to_sparse(),
        "csr": lambda: torch.eye(3).to_sparse_csr(),
        "meta": lambda: torch.empty(3, device="meta"),
    }[kind]()

    assert refused(pth(tmp_path, {"x": value})) == NO_TENSORS


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path: Path, zipped: bool) -> None:
    """PyTorch enlarges storages for that, with whatever was in the memory before."""
    storage = torch.ones(3)._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    value = Calls(rebuild, storage, 0, (1 << 20,), (1,), False, OrderedDict())

    assert refused(pth(tmp_path, {**SMALL, "x": value}, zipped=zipped)).startswith("sam.pth ")


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (bytearray, (1 << 20,)),
        (torch.Tensor, (1 << 20,)),
        (set, (("a", "b"),)),
        (codecs.encode, ("a" * 9, "hex")),
        (torch._utils._rebuild_meta_tensor_no_storage, (torch.float32, (9,), (1,), False)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_pytorch_would_call_and_no_checkpoint_does_is_refused(
    tmp_path: Path, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """PyTorch allows these; with other arguments, they take all memory."""
    for zipped in (True, False):
        path = pth(tmp_path, {**SMALL, "x": Calls(function, *arguments)}, zipped=zipped)
        assert refused(path) == NO_TENSORS


DEEP = b")" + b"\x85" * 20_000
TWICE = b")q\x00" + b"h\x00h\x00\x86q\x00" * 14
LONG = b"(" + b"K\x01" * 20_000 + b"t"
SHARING = b"]q\x00" + b"]q\x01(h\x00h\x00eh\x01q\x00" * 3


@pytest.mark.parametrize(
    "program",
    [
        b"}" + DEEP + b"K\x01s.",
        TWICE + b"}h\x00K\x01s.",
        b"}" + LONG + b"K\x01s.",
        b"]" + DEEP + b"a.",
        SHARING + b")R.",
        SHARING + b")\x81.",
        SHARING + b"}b.",
        b"}ccollections\nOrderedDict\n)Rq\x00)b.",
        b"}R.",
        b"(.",
        b"\x85.",
        b"}(K\x01\x86.",
        b"h\x00.",
        b"t.",
    ],
    ids=[
        *("deep key", "key of doubled tuples", "long key", "deep"),
        *("list called", "list as a class", "list with attributes", "tuple as attributes"),
        *("nothing called", "mark", "nothing in a tuple", "mark in a tuple"),
        *("nothing remembered", "tuple without a mark"),
    ],
)
def test_programs_that_would_end_or_hang_the_process_are_refused(
    tmp_path: Path, program: bytes
) -> None:
    """Hashing a deep tuple overflows C's stack; a doubled one, or its text, takes for ever.

    The sizes here are harmless, so that a failure is one.
    """
    whole = pth(tmp_path, SMALL)
    path = tmp_path / "small" / "sam.pth"
    path.parent.mkdir()
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(path, "w") as to:
        for entry in archive.infolist():
            is_pickle = entry.filename.endswith("data.pkl")
            to.writestr(entry.filename, b"\x80\x02" + program if is_pickle else archive.read(entry))

    text = refused(path)
    assert text in (NO_TENSORS, "sam.pth is damaged or incomplete")
    with pytest.raises((UnpicklingError, ValueError, LookupError)):
        check_pickle(io.BytesIO(b"\x80\x02" + program))


@pytest.mark.parametrize(
    "name",
    [
        *("posix system", "builtins eval", "__builtin__ bytearray", "_codecs encode"),
        *("my.collections OrderedDict", "collections OrderedDict.fromkeys", "torch load"),
        *("torch.storage _load_from_bytes", "torch Tensor", "torch._utils _rebuild_tensor_v22"),
    ],
)
def test_other_names_are_not_asked_for(name: str) -> None:
    program = b"\x80\x02c%b\n." % name.replace(" ", "\n").encode()

    with pytest.raises(UnpicklingError, match="is no part of a checkpoint"):
        check_pickle(io.BytesIO(program))


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorchs_own_restriction_stays_behind_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setattr(files, "check_pickle", lambda _: None)
    path = pth(tmp_path, {**SMALL, "b": RunsCode(tmp_path / "trace")}, zipped=zipped)

    assert refused(path) == NO_TENSORS
    assert not (tmp_path / "trace").exists()


def legacy_parts(path: Path) -> tuple[list[bytes], bytes]:
    """The five pickles of a file without an archive, and its numbers."""
    stream = io.BytesIO(path.read_bytes())
    parts = []
    for _ in range(5):
        start = stream.tell()
        pickletools.dis(stream, io.StringIO())
        parts.append(stream.getvalue()[start : stream.tell()])
    return parts, stream.read()


@pytest.mark.parametrize("place", range(5))
def test_every_pickle_of_a_legacy_file_is_looked_through(tmp_path: Path, place: int) -> None:
    path = pth(tmp_path, SMALL, zipped=False)
    parts, numbers = legacy_parts(path)
    parts[place] = b"\x80\x02" + DEEP + b"."
    path.write_bytes(b"".join(parts) + numbers)

    assert refused(path) == NO_TENSORS


def test_storages_that_a_legacy_file_does_not_fill_are_refused(tmp_path: Path) -> None:
    """They would hold whatever was in the memory before."""
    path = pth(tmp_path, {"a.weight": torch.ones(1 << 16)}, zipped=False)
    parts, _ = legacy_parts(path)
    parts[4] = pickle.dumps([], 2)
    path.write_bytes(b"".join(parts))

    assert refused(path) == "sam.pth claims more numbers than it holds"


def test_what_training_keeps_beside_weights_is_let_through(tmp_path: Path) -> None:
    network = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 4])
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    content = {
        "model": {"image_encoder.blocks.0.norm1.weight": torch.ones(3)},
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": scheduler.state_dict(),
        "ema": network.state_dict(),
        "rng": torch.get_rng_state(),
        "args": {"lr": 1e-4, "name": "sam", "size": (1024, 1024), "amp": True, "seed": 1 << 40},
        "device": torch.device("cpu"),
        "shape": torch.Size([3]),
        "dtype": torch.bfloat16,
        "best": None,
    }

    for zipped in (True, False):
        assert_same(read_tensors(pth(tmp_path, content, zipped=zipped)), content["model"])


def test_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many names of one storage are small on the disk; alone, each shard is small enough."""
    monkeypatch.setattr(files, "MOST_BYTES", 1 << 20)
    one = torch.ones(1 << 16)
    views = pth(tmp_path, {str(number): one for number in range(5)})
    folder = directory(tmp_path / "folder")
    index(folder, "pytorch_model.bin", {str(number): f"{number}.bin" for number in range(5)})
    for number in range(5):
        pth(folder, {str(number): one}, name=f"{number}.bin")

    assert views.stat().st_size < 1 << 19
    assert refused(views) == "sam.pth holds more than 0 GiB of weights"
    assert refusal(lambda: open_source(folder)) == "folder holds more than 0 GiB of weights"


def test_what_a_pickle_hides_behind_attributes_is_not_asked(tmp_path: Path) -> None:
    mapping = Calls(OrderedDict, [("x", torch.arange(3.0))])
    mapping.reduced = (*mapping.reduced, {"items": 5, "get": 5, "keys": 5, "values": 5})

    assert_same(read_tensors(pth(tmp_path, mapping)), {"x": torch.arange(3.0)})


def test_tensors_with_attributes_are_refused(tmp_path: Path) -> None:
    value = torch.arange(3.0)
    value.numel = value.detach = 5  # type: ignore[method-assign, assignment]

    assert refused(pth(tmp_path, {"x": value})) == NO_TENSORS


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"epoch": 3},
        {**SMALL, "epoch": 3},
        {**SMALL, 3: torch.ones(1)},
        {"model": {**SMALL, "epoch": 3}},
        {"state_dict": {"model": SMALL}},
        torch.ones(3),
        "sam",
    ],
    ids=[
        *("list", "nothing", "number", "tensors and a number", "number as a name"),
        *("wrapped number", "wrapped twice", "tensor", "text"),
    ],
)
def test_contents_that_are_no_named_tensors_are_refused(tmp_path: Path, content: object) -> None:
    assert refused(pth(tmp_path, content)) == "sam.pth holds something else than named tensors"


class Tagged(Tensor):
    """A kind of tensor of another library, which has told PyTorch to let it through."""


def test_tensors_of_other_classes_are_refused(tmp_path: Path) -> None:
    path = pth(tmp_path, {"x": torch.ones(3).as_subclass(Tagged)})

    with torch.serialization.safe_globals([Tagged]):
        assert refused(path) == NO_TENSORS


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_modules_are_refused(tmp_path: Path, zipped: bool) -> None:
    path = pth(tmp_path, torch.nn.Linear(2, 2), zipped=zipped)

    assert refused(path).startswith("sam.pth holds something else than tensors")


def test_names_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    name = "a\nError: \x1b[31mfake" + "x" * 1000
    path = pth(tmp_path, {name: torch.tensor([float("nan")])}, name="sam\n.pth")

    assert refused(path).startswith("sam?.pth: a?Error: ?[31mfakexxx")


def test_nothing_is_warned_about(tmp_path: Path) -> None:
    """PyTorch warns of other versions of pickles, which is nothing to whoever exports."""
    path = tmp_path / "sam.pth"
    torch.save(SMALL, path, pickle_protocol=3)

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert_same(read_tensors(path), SMALL)
    assert seen == []


# --- damage --------------------------------------------------------------------------------------

BYTES: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda folder: pth(folder, SMALL).read_bytes(),
    "legacy": lambda folder: pth(folder, SMALL, zipped=False).read_bytes(),
    "safetensors": lambda _: save(SMALL),
}


@pytest.mark.parametrize("container", BYTES)
def test_whatever_is_cut_short_is_refused(tmp_path: Path, container: str) -> None:
    whole = BYTES[container](tmp_path)
    path = tmp_path / "cut.pth"
    path.write_bytes(whole)
    assert_same(read_tensors(path), SMALL)

    for length in [*range(0, len(whole), 23), *range(len(whole) - 40, len(whole))]:
        path.write_bytes(whole[:length])
        text = refused(path)
        assert text.startswith("cut.pth "), length
        assert any(word in text for word in ("empty", "neither", "damaged")), text


@pytest.mark.parametrize("container", ["pytorch_model.bin", "model.safetensors"])
def test_a_directory_that_is_cut_short_is_refused(tmp_path: Path, container: str) -> None:
    folder = directory(tmp_path / "sam")
    whole = BYTES["zip" if container.endswith(".bin") else "safetensors"](tmp_path)

    for length in (0, 1, 8, 100, len(whole) // 2, len(whole) - 1):
        (folder / container).write_bytes(whole[:length])
        assert refusal(lambda: open_source(folder)).startswith(f"{container} ")


def test_every_flipped_bit_of_a_tensor_is_found(tmp_path: Path) -> None:
    whole = BYTES["zip"](tmp_path)
    first = whole.index(SMALL["a.weight"].numpy().tobytes())
    path = tmp_path / "flipped.pth"

    for place in range(first, first + SMALL["a.weight"].nbytes, 101):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        assert "is damaged: " in refused(path)
        assert "does not have its checksum" in refused(path)


@pytest.mark.parametrize("container", BYTES)
def test_random_damage_is_one_line_or_harmless(tmp_path: Path, container: str) -> None:
    """An archive with damage gives the same tensors or none; the others have no checksums."""
    whole = BYTES[container](tmp_path)
    path = tmp_path / "damaged.pth"
    dice = random.Random(1)
    refusals = 0

    for _ in range(300):
        damaged = bytearray(whole)
        place = dice.randrange(len(damaged) if dice.random() < 0.5 else 400)
        damaged[place] = dice.randrange(256)
        if dice.random() < 0.3:
            del damaged[place]
        path.write_bytes(damaged)
        try:
            state = read_tensors(path)
        except ExportError as error:
            one_line(error)
            refusals += 1
        else:
            assert container != "zip" or state.keys() == SMALL.keys()
            assert container != "zip" or all(torch.equal(state[key], SMALL[key]) for key in SMALL)
    assert refusals > 100


def test_damaged_pickles_under_right_checksums_are_one_line(tmp_path: Path) -> None:
    """Whoever writes the archive writes its checksums too."""
    path, whole = tmp_path / "damaged.pth", pth(tmp_path, SMALL)
    with zipfile.ZipFile(whole) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    dice = random.Random(2)

    for _ in range(300):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in entries.items():
                damaged = bytearray(content)
                if name.endswith("data.pkl"):
                    damaged[dice.randrange(len(damaged))] = dice.randrange(256)
                archive.writestr(name, bytes(damaged))
        try:
            read_tensors(path)
        except ExportError as error:
            one_line(error)


def test_archives_that_unpack_to_more_than_they_are_are_refused(tmp_path: Path) -> None:
    whole = pth(tmp_path, SMALL)
    bomb, overlapping = tmp_path / "bomb.pth", tmp_path / "overlapping.pth"
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as to:
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

    assert refused(bomb) == "bomb.pth is a compressed archive, which no checkpoint is"
    assert refused(overlapping) == "overlapping.pth is damaged or incomplete"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n and more", "is neither a PyTorch file nor a safetensors file"),
        (b"<!DOCTYPE html><html>", "is neither a PyTorch file nor a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "is neither a PyTorch file"),
        (struct.pack("<Q", 1 << 60) + b"{}", "is damaged or incomplete"),
        (struct.pack("<Q", 8) + b"{broken}", "is damaged or incomplete"),
        (b"PK\x03\x04 not a whole archive", "is damaged or incomplete"),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(content)

    assert refused(path).startswith(f"sam.pth {message}")


# --- directories ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "sam holds no config.json"),
        ("{", "config.json is no JSON file"),
        ("[" * 100_000, "config.json is no JSON file"),
        (b"\xff\xfe{}", "config.json is no JSON file"),
        ("[]", "config.json is no JSON object"),
        ("{}", "sam holds a model of type that it does not name; only 'sam' is served"),
        ('{"model_type": "sam_hq"}', "sam holds a model of type 'sam_hq'; only 'sam' is served"),
        ('{"model_type": "sam2"}', "sam holds a model of type 'sam2'; only 'sam' is served"),
        ('{"model_type": ["sam"]}', "sam holds a model of type ['sam']; only 'sam' is served"),
        ('{"model_type": "a\\nb"}', "sam holds a model of type 'a\\nb'; only 'sam' is served"),
    ],
)
def test_configurations_of_other_models_are_refused(
    tmp_path: Path, config: str | bytes | None, message: str
) -> None:
    folder = tmp_path / "sam"
    folder.mkdir()
    save_file(SMALL, folder / "model.safetensors")
    if config is not None:
        content = config if isinstance(config, bytes) else config.encode()
        (folder / "config.json").write_bytes(content)

    assert refusal(lambda: open_source(folder)) == message


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "sam")
    save_file(SMALL, folder / "adapter_model.safetensors")

    text = refusal(lambda: open_source(folder))

    assert text == "sam holds neither model.safetensors nor pytorch_model.bin"


def test_safetensors_go_before_pickles(forms: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(forms["directory"], tmp_path / "both")
    pth(folder, {"x": RunsCode(tmp_path / "trace")}, name="pytorch_model.bin")

    assert open_source(folder)[1].sha256 == open_source(forms["directory"])[1].sha256


OUTSIDE = [
    *("../out.safetensors", "sub/../../out.safetensors", "sub/in.safetensors"),
    *("/etc/passwd", "..", ".", "", "./model.safetensors", 3, None),
]


@pytest.mark.parametrize("format_", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_leads_nowhere_else(tmp_path: Path, format_: str) -> None:
    folder = directory(tmp_path / "sam")
    (folder / "sub").mkdir()
    for path in (tmp_path / "out.safetensors", folder / "sub" / "in.safetensors"):
        save_file(SMALL, path)

    for shard in OUTSIDE:
        index(folder, format_, {"a.weight": shard, "a.bias": shard})

        text = refusal(lambda: open_source(folder))

        assert text == f"{format_}.index.json names files outside of its directory", shard


@pytest.mark.parametrize("target", ["../out.safetensors", "../../blobs/one", "inside"])
def test_a_shard_is_no_link_out_of_its_directory(tmp_path: Path, target: str) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "models").mkdir()
    folder = directory(tmp_path / "models" / "sam")
    save_file(SMALL, folder / target)
    index(folder, "model.safetensors", dict.fromkeys(SMALL, "one.safetensors"))
    (folder / "one.safetensors").symlink_to(target)

    text = refusal(lambda: open_source(folder))

    reached = text.startswith("this is no SAM")
    assert reached == (target == "inside")
    assert reached or text == "one.safetensors is a link out of its directory"


def test_a_cache_links_to_its_own_blobs_only(tmp_path: Path) -> None:
    """As the hub's cache does; a folder of blobs that is a link itself leads elsewhere."""
    (tmp_path / "cache" / "snapshots").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_file(SMALL, elsewhere / "one")
    folder = directory(tmp_path / "cache" / "snapshots" / COMMIT)
    index(folder, "model.safetensors", dict.fromkeys(SMALL, "one.safetensors"))
    (folder / "one.safetensors").symlink_to("../../blobs/one")
    blobs = tmp_path / "cache" / "blobs"

    blobs.symlink_to(elsewhere)
    linked = refusal(lambda: open_source(folder))
    blobs.unlink()
    shutil.copytree(elsewhere, blobs)
    own = refusal(lambda: open_source(folder))

    assert linked == "one.safetensors is a link out of its directory"
    assert own.startswith("this is no SAM: its 2 tensors are called ")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = directory(tmp_path / "sam")
    index(folder, "model.safetensors", {"a": "one\n\x1b.safetensors"})

    text = refusal(lambda: open_source(folder))

    assert text == "sam lacks one??.safetensors, which model.safetensors.index.json lists"


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'])
def test_an_index_without_shards_is_refused(tmp_path: Path, content: str) -> None:
    folder = directory(tmp_path / "sam")
    (folder / "model.safetensors.index.json").write_text(content)

    assert refusal(lambda: open_source(folder)).startswith("model.safetensors.index.json ")


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = directory(tmp_path / "sam")
    index(folder, "model.safetensors", {"a.weight": "1.safetensors", "a.bias": "2.safetensors"})
    for number in (1, 2):
        save_file(SMALL, folder / f"{number}.safetensors")

    assert refusal(lambda: open_source(folder)) == "2.safetensors repeats a.bias"


# --- what is there, and what is not --------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["missing.pth", "", "a/b/c", "/tmp/no/such", "owner/", "a\nb", "owner/nåme", "x" * 200]
)
def test_what_is_not_there_and_no_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if not spec:  # that is the current directory
        assert refusal(lambda: open_source(spec)).endswith("holds no config.json")
        return

    text = refusal(lambda: open_source(spec))

    shown = spec.replace("\n", "?")
    assert text == f"{shown}: no such file or directory, and no name on the hub"


def test_hub_names() -> None:
    right = ["facebook/sam-vit-base", "a/b", "Zigeng/SlimSAM-uniform-50", "o1/n_2.x-3"]
    wrong = ["sam", "a/b/c", "/a/b", "a/", "../b", "-a/b", "a/.b", "a b/c", "å/b", "a/b\n", ""]

    assert [name for name in right if not is_hub_name(name)] == []
    assert [name for name in wrong if is_hub_name(name)] == []


def test_a_file_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pth(tmp_path / "owner", SMALL, name="name")

    assert refusal(lambda: open_source("owner/name")).startswith("this is no SAM: its 2 tensors")


def test_a_revision_of_a_file_is_refused(tmp_path: Path) -> None:
    path = pth(tmp_path, SMALL)

    text = refusal(lambda: open_source(path, "main"))

    assert text == "sam.pth is on this machine; only the hub has revisions"


def test_what_cannot_be_read_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pth(tmp_path, SMALL)
    whole_open = Path.open

    def locked(self: Path, *arguments: Any, **more: Any) -> Any:
        if self.name == "sam.pth":  # root, as whom tests may run, can read any file
            raise PermissionError(13, "Permission denied", str(self))
        return whole_open(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", locked)

    assert refusal(lambda: open_source(path)) == "sam.pth cannot be read: Permission denied"


def test_a_broken_disk_is_not_taken_for_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(torch, "load", load)
    path = pth(tmp_path, SMALL)

    text = refusal(lambda: open_source(path))

    assert text == "sam.pth cannot be read: Input/output error"


def test_names_that_are_too_long_say_so() -> None:
    text = refusal(lambda: open_source("x" * 5000))

    assert text == f"{'x' * 200}... cannot be read: File name too long"


def test_what_is_neither_a_file_nor_a_directory_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")

    for path in (tmp_path / "pipe.pth", Path("/dev/zero")):
        assert refusal(lambda path=path: open_source(path)).endswith(
            "is neither a file nor a directory"
        )


@pytest.mark.parametrize("change", ["replaced", "written to"])
@pytest.mark.parametrize("form", ["pth", "directory"])
def test_a_file_that_changes_between_hashing_and_reading_is_refused(
    forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, change: str
) -> None:
    if form == "directory":
        spec = shutil.copytree(forms[form], tmp_path / "sam")
        file = spec / "model.safetensors"
    else:
        spec = file = Path(shutil.copy(forms[form], tmp_path / "sam"))
    read = source.read_files

    def change_and_read(*arguments: Any) -> State:
        content, found = file.read_bytes(), file.stat()
        if change == "replaced":
            file.unlink()
        file.write_bytes(content)
        os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
        return read(*arguments)

    assert open_source(spec)[1].name == "sam"
    monkeypatch.setattr(source, "read_files", change_and_read)
    assert refusal(lambda: open_source(spec)) == "sam was changed while it was read"


# --- the hub -------------------------------------------------------------------------------------


@dataclass
class Hub:
    """A hub with one model, and what it was asked for."""

    folder: Path
    files: dict[str, bytes]
    error: tuple[int, str] | None = None
    downloads: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)

    def reply(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Answer a path that begins with ``/api/models/NAME/`` or ``/NAME/resolve/``."""
        path = path.partition("?")[0]
        if self.error:
            return self.error[0], {"X-Error-Code": self.error[1]}, b"{}"
        if path.startswith("/api/models/owner/name/revision/"):
            self.revisions.append(path.rpartition("/")[2])
            return 200, {}, json.dumps({"id": "owner/name", "sha": COMMIT}).encode()
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": digest(content)}
                for name, content in self.files.items()
            ]
            return 200, {}, json.dumps(tree).encode()
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name in self.files:
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(self.files[name])}"'}
            return 200, headers, self.files[name]
        return 404, {"X-Error-Code": "EntryNotFound"}, b""


def digest(content: bytes) -> str:
    """What names a file's content; the hub takes git's."""
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            status, headers, content = state.reply(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self) -> None:
            if "/resolve/" in self.path:
                state.downloads.append(self.path.rpartition("/")[2])
            self.do_HEAD()

        def log_message(self, *_: object) -> None:
            pass

    state = Hub(tmp_path / "hub", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(state.folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    "form", ["directory", "sharded directory", "bin directory", "sharded bin directory"]
)
def test_a_name_on_the_hub_gives_the_same_tensors(
    hub: Hub, weights: Weights, forms: dict[str, Path], form: str
) -> None:
    hub.files = contents(forms[form])

    state, found = open_source("owner/name", "v1")

    local = open_source(forms[form])[1]
    assert_same(state, weights.state)
    assert found == Source("owner/name", COMMIT, local.sha256, local.naming, "float32")
    assert set(hub.revisions) == {"v1"}
    assert sorted(hub.downloads) == sorted(hub.files)


def test_only_what_is_needed_is_downloaded_and_only_once(
    hub: Hub, weights: Weights, forms: dict[str, Path]
) -> None:
    hub.files = {
        **contents(forms["bin directory"]),
        **contents(forms["directory"]),
        "README.md": b"-",
        "adapter_model.safetensors": b"-",
        "tf_model.h5": b"-",
        "onnx/model.onnx": b"-",
        "fp16/model.safetensors": b"-",
    }

    for _ in range(2):
        assert_same(open_source("owner/name")[0], weights.state)

    assert sorted(hub.downloads) == ["config.json", "model.safetensors"]


def test_what_was_downloaded_serves_without_the_hub(
    hub: Hub, weights: Weights, forms: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = contents(forms["directory"])
    online = open_source("owner/name")[1]
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    state, offline = open_source("owner/name")

    assert_same(state, weights.state)
    assert offline == online


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ((404, "RepoNotFound"), "there is no such model, or it is private"),
        ((401, "GatedRepo"), "its owner has to grant access first"),
        ((403, "GatedRepo"), "its owner has to grant access first"),
        ((401, "RepoNotFound"), "there is no such model, or it is private"),
        ((404, "RevisionNotFound"), "it has no such revision"),
        ((500, ""), "it cannot be reached, and has not been downloaded before"),
    ],
)
def test_the_hubs_refusals_are_one_line(hub: Hub, error: tuple[int, str], reason: str) -> None:
    hub.error = error

    text = refusal(lambda: open_source("owner/name"))

    assert text == (
        f"owner/name: no such file or directory, and not to be had from the hub: {reason}"
    )


def test_a_hub_that_is_not_there_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")

    text = refusal(lambda: open_source("owner/name"))

    assert text.endswith("hub: it cannot be reached, and has not been downloaded before")


def test_a_name_that_the_hub_forbids_is_one_line(hub: Hub) -> None:
    text = refusal(lambda: open_source("owner/na--me"))

    assert "not to be had from the hub" in text
    assert hub.revisions == []


def test_other_models_on_the_hub_are_refused(hub: Hub) -> None:
    hub.files = {"config.json": b'{"model_type": "sam2"}', "model.safetensors": save(SMALL)}

    text = refusal(lambda: open_source("owner/name"))

    assert text.endswith("holds a model of type 'sam2'; only 'sam' is served")


def test_a_failure_of_the_network_is_one_line(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the HTTP client raises is neither an OSError nor of the hub's library."""

    class Broken(Exception):
        pass

    def snapshot_download(*_: object, **__: object) -> str:
        raise Broken("line one\nline two")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)

    assert refusal(lambda: open_source("owner/name")).endswith("from the hub: line one")
