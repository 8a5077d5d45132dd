"""The C library's memory: kept between steps instead of given back to the system and asked for again."""

import contextlib
import ctypes
import functools
import sys
from collections.abc import Callable, Iterator

__all__ = ["kept_heap"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # glibc's <malloc.h>
_depth = 0


@contextlib.contextmanager
def kept_heap() -> Iterator[None]:
    """Within, freed memory stays with the process: no page faults from one training step to the next.

    By default glibc maps every large tensor afresh and unmaps it when it is freed, hundreds of page faults a step. The
    setting is the process's, so the size stays at its high-water mark until the block ends; then memory is handed back
    and glibc works as it does in a process that has freed a large block before. Without glibc nothing happens.

    Example:
        >>> with kept_heap():
        ...     pass
    """
    global _depth
    set_option = _mallopt()
    if set_option is not None and _depth == 0:
        set_option(_MMAP_MAX, 0)
        set_option(_TRIM_THRESHOLD, 2**31 - 1)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if set_option is not None and _depth == 0:
            set_option(_MMAP_MAX, 65536)
            set_option(_MMAP_THRESHOLD, 32 * 2**20)  # where its own adaptation would have ended
            set_option(_TRIM_THRESHOLD, 64 * 2**20)
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return None
    return library.mallopt
