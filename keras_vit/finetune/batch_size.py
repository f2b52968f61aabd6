"""How many images fit on the device at once, found by trying."""

from collections.abc import Callable

# What the backends say, in lower case: TensorFlow and JAX the first, PyTorch the second.
_OUT_OF_MEMORY = ("resource_exhausted", "resourceexhausted", "out of memory", "oom when allocating")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is used up.

    >>> is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    True
    """
    text = f"{type(error).__name__} {error}".lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY)


def largest_fitting(batch_size: int, attempt: Callable[[int], object]) -> int:
    """The largest part of a batch for which an attempt does not run out of memory.

    Args:
        batch_size: Images an optimizer step; its divisors are tried, the largest first, each at
            most half of the one that failed.
        attempt: Called with a number of images; raises where memory does not suffice.

    Returns:
        The number of images of the first attempt that succeeded.

    Raises:
        MemoryError: If not even one image fits.

    Example:

    >>> def attempt(images):
    ...     if images > 100:
    ...         raise MemoryError
    >>> largest_fitting(512, attempt)
    512 images at once do not fit the device's memory.
    256 images at once do not fit the device's memory.
    128 images at once do not fit the device's memory.
    64
    """
    limit = batch_size
    while limit >= 1:
        size = max(part for part in range(1, limit + 1) if batch_size % part == 0)
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(f"{size} images at once do not fit the device's memory.", flush=True)
            limit = size // 2
        else:
            return size
    raise MemoryError(
        "Not even one image fits the device's memory. Choose a smaller model or image_size, or "
        "free the device"
    )
