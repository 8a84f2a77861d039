"""The reader of kernel memory, as its one user knows it."""

import struct

from guessers.memory import CHUNK_SIZE, CHUNKS, KernelMemory, compiled
from guessers.namespace import in_own_thread
from kcompat.kernel import Kernel
from kcompat.version import running_version_code


def test_an_order_ends_at_its_first_0():
    """Behind it stand addresses of a longer order before, where something else may be by now."""
    last, untouched = (CHUNKS - 1).to_bytes(4, "little"), struct.pack("<q", 1) + bytes(CHUNK_SIZE)

    def act(nonce):
        with KernelMemory(compiled(running_version_code(Kernel.running().release))) as memory:
            memory.adopt(nonce)
            # Of the first page nothing can be read, which is an answer too.
            assert len(memory._chunks(8, CHUNKS)) == CHUNKS
            chunks = memory._loaded.maps["chunks"]
            answered = chunks.get(last)
            chunks.set(last, untouched)
            memory._chunks(8, 1)
            return answered, chunks.get(last)

    answered, behind = in_own_thread(act)
    assert answered != untouched
    assert behind == untouched
