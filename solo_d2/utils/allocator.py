"""Memory that the C library keeps for the next tensors instead of returning it to the system."""

import ctypes
import os
import platform

# Parameters of mallopt, from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Bytes of the largest block that is kept, and of free memory at the end of the heap.
KEPT = 1 << 30


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory, for the whole process until it ends.

    By default, glibc returns a freed tensor of 32 MiB or more to the system, which clears new pages
    for the next one. Threads that start later use the main heap, too, because a heap of their own
    could not hold such tensors.

    Returns:
        Whether it could be set. On systems without glibc, or if the user has set an option of its
        allocator (MALLOC_..., GLIBC_TUNABLES), nothing changes.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    is_set = is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if is_set or platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    options = ((_MMAP_THRESHOLD, KEPT), (_TRIM_THRESHOLD, KEPT), (_ARENA_MAX, 1))
    return all(set_option(name, value) for name, value in options)
