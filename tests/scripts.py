"""The files that are no part of the package: recipes, and what writes the pages of docs."""

import importlib.util
import sys

from conftest import REPOSITORY

RECIPES = sorted((REPOSITORY / "recipes").glob("*.py"))


def load_script(path):
    """The module that a file is, by its path."""
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module  # Dataclasses look their module up.
    specification.loader.exec_module(module)
    return module
