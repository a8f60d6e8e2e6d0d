"""Shared memory segments: permissions, location of arrays, and orphans of ended processes."""

from __future__ import annotations

import mmap
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from samserve.errors import MemoryExhausted
from samserve.memory.posix import PREFIX, Location, SharedMemory

PAGE = mmap.PAGESIZE
DIRECTORY = Path("/dev/shm")


@pytest.fixture
def shared() -> Iterator[SharedMemory]:
    memory = SharedMemory()
    yield memory
    memory.close()


def file_of(key: str) -> Path:
    return DIRECTORY / key.lstrip("/")


def committed_bytes(key: str) -> int:
    """Return the bytes of memory that the segment uses."""
    return file_of(key).stat().st_blocks * 512


def test_a_segment_is_a_file_that_another_process_can_map(shared: SharedMemory) -> None:
    segment = shared.create(3 * PAGE + 1)
    segment.array[:4] = [1, 2, 3, 4]

    content = file_of(segment.key).read_bytes()

    assert segment.nbytes == len(content) == 4 * PAGE
    assert list(content[:5]) == [1, 2, 3, 4, 0]


def test_keys_are_never_reused(shared: SharedMemory) -> None:
    first = shared.create(1)
    shared.close_segment(first)
    second = shared.create(1)

    assert first.key != second.key
    assert not file_of(first.key).exists()
    assert second.key.startswith(f"/{PREFIX}")


def test_only_user_and_group_may_map_a_segment(shared: SharedMemory) -> None:
    before = os.umask(0o077)
    try:
        segment = shared.create(1)
    finally:
        os.umask(before)

    assert stat.S_IMODE(file_of(segment.key).stat().st_mode) == 0o660


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the group of a file")
def test_a_segment_belongs_to_the_configured_group() -> None:
    memory = SharedMemory(group=12345)
    segment = memory.create(1)
    group = file_of(segment.key).stat().st_gid
    memory.close()

    assert group == 12345


def test_memory_is_used_once_committed_until_released(shared: SharedMemory) -> None:
    segment = shared.create(64 * PAGE)
    assert committed_bytes(segment.key) == 0

    segment.commit(0, 64 * PAGE)
    assert committed_bytes(segment.key) == 64 * PAGE
    segment.array[:] = 9

    segment.release(PAGE, 2 * PAGE)
    assert committed_bytes(segment.key) == 62 * PAGE
    assert segment.array[PAGE : 3 * PAGE].max() == 0
    assert segment.array[:PAGE].min() == segment.array[3 * PAGE :].min() == 9


def test_a_full_file_system_is_an_error_and_not_a_signal(shared: SharedMemory) -> None:
    too_large = 1 << 40
    segment = shared.create(too_large)

    with pytest.raises(MemoryExhausted, match="bytes free") as caught:
        segment.commit(0, too_large)

    assert caught.value.metadata["needed"] == str(too_large)
    assert committed_bytes(segment.key) < too_large


def test_arrays_are_located_by_their_address(shared: SharedMemory) -> None:
    segments = [shared.create(4 * PAGE) for _ in range(3)]
    inside = segments[1].array[100:612].view(np.float16).reshape(16, 16)

    assert shared.locate(inside) == Location(segments[1].key, 100)
    assert shared.locate(segments[2].array) == Location(segments[2].key, 0)
    assert shared.locate(inside[None, 3:]) == Location(segments[1].key, 100 + 3 * 32)
    assert shared.locate(inside[:, :3]) is None
    assert shared.locate(np.zeros(3)) is None
    assert shared.locate(inside.copy()) is None


def test_the_base_of_a_view_lives_as_long_as_the_last_view_of_it(shared: SharedMemory) -> None:
    segment = shared.create(PAGE)
    view = segment.view(16, (2, 3, 4))
    view[1, 2, 3] = 5

    part = view[1][2:].T
    assert part.base is view.base is not segment.array
    assert segment.array[16:].view(np.float32)[23] == 5


def test_views_stay_valid_after_the_segment_is_closed(shared: SharedMemory) -> None:
    segment = shared.create(PAGE)
    segment.array[:] = 7
    view = segment.array[:10]
    shared.close()

    assert list(view) == [7] * 10
    assert not file_of(segment.key).exists()


def test_segments_of_running_processes_are_not_orphans(shared: SharedMemory) -> None:
    segment = shared.create(1)

    assert segment.key not in SharedMemory().remove_orphans()
    assert file_of(segment.key).exists()


def test_segments_of_a_killed_process_are_removed() -> None:
    program = (
        "import time\n"
        "from samserve.memory.posix import SharedMemory\n"
        "print(SharedMemory().create(4096).key, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        key = owner.stdout.readline().decode().strip()
        before = SharedMemory().remove_orphans()
        owner.send_signal(signal.SIGKILL)
    assert file_of(key).exists()
    removed = SharedMemory().remove_orphans()

    assert key not in before
    assert key in removed
    assert not file_of(key).exists()


def test_foreign_files_are_not_removed(tmp_path: Path) -> None:
    (tmp_path / "foreign").write_bytes(b"x")
    (tmp_path / f"{PREFIX}of-another-kind").write_bytes(b"x")
    (tmp_path / f"{PREFIX}0123456789abcdef").symlink_to(tmp_path / "foreign")

    assert SharedMemory(tmp_path).remove_orphans() == []
    assert len(list(tmp_path.iterdir())) == 3
