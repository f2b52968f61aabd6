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


def largest_fitting(
    batch_size: int, attempt: Callable[[int], object], *, multiple_of: int = 1
) -> int:
    """The largest part of a batch for which an attempt does not run out of memory.

    Args:
        batch_size: Images an optimizer step; its divisors are tried, the largest first, each at
            most half of the one that failed.
        attempt: Called with a number of images; raises where memory does not suffice.
        multiple_of: What the number is a multiple of, as of the number of devices.

    Returns:
        The number of images of the first attempt that succeeded.

    Raises:
        MemoryError: If not even one image fits, or `multiple_of` of them.

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
    while limit >= multiple_of:
        sizes = range(multiple_of, limit + 1, multiple_of)
        size = max(size for size in sizes if batch_size % size == 0)
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(f"{size} images at once do not fit the device's memory.", flush=True)
            limit = size // 2
        else:
            return size
    few = "one image fits" if multiple_of == 1 else f"{multiple_of} images fit"
    raise MemoryError(
        f"Not even {few} the device's memory. Choose a smaller model or image_size, or "
        "free the device"
    )
