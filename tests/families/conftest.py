"""One small model of each family with masks around their prompts, exported once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
import torch

from tests.conftest import serving_models
from tests.families import toys
from tests.families.predicting import Served
from tests.families.references import REFERENCES
from tests.families.toys import Toy


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Run the originals in one thread: other tests run at the same time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], toys.Toy]:
    """A cached function that exports a model."""
    made: dict[str, toys.Toy] = {}

    def toy(name: str) -> toys.Toy:
        if name not in made:
            made[name] = toys.MAKERS[name](tmp_path_factory.mktemp(name), name)
        return made[name]

    return toy


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sam2", "sam_hq", pytest.param("edgetam", marks=pytest.mark.slow)],
)
async def served(
    request: pytest.FixtureRequest, repositories: Callable[[str], Toy]
) -> AsyncIterator[Served]:
    """The service on the export of a model, and the original."""
    toy = repositories(request.param)
    reference = REFERENCES[request.param](toy)
    async with serving_models(engine={"model_repository": str(toy.repository)}) as (_, stub):
        yield Served(reference, stub)
