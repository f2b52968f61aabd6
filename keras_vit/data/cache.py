"""Where what is made from data sets is kept."""

import os
from pathlib import Path


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """The folder given, or `$KERAS_VIT_CACHE`, or `~/.cache/keras_vit`."""
    chosen = cache_dir or os.environ.get("KERAS_VIT_CACHE") or "~/.cache/keras_vit"
    return Path(chosen).expanduser()
