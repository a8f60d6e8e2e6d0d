"""Embeddings in the cluster: what is stored under a key, and the scripts that change it.

Under each key is one hash, so that all of an embedding is in one slot and changes in one step:

=========== ====================================================================================
``v1``      the value of format 1, see `value_format`; another format is another
            field, so gateways of two versions serve side by side
``s1``      the checksum of ``v1``, to tell values apart without reading them
``deleted`` a random marker: the embedding was deleted.  No other field is there then
=========== ====================================================================================

The key expires as a whole.  Every change is one script, because what is stored depends on whether
the embedding was deleted in the meantime.
"""

from __future__ import annotations

from typing import Any

from samserve.errors import StoreUnavailable
from samserve.stores.shared.base import Command, Reply
from samserve.stores.shared.value_format import FORMAT

VALUE, CHECKSUM = f"v{FORMAT}", f"s{FORMAT}"
MAYBE = (bytes, type(None))
"""What `parts_of` takes for a field that may be missing."""

# ARGV: deletion marker that the writer has seen, value, checksum, milliseconds to live.  HSET comes
# first: a script that has begun to write is not stopped for want of memory.  What is there is
# written to as well, by its expiry: a replica can only confirm what this connection has written.
PUT = f"""
local marker = redis.call('HGET', KEYS[1], 'deleted')
if marker and marker ~= ARGV[1] then return {{'deleted', marker}} end
local checksum = redis.call('HGET', KEYS[1], '{CHECKSUM}')
local outcome = checksum and 'exists' or 'stored'
if not checksum then
  redis.call('HSET', KEYS[1], '{VALUE}', ARGV[2], '{CHECKSUM}', ARGV[3])
  redis.call('HDEL', KEYS[1], 'deleted')
end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[4])))
return {{outcome, checksum or ARGV[3]}}
"""
# ARGV: milliseconds to live.
RENEW = f"""
local found = redis.call('HMGET', KEYS[1], 'deleted', '{CHECKSUM}')
if found[2] then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return found
"""
# ARGV: new deletion marker, milliseconds to live.  DEL comes first, for the same reason: this one
# must not be stopped.
DELETE = f"""
local existed = redis.call('HEXISTS', KEYS[1], '{CHECKSUM}')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'deleted', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return existed
"""
# ARGV: SHA-1 of the bytes that are damaged.  Others were damaged on their way, and stay.
REMOVE = f"""
local value = redis.call('HGET', KEYS[1], '{VALUE}')
if value and redis.sha1hex(value) == ARGV[1] then
  return redis.call('HDEL', KEYS[1], '{VALUE}', '{CHECKSUM}')
end
return 0
"""


def needs_majority(name: bytes) -> Command:
    """Return a command that changes nothing, and that only a node which sees the majority takes.

    A master that is cut off from the others does not know what was deleted since.  It refuses to
    write after ``cluster-node-timeout``; ``cluster-allow-reads-when-down`` has it answer reads for
    as long as that lasts.  So each read that tells of deletions goes with a write.
    """
    return ("HDEL", name, "")


def parts_of(reply: Reply, *kinds: Any) -> tuple[Any, ...]:
    """Take a reply apart that has an element of each kind; others are an outage."""
    right = isinstance(reply, list) and len(reply) == len(kinds)
    if right and all(isinstance(each, kind) for each, kind in zip(reply, kinds, strict=True)):
        return tuple(reply)
    raise StoreUnavailable("the shared cache does not answer as it should")
