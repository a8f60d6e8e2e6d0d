"""Options and results of the commands for models of each family."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from samserve import app
from samserve.engines.fake import FakeEngine

from tests.cli.conftest import FAKE, Command
from tests.support.engines import SMALL_MODEL

GRID = ("--points-per-side", "3")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that makes the fake engine serve a model of a family."""

    def select(family: str) -> None:
        engine = partial(FakeEngine, model=replace(SMALL_MODEL, family=family))
        monkeypatch.setattr(app, "FakeEngine", engine)

    return select


def test_predict_writes_the_object_score_of_sam2(
    samserve: Command, image: Path, serve: Callable[[str], None]
) -> None:
    serve("sam2")
    boxes = ("--box", "1,1,30,30", "--box", "20,20,60,40")

    lines = samserve("predict", image, *boxes, *FAKE).out.splitlines()
    record = json.loads(samserve("predict", image, *boxes, "--json", "-", *FAKE).out)

    assert [line.split()[-1] for line in lines] == ["object_score=0.9820"] * 2
    assert [result["object_score"] for result in record["results"]] == [
        pytest.approx(0.982, abs=1e-3)
    ] * 2


@pytest.mark.parametrize(
    ("mode", "tokens"), [((), [4]), (("--hq-mode", "only"), [4]), (("--hq-mode", "off"), [1, 2, 3])]
)
def test_hq_mode_of_predict(
    samserve: Command,
    image: Path,
    serve: Callable[[str], None],
    mode: tuple[str, ...],
    tokens: list[int],
) -> None:
    serve("sam_hq")

    lines = samserve("predict", image, "--point", "30,20", "--multimask", "all", *mode, *FAKE).out

    assert [line.split()[1] for line in lines.splitlines()] == [
        f"token={token}" for token in tokens
    ]


def test_hq_mode_is_an_error_for_other_families(samserve: Command, image: Path) -> None:
    result = samserve("predict", image, "--point", "30,20", "--hq-mode", "off", *FAKE)

    assert result.code != 0
    assert "hq_mode" in result.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "candidates"),
    [
        (("--hq-mode", "added"), 9),
        (("--hq-mode", "off"), 27),
        (("--hq-mode", "off", "--no-multimask-output"), 9),
        (("--hq-mode", "off", "--use-m2m"), 27),
    ],
)
def test_candidates_of_automask(
    samserve: Command,
    image: Path,
    serve: Callable[[str], None],
    options: tuple[str, ...],
    candidates: int,
) -> None:
    serve("sam_hq")

    result = samserve("automask", image, *GRID, *options, *FAKE)

    assert f"pred_iou {candidates} ->" in result.err


def test_thresholds_of_zero_are_sent(samserve: Command, image: Path) -> None:
    options = ("--pred-iou-thresh", "0", "--stability-score-thresh", "0")

    result = samserve("automask", image, *GRID, *options, *FAKE)

    assert "pred_iou 27 -> 27, stability_score 27 -> 27" in result.err


def test_models_writes_everything_about_a_model_as_json(
    samserve: Command, serve: Callable[[str], None]
) -> None:
    serve("sam_hq")

    (model,) = json.loads(samserve("models", "--json", *FAKE).out)["models"]

    assert (model["family"], model["mask_tokens"]) == ("sam_hq", 5)
    assert "hq_mode" in model["capabilities"]
    defaults: dict[str, Any] = model["automask_defaults"]
    assert (defaults["pred_iou_thresh"], defaults["use_m2m"]) == (0.88, False)
    assert model["card"]["license"] == ""
