"""Memory that is free, but that the C library keeps."""

import contextlib
import ctypes


def return_freed_memory():
    """Hands free memory back to the system, where the C library can (glibc).

    Weights of many sizes that come and go leave holes between them, which glibc keeps: without
    this, JAX held twice the weights of a ViT-B while it loaded them.
    """
    # Other systems hand it back by themselves, or not at all.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
