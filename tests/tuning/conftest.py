"""Fixtures of the tests of tuning: a toy model, and one thread for torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.tuning import toys
from tests.tuning.toys import Toy


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Other tests run beside these: more threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_toy(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A small SAM."""
    return toys.sam1(tmp_path_factory.mktemp("sam1"))
