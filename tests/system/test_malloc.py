"""Large buffers are returned to the system."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import ctypes
from samserve.system.malloc import return_large_buffers

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

class Mallinfo2(ctypes.Structure):
    _fields_ = [(f"field{number}", ctypes.c_size_t) for number in range(10)]

libc.mallinfo2.restype = Mallinfo2

def own_mappings():
    # After a buffer is freed, the next one of its size comes from a pool, unless that is disabled.
    libc.free(libc.malloc(20 << 20))
    before = libc.mallinfo2().field3
    libc.malloc(2 << 20)
    return libc.mallinfo2().field3 - before

print(own_mappings())
return_large_buffers()
print(own_mappings())
"""


def test_large_buffers_have_mappings_of_their_own() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True)

    assert done.stdout.split() == [b"0", b"1"]
