"""docs/zoo.md: up to date, and its figures and names true."""

import re
import runpy

import pytest
from conftest import REPOSITORY

from keras_vit.models import VARIANTS, VisionTransformerConfig, count_parameters
from keras_vit.zoo.catalog import find, read_catalog

SCRIPT = REPOSITORY / "docs" / "make_zoo.py"
# What timm's files of these variants have otherwise, which the catalog does not tell: the class
# token's position is folded into the token, and biases that are zero are left out.
IN_FILES = {"dinov2_reg": {"position_slots": "patches"}, "dinov3": {"qkv_bias": False}}


@pytest.fixture(scope="module")
def page():
    if not SCRIPT.exists():
        pytest.skip("docs/ is not here")
    return runpy.run_path(str(SCRIPT))["page"]()


def test_the_page_is_what_make_zoo_writes(page):
    written = (REPOSITORY / "docs" / "zoo.md").read_text(encoding="utf-8")
    assert written == page, "docs/zoo.md is out of date: run `make zoo`"


def test_every_model_and_every_name_is_there(page):
    rows = set(re.findall(r"^\| `([^`]+)`", page, flags=re.MULTILINE))
    assert rows == {*VARIANTS, *read_catalog()}
    columns = {line.count(" | ") for line in page.splitlines() if line.startswith("| `")}
    assert columns == {9}


def test_the_names_of_the_examples_are_known(page):
    assert find("augreg-in21k", "vit_b16") == find("b16-augreg-in21k")
    for name in re.findall(r'from_checkpoint\("([a-z0-9-]+)"', page):
        find(name)


def published():
    return [entry for entry in read_catalog().values() if entry.parameters is not None]


@pytest.mark.parametrize("entry", published(), ids=lambda entry: entry.name)
def test_published_parameters_are_the_models(entry):
    fields = dict(VARIANTS[entry.variant])
    for family, switches in IN_FILES.items():
        fields |= switches if entry.variant.startswith(family) else {}
    fields |= {"image_size": entry.image_size, "include_top": bool(entry.num_classes)}
    if entry.num_classes:
        fields["num_classes"] = entry.num_classes
    assert count_parameters(VisionTransformerConfig(**fields)) == entry.parameters
