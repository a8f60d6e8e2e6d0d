"""Forks of processes with clients: the clients that work in the child, and those that raise."""

from __future__ import annotations

import subprocess
import sys

from tests.client.conftest import run_scenarios
from tests.client.forking import SUCCEEDED


async def test_clients_work_in_a_child_forked_without_a_call_in_flight() -> None:
    found = await run_scenarios("idle")

    expected = {
        "open_client": dict.fromkeys(
            (
                *("the same", "its own", "its own, asyncio", "none, and ends"),
                *("after another call", "parent"),
            ),
            SUCCEEDED,
        ),
        "closed_client": {"its own": SUCCEEDED},
        "client_that_failed": {"the same": SUCCEEDED, "error": "EmbeddingNotFound"},
        "grandchildren": {"grandchild": SUCCEEDED},
        "search_just_closed": {"the same": SUCCEEDED},
        "loop_of_another_thread": {"its own": SUCCEEDED, "parent": "True"},
        "multiprocessing": {"process": "0", "pool": "[True, True, True, True]"},
        "prefork": {"results": "y" * 9, "workers": "[0, 0, 0]", "parent": SUCCEEDED},
    }
    assert {name: found[name] for name in expected} == expected
    asyncio_client = found["asyncio_client"]
    assert "open one in the child" in asyncio_client.pop("the same")
    assert set(asyncio_client.values()) == {SUCCEEDED}


async def test_clients_raise_in_a_child_forked_during_a_call() -> None:
    # gRPC's own fork handlers crash some of these children.
    found = (await run_scenarios("busy", GRPC_ENABLE_FORK_SUPPORT="false"))["call_in_flight"]

    for client in ("the same", "its own", "its own, asyncio"):
        assert "forked while the parent had a call in flight" in found.pop(client)
    assert found.pop("rest") == "True"
    assert set(found.values()) == {SUCCEEDED}


def test_client_can_be_imported_on_a_system_without_forks() -> None:
    code = "import os; del os.register_at_fork; import samserve.client"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
