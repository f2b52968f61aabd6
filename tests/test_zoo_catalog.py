"""The catalog of published weights: its facts hang together, and are found by name."""

import dataclasses
import re
from urllib.parse import urlsplit

import pytest

from keras_vit import cli, models
from keras_vit.zoo.catalog import find, list_weights, read_catalog

HOSTS = {"storage.googleapis.com", "huggingface.co"}
ENTRIES = list(read_catalog().values())


def test_is_broad():
    assert len(ENTRIES) >= 80
    families = {entry.family for entry in ENTRIES}
    expected = {"ViT", "AugReg", "SAM", "big_vision", "DeiT", "DeiT-III", "MAE", "DINO", "DINOv2"}
    assert families >= expected | {"DINOv3", "SigLIP", "SigLIP 2", "CLIP", "BEiT", "BEiT v2"}


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_entry_hangs_together(entry):
    assert re.fullmatch(r"[a-z0-9]+-[a-z0-9]+(-[a-z0-9]+)+", entry.name)
    size = entry.name.split("-")[0]
    assert re.search(r"(ti|s|m|b|l|h|g|so400m|plus|gopt|r)\d+$", size)
    # r26s32 is called r26_s32, and b16-deitdistilled-… deit_b16_distilled.
    assert size in "".join(entry.variant.split("_")), (size, entry.variant)
    row = models.VARIANTS[entry.variant]
    assert "stem_blocks" in row or str(row["patch_size"]) in size
    assert entry.format in ("google", "timm", "hf")
    assert entry.licence
    assert entry.activation in (None, "gelu", "gelu_tanh", "quick_gelu")
    assert 16 <= entry.image_size <= 1024
    patch = int(re.search(r"\d+$", size)[0])
    assert entry.image_size % patch == 0
    assert entry.parameters is None or 1e6 < entry.parameters < 3e10
    assert entry.num_classes is None or 0 <= entry.num_classes < 22000
    for result in entry.accuracy:
        assert 20 < result.value < 100
        assert result.data
        assert result.metric
        assert result.source


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_files_are_published_over_https(entry):
    names = [file.name for file in entry.files]
    assert len(set(names)) == len(names)
    for file in entry.files:
        address = urlsplit(file.address)
        assert address.scheme == "https"
        assert address.hostname in HOSTS
        assert "{" not in file.address
        assert " " not in file.address
        assert file.name.endswith((".npz", ".safetensors", ".json"))
        assert file.size is None or file.size > 0
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
    if entry.format != "google":
        assert {"model.safetensors", "config.json"} <= set(names)


def test_no_address_has_two_names():
    addresses = [file.address for entry in ENTRIES for file in entry.files]
    assert len(set(addresses)) == len(addresses)


def test_known_facts():
    tiny = find("ti16-augreg-in21k-ft-in1k")
    assert (tiny.variant, tiny.image_size, tiny.num_classes) == ("vit_ti16", 224, 1000)
    assert tiny.parameters == 5_717_416
    assert tiny.preprocessing.mean == (0.5, 0.5, 0.5)
    assert tiny.preprocessing.crop_fraction == 0.9
    assert find("b16-mae-in1k").licence == "cc-by-nc-4.0"
    assert find("b16-dinov3-lvd1689m").gated
    large = find("l16-augreg-in21k-ft-in1k-384")
    assert large.files[0].name.startswith("L_16-i21k-300ep-lr_0.001-aug_strong1")
    assert large.accuracy[0].value == 85.59
    assert "vision_transformer" in large.accuracy[0].source


def test_lists_by_pattern():
    names = list_weights("b16*")
    assert "b16-augreg-in21k" in names
    assert {find(name).name.split("-")[0] for name in names} == {"b16"}
    assert list_weights() == sorted(read_catalog())
    assert list_weights("nothing*") == []


def test_finds_by_variant_and_the_rest_of_the_name():
    assert find("augreg-in21k", "vit_l16").name == "l16-augreg-in21k"
    assert find("b16-augreg-in21k", "vit_b16").name == "b16-augreg-in21k"
    for family in ("mae", "dino"):
        assert find(f"{family}-in1k", f"{family}_b16").name == f"b16-{family}-in1k"
    assert find("b16-dino-in1k", "vit_b16") == find("b16-dino-in1k", "dino_b16")


def test_finds_by_the_publishers_name():
    entries = read_catalog().values()
    assert all(find(entry.published_name) is entry for entry in entries)
    timm = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert find(timm, "vit_ti16").name == "ti16-augreg-in21k-ft-in1k"
    with pytest.raises(ValueError, match="another width or depth"):
        find(timm, "vit_b16")


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="b16-augreg-in21k"):
        find("b16_augreg_in21k")
    with pytest.raises(ValueError, match="'augreg-in21k'"):
        find("augreg-in21k")
    with pytest.raises(ValueError, match="Of vit_b16: .*b16-augreg-in21k"):
        find("nonsense", "vit_b16")


def test_weights_of_another_size_are_refused_before_anything_is_fetched():
    with pytest.raises(ValueError, match=r"vit_l16.*another width or depth than vit_b16"):
        find("l16-augreg-in21k", "vit_b16")


def test_entries_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        find("b16-augreg-in21k").name = "other"


def test_command_prints_a_table_of_120_columns(capsys):
    assert cli.main(["list", "--weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(ENTRIES) + 1
    assert max(map(len, lines)) <= 120
    assert cli.main(["list", "ti16-augreg*", "--weights"]) == 0
    table = capsys.readouterr().out
    assert "ti16-augreg-in21k-ft-in1k " in table
    assert "5.7 M" in table
    assert "apache-2.0" in table
    assert "75.5 %" in table
    assert "b16" not in table


def test_command_still_lists_models(capsys):
    assert cli.main(["list", "vit_b16"]) == 0
    assert "vit_b16" in capsys.readouterr().out
    assert cli.main(["list", "nothing*", "--weights"]) == 2
    assert "No published weights" in capsys.readouterr().err
