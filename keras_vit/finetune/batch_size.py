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


def batch_parts(batch_size: int, *, multiple_of: int = 1, mixes: bool = False) -> list[int]:
    """How many images of a batch can be computed at once, the fewest first.

    Args:
        batch_size: Images an optimizer step, which all parts divide.
        multiple_of: What the numbers are multiples of, as of the number of devices.
        mixes: Whether images are mixed with each other, for which it takes two.

    Example:

    >>> batch_parts(12), batch_parts(12, mixes=True), batch_parts(12, multiple_of=4)
    ([1, 2, 3, 4, 6, 12], [2, 3, 4, 6, 12], [4, 12])
    """
    # A batch of one image is left as it is.
    fewest = min(2, batch_size) if mixes else 1
    sizes = range(multiple_of, batch_size + 1, multiple_of)
    return [size for size in sizes if size >= fewest and batch_size % size == 0]


def largest_fitting(
    batch_size: int, attempt: Callable[[int], object], *, multiple_of: int = 1, mixes: bool = False
) -> int:
    """The largest part of a batch for which an attempt does not run out of memory.

    Args:
        batch_size: Images an optimizer step; of its parts (`batch_parts`) the largest is tried
            first, then those of at most half of the one that failed, and the smallest.
        attempt: Called with a number of images; raises where memory does not suffice.
        multiple_of: What the number is a multiple of, as of the number of devices.
        mixes: Whether images are mixed with each other.

    Returns:
        The number of images of the first attempt that succeeded.

    Raises:
        MemoryError: If not even the smallest part fits.

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
    sizes = batch_parts(batch_size, multiple_of=multiple_of, mixes=mixes)
    smallest = sizes[0]
    while sizes:
        size = sizes.pop()
        try:
            attempt(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            print(f"{size} images at once do not fit the device's memory.", flush=True)
            sizes = [other for other in sizes if other <= max(size // 2, smallest)]
        else:
            return size
    few = "one image fits" if smallest == 1 else f"{smallest} images fit"
    other_batch = ""
    if smallest > max(2, multiple_of):
        other_batch = f"a batch_size with smaller parts (now {batch_size}), "
    raise MemoryError(
        f"Not even {few} the device's memory. Choose {other_batch}a smaller model or "
        "image_size, or free the device"
    )
