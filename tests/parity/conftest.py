"""Nothing here is collected where the libraries are not installed (the extra `parity`)."""

from importlib.util import find_spec

LIBRARIES = ("timm", "torch", "torchvision", "transformers")

if not all(map(find_spec, LIBRARIES)):
    collect_ignore_glob = ["*.py"]
