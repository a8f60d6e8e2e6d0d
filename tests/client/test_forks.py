"""Processes that fork while they have clients: what works in the child, and what raises instead."""

from __future__ import annotations

from tests.client.conftest import in_a_process
from tests.client.forking import ANSWERED


async def test_a_child_that_is_forked_while_no_call_is_under_way_has_clients() -> None:
    found = await in_a_process("idle")

    expected = {
        "open_client": dict.fromkeys(
            (
                *("the same", "its own", "its own, asyncio", "none, and ends"),
                *("after another call", "parent"),
            ),
            ANSWERED,
        ),
        "closed_client": {"its own": ANSWERED},
        "client_that_failed": {"the same": ANSWERED, "error": "EmbeddingNotFound"},
        "grandchildren": {"grandchild": ANSWERED},
        "search_just_closed": {"the same": ANSWERED},
        "loop_of_another_thread": {"its own": ANSWERED, "parent": "True"},
        "multiprocessing": {"process": "0", "pool": "[True, True, True, True]"},
        "prefork": {"answers": "y" * 9, "workers": "[0, 0, 0]", "parent": ANSWERED},
    }
    assert {name: found[name] for name in expected} == expected
    asyncio_client = found["asyncio_client"]
    assert "open one in the child" in asyncio_client.pop("the same")
    assert set(asyncio_client.values()) == {ANSWERED}


async def test_a_child_that_is_forked_during_a_call_raises_at_once() -> None:
    # gRPC's own fork handlers crash some such children, whatever these do.
    found = (await in_a_process("busy", GRPC_ENABLE_FORK_SUPPORT="false"))["call_under_way"]

    for client in ("the same", "its own", "its own, asyncio"):
        assert "forked while the parent had a call under way" in found.pop(client)
    assert found.pop("rest") == "True"
    assert set(found.values()) == {ANSWERED}
