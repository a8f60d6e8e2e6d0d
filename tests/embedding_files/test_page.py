"""The code of `docs/embeddings.md` works, and its numbers are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from samserve.client import Client, Prompt
from samserve.core import safetensors
from samserve.engines.fake import FakeEngine
from samserve.segmentation import embedding_files, embedding_format
from samserve.settings import EmbeddingFileSettings

from tests import sample_images
from tests.conftest import serving
from tests.embedding_files.files import SMALL, content_id, enabled, facts_of, tensors_of

PAGE = (Path(__file__).parents[2] / "docs" / "embeddings.md").read_text(encoding="utf-8")


def code() -> dict[str, Any]:
    """Run the Python code of the page and return what it defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)
    return names


async def test_examples_of_the_page_work(tmp_path: Path) -> None:
    names, file = code(), tmp_path / "image.safetensors"
    image = tmp_path / "image.png"
    image.write_bytes(sample_images.png())
    async with (
        serving(enabled(), engine=FakeEngine(model=SMALL)) as (running, _),
        Client(running.address) as client,
    ):
        await names["keep"](client, str(image), file)
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        known_id = header["__metadata__"]["id"]
        prompts = [Prompt(points=[(10, 10)])]
        # Once without the file in the cache, and twice with it.
        first = await names["segment_again"](client, file, known_id, prompts)
        second = await names["segment"](client, file, 10, 10)
        third = await names["segment_again"](client, Path("missing"), known_id, prompts)

    assert {each.embedding.id for each in (first, second, third)} == {known_id}
    assert all((each.results[0][0].array).any() for each in (first, second, third))


def test_id_of_the_page_is_that_of_the_server() -> None:
    facts = facts_of()
    assert code()["file_id"](facts, tensors_of()) == content_id(facts, tensors_of())


def test_page_names_every_setting_and_limit() -> None:
    for name in EmbeddingFileSettings.model_fields:
        assert name in PAGE
    assert embedding_format.FORMAT in PAGE
    assert embedding_format.CHUNK_BYTES == 1 << 20
    assert "1 byte to 1 MiB" in PAGE
    assert embedding_files._MIN_MEAN_CHUNK == 4 << 10
    assert "4 KiB on average" in PAGE
    assert embedding_files._FREE_CHUNKS == 64
    assert "the first 64\nchunks may be smaller" in PAGE
    assert safetensors.MAX_HEADER_BYTES == 64 << 10
    assert "at most 64 KiB" in PAGE
