"""The data model of the shared tier, and the scripts that change it.

Each key holds one hash, so that an embedding is in one slot and changes atomically:

=========== ====================================================================================
``v2``      the value in format 2, see `value_format`; other formats use other fields, so that
            gateways of two versions can run side by side.  Of a large value it is the first piece
``p2:C:N``  the piece N, from 1, of a large value with the checksum C in hexadecimal digits, see
            `pieces`; the pieces are written before ``v2``
``s2``      the checksum of the value, to compare values without reading them
``deleted`` a random marker: the embedding was deleted.  Then there is no other field
=========== ====================================================================================

The key expires as a whole.  Every change is one script, because it depends on whether the embedding
was deleted in the meantime; pieces have no effect without ``v2``.
"""

from __future__ import annotations

from typing import Any

from samserve.cache.shared.base import Command, Reply
from samserve.cache.shared.value_format import FORMAT
from samserve.errors import CacheUnavailable

VALUE, CHECKSUM, PIECE = f"v{FORMAT}", f"s{FORMAT}", f"p{FORMAT}"
OPTIONAL = (bytes, type(None))
"""The kind for `unpack_reply` of a field that may be missing."""

# ARGV: deletion marker that the writer has read, value or its first piece, checksum, milliseconds
# to live, fields of the other pieces.  HSET comes first: a script that has begun to write is not
# aborted when memory is exhausted.  PEXPIRE writes to an existing value as well: a replica only
# confirms writes of this connection.  Pieces that are not part of a value are removed.
PUT = f"""
local marker = redis.call('HGET', KEYS[1], 'deleted')
local checksum = redis.call('HGET', KEYS[1], '{CHECKSUM}')
local deleted = marker and marker ~= ARGV[1]
if deleted or checksum and checksum ~= ARGV[3] then
  for i = 5, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
end
if deleted then return {{'deleted', marker}} end
local outcome = checksum and 'exists' or 'stored'
if not checksum then
  for i = 5, #ARGV do
    if redis.call('HEXISTS', KEYS[1], ARGV[i]) == 0 then
      return redis.error_reply('ERR a piece of the value was removed')
    end
  end
  redis.call('HSET', KEYS[1], '{VALUE}', ARGV[2], '{CHECKSUM}', ARGV[3])
  redis.call('HDEL', KEYS[1], 'deleted')
end
redis.call('PEXPIRE', KEYS[1], math.max(redis.call('PTTL', KEYS[1]), tonumber(ARGV[4])))
return {{outcome, checksum or ARGV[3]}}
"""
# ARGV: field of a piece, its bytes, milliseconds to live.  A new key expires from its first piece
# on, whatever happens to the connection.
PUT_PIECE = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if redis.call('PTTL', KEYS[1]) == -1 then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 0
"""
# ARGV: milliseconds to live.
RENEW = f"""
local found = redis.call('HMGET', KEYS[1], 'deleted', '{CHECKSUM}')
if found[2] then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return found
"""
# ARGV: new deletion marker, milliseconds to live.  DEL comes first, for the same reason: a deletion
# must not be aborted.
DELETE = f"""
local existed = redis.call('HEXISTS', KEYS[1], '{CHECKSUM}')
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'deleted', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return existed
"""
# ARGV: the fields that were read, each followed by the SHA-1 of its corrupt bytes.  Other bytes
# were corrupted in transit, and the value stays.
REMOVE = f"""
for i = 1, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if not value or redis.sha1hex(value) ~= ARGV[i + 1] then return 0 end
end
for i = 1, #ARGV, 2 do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('HDEL', KEYS[1], '{CHECKSUM}')
return 1
"""


def majority_check(name: bytes) -> Command:
    """Return a write that changes nothing, and that only a node with a majority accepts.

    A partitioned master does not know about deletions by its successor.  It rejects writes after
    ``cluster-node-timeout``, but with ``cluster-allow-reads-when-down`` it serves reads for as long
    as the partition lasts.  So this write accompanies each read that checks for deletions.
    """
    return ("HDEL", name, "")


def unpack_reply(reply: Reply, *kinds: Any) -> tuple[Any, ...]:
    """Return the elements of a list reply, one of each kind.

    Raises `CacheUnavailable` for any other reply.
    """
    matches = isinstance(reply, list) and len(reply) == len(kinds)
    if matches and all(isinstance(each, kind) for each, kind in zip(reply, kinds, strict=True)):
        return tuple(reply)
    raise CacheUnavailable("the shared cache returned an unexpected reply")
