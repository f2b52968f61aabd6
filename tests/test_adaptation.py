"""What trains: ordered rules, LoRA, the last blocks, the head on cached features, averages."""

import dataclasses
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vit.finetune import Recipe, run
from keras_vit.finetune.adaptation import prepare_for_training, split_at_head
from keras_vit.finetune.features import FeatureBatches, cached_features
from keras_vit.finetune.optimizer import averaged_weights, make_optimizer, use_averaged_weights
from keras_vit.finetune.rules import WeightPlan, format_plans, match_rules, weight_plans
from keras_vit.models import VisionTransformerConfig, vision_transformer

ARCHITECTURE = VisionTransformerConfig(
    patch_size=4, hidden_size=16, depth=3, mlp_dim=32, num_heads=2, image_size=8, num_classes=10
)
RECIPE = Recipe(
    name="tiny",
    image_size=8,
    resize_size=8,
    horizontal_flip=False,
    learning_rate=0.1,
    steps=12,
    batch_size=32,
    warmup_steps=2,
    validation_fraction=0.1,
    evaluate_every=6,
    checkpoint_every=6,
    precision="float32",
    report=False,
)
# Of the head alone.
HEAD_RECIPE = dataclasses.replace(RECIPE, adapt="head", resize_size=None, horizontal_flip=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_VIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pretrained(tmp_path):
    """A file to start from, every weight random, and its model."""
    keras.utils.set_random_seed(1)
    model = vision_transformer(ARCHITECTURE)
    random = np.random.default_rng(0)
    noise = [random.normal(scale=0.02, size=weight.shape) for weight in model.weights]
    model.set_weights(
        [weight + part for weight, part in zip(model.get_weights(), noise, strict=True)]
    )
    path = tmp_path / "pretrained.keras"
    model.save(path)
    return path, model


def weights_of(model):
    return {weight.path: np.asarray(keras.ops.convert_to_numpy(weight)) for weight in model.weights}


def changed(before, after):
    return {path for path, value in before.items() if not np.array_equal(value, after[path])}


# rules -------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_the_whole_path_decides():
    rules = ((r"head/.*", 3), (r".*/bias", 2), (r".*", 1))
    paths = ["block_0/mlp/bias", "head/bias", "head/kernel", "block_0/head/kernel"]
    assert match_rules(rules, paths, "rules") == [2, 3, 3, 1]


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ((("head/.*", True),), r"covers 1 of 2 weights.*'block_0/bias'.*End with a rule"),
        ((("heda/.*", True), (".*", False)), r"'heda/\.\*' of `trainable_rules` matches no weight"),
        ((("head/(", True), (".*", False)), r"'head/\(' of `trainable_rules` is no regular"),
    ],
)
def test_rules_that_leave_a_weight_uncovered_or_match_nothing_are_named(rules, message):
    with pytest.raises(ValueError, match=message):
        match_rules(rules, ["block_0/bias", "head/bias"], "trainable_rules")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers()), min_size=1), st.data())
def test_rules_agree_with_reading_them_from_the_top(rules, data):
    present = "".join({pattern for pattern, _ in rules})
    paths = data.draw(st.lists(st.sampled_from(present), min_size=1, unique=True))
    rules = [rule for rule in rules if rule[0] in paths]
    expected = [next((value for name, value in rules if name == path), None) for path in paths]
    if rules and None not in expected:
        assert match_rules(rules, paths, "rules") == expected


def plans_of(model, **options):
    recipe = dataclasses.replace(RECIPE, **options)
    return {plan.path: plan for plan in prepare_for_training(model, recipe)}


def test_decay_is_for_kernels_and_rates_fall_from_the_head_to_the_patches():
    plans = plans_of(vision_transformer(ARCHITECTURE), layer_decay=0.5, weight_decay=0.1)
    decaying = {path for path, plan in plans.items() if plan.weight_decay}
    assert decaying == {path for path in plans if path.endswith("/kernel")}
    rates = {path.split("/")[0]: plan.learning_rate for path, plan in plans.items()}
    assert rates == {
        "patch_encoder": 0.5**4,
        "block_0": 0.5**3,
        "block_1": 0.5**2,
        "block_2": 0.5,
        "encoder_norm": 1.0,
        "head": 1.0,
    }


def test_rules_of_a_recipe_take_the_place_of_its_options():
    plans = plans_of(
        vision_transformer(ARCHITECTURE),
        weight_decay=0.1,
        trainable_rules=((r"block_1/.*", True), (r".*", False)),
        learning_rate_rules=((r".*/bias", 2.0), (r".*", 1.0)),
        weight_decay_rules=((r".*/gamma", 0.5), (r".*", 0.0)),
    )
    assert {path.split("/")[0] for path, plan in plans.items() if plan.trains} == {"block_1"}
    assert plans["block_1/mlp/projection/bias"].learning_rate == 2.0
    assert plans["block_1/mlp_norm/gamma"].weight_decay == 0.05
    with pytest.raises(ValueError, match="leave nothing to train"):
        plans_of(vision_transformer(ARCHITECTURE), trainable_rules=((".*", False),))


def test_the_plan_is_printed_with_alike_blocks_in_one_row():
    plans = list(plans_of(vision_transformer(ARCHITECTURE), trainable_blocks=1).values())
    rows = [re.split(r"\s{2,}", line) for line in format_plans(plans).splitlines()[1:]]
    assert [row[:3] for row in rows] == [
        ["patch_encoder", "880", "no"],
        ["block_0 … block_1", "4,448", "no"],
        ["block_2", "2,224", "yes"],
        ["encoder_norm", "32", "yes"],
        ["head", "170", "yes"],
    ]


# what a run changes ------------------------------------------------------------------------------


def trained(tmp_path, digits, pretrained, **options):
    path, model = pretrained
    recipe = dataclasses.replace(
        HEAD_RECIPE if options.get("adapt") == "head" else RECIPE,
        weights=str(path),
        output=str(tmp_path),
        **options,
    )
    result = run(recipe, source=digits)
    after = keras.saving.load_model(tmp_path / "tiny" / "model.keras")
    return changed(weights_of(model), weights_of(after)), after, result


@pytest.mark.slow
def test_full_fine_tuning_changes_everything(tmp_path, digits, pretrained):
    paths, model, _ = trained(tmp_path, digits, pretrained)
    assert paths == set(weights_of(model))


@pytest.mark.slow
def test_the_last_blocks_train_and_nothing_before_them(tmp_path, digits, pretrained):
    paths, _, _ = trained(tmp_path, digits, pretrained, trainable_blocks=1)
    assert {path.split("/")[0] for path in paths} == {"block_2", "encoder_norm", "head"}


def test_lora_changes_kernels_of_attention_and_mlp_and_the_head_alone(tmp_path, digits, pretrained):
    paths, model, result = trained(tmp_path, digits, pretrained, adapt="lora", lora_rank=2)
    expected = {
        f"block_{i}/{part}/kernel"
        for i in range(3)
        for part in (
            *("attention/query_key_value", "attention/projection"),
            *("mlp/expansion", "mlp/projection"),
        )
    }
    assert paths == expected | {"head/kernel", "head/bias"}
    # What is saved is a plain model of low-rank changes.
    assert not [weight.path for weight in model.weights if "lora" in weight.path]
    before, after = weights_of(pretrained[1]), weights_of(model)
    for path in expected:
        assert np.linalg.matrix_rank(after[path] - before[path], tol=1e-6) <= 2
    assert result.test.count == len(digits.test)


def test_a_lora_model_is_saved_as_it_computes(tmp_path):
    model = vision_transformer(ARCHITECTURE)
    prepare_for_training(model, dataclasses.replace(RECIPE, adapt="lora", lora_alpha=3.0))
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(scale=0.1, size=weight.shape))
    images = random.integers(0, 256, (4, 8, 8, 3)).astype("uint8")
    expected = np.asarray(model(images))
    model.save(tmp_path / "model.keras")
    found = np.asarray(keras.saving.load_model(tmp_path / "model.keras")(images))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_head_is_trained_on_features_computed_once(
    tmp_path, digits, pretrained, cache, monkeypatch
):
    computed = []
    real = keras.Model.predict_on_batch
    monkeypatch.setattr(
        keras.Model,
        "predict_on_batch",
        lambda self, x: (self.name == "classifier" or computed.append(self.name), real(self, x))[1],
    )
    options = {"adapt": "head", "steps": 60, "learning_rate": 0.5}
    options |= {"evaluate_every": 60, "checkpoint_every": 60}
    paths, model, result = trained(tmp_path, digits, pretrained, **options)
    assert paths == {"head/kernel", "head/bias"}
    assert result.test.accuracy > 0.3
    first = len(computed)
    trained(tmp_path / "again", digits, pretrained, **options | {"seed": 1})
    # Another seed, another division: only the test images are not computed again.
    assert len(list((cache / "features").glob("*.npz"))) == 5
    computed.clear()
    trained(tmp_path / "third", digits, pretrained, **options | {"learning_rate": 0.2})
    assert first > 10 and computed == []
    logits = np.asarray(model(digits.test.images))
    assert (logits.argmax(1) == digits.test.labels).mean() == pytest.approx(result.test.accuracy)


def test_features_and_classifier_are_the_model(pretrained, digits, cache):
    _, model = pretrained
    backbone, classifier = split_at_head(model)
    images = digits.test.take(range(20))
    features = cached_features(backbone, images, batch_size=8, folder=cache)
    assert [array.shape for array in features] == [(20, 16)]
    found = classifier.predict(features, verbose=0)
    np.testing.assert_allclose(found, np.asarray(model(images.images)), atol=1e-5)
    again = cached_features(backbone, images, batch_size=8, folder=cache)
    np.testing.assert_array_equal(again[0], features[0])
    (file,) = cache.glob("*.npz")
    file.write_bytes(file.read_bytes()[:100])
    mended = cached_features(backbone, images, batch_size=8, folder=cache)
    np.testing.assert_array_equal(mended[0], features[0])
    batch, labels = FeatureBatches(features, images, batch_size=6, seed=0)[7]
    for row, label in zip(batch[0], labels, strict=True):
        place = np.flatnonzero((features[0] == row).all(axis=1))[0]
        assert images.labels[place] == label


def test_nothing_is_left_of_features_that_could_not_be_written(
    pretrained, digits, cache, monkeypatch
):
    def fill_the_disk(path, **_):
        Path(path).write_bytes(b"a part")
        raise OSError(28, "No space left on device")

    backbone, _ = split_at_head(pretrained[1])
    images = digits.test.take(range(20))
    monkeypatch.setattr(np, "savez", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        cached_features(backbone, images, batch_size=8, folder=cache)
    assert not list(cache.iterdir())


def test_options_that_nothing_reads_are_named():
    with pytest.raises(ValueError, match="lora_rank=4: read only where adapt is lora"):
        Recipe(lora_rank=4)
    with pytest.raises(ValueError, match="(?s)mixup=0.8.*drop_path=0.1"):
        Recipe(adapt="head", mixup=0.8, drop_path=0.1)


def test_too_many_blocks():
    with pytest.raises(ValueError, match="at most 3.*trainable_blocks=4"):
        plans_of(vision_transformer(ARCHITECTURE), trainable_blocks=4)


# averages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 4])
def test_the_average_moves_once_a_step_also_under_accumulation(parts):
    recipe = dataclasses.replace(
        RECIPE, ema_decay=0.9, batch_size=8, micro_batch_size=8 // parts, clip_norm=0.0
    )
    weight = keras.Variable(np.array([1.0, -2.0], "float32"), name="kernel")
    optimizer = make_optimizer(recipe, [weight], weight_plans([weight], recipe))
    random = np.random.default_rng(0)
    average = np.array([1.0, -2.0])
    for _ in range(20):
        for gradient in random.normal(size=(parts, 2)).astype("float32"):
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [weight])
        average = 0.9 * average + 0.1 * weight.numpy()
    now = weight.numpy().copy()
    with averaged_weights(optimizer):
        np.testing.assert_allclose(weight.numpy(), average, rtol=1e-5)
    np.testing.assert_array_equal(weight.numpy(), now)
    use_averaged_weights(optimizer)
    np.testing.assert_allclose(weight.numpy(), average, rtol=1e-5)


@pytest.mark.slow
def test_the_averaged_model_is_saved_and_judged(tmp_path, digits, pretrained):
    options = {"ema_decay": 0.5, "micro_batch_size": 16}
    _, averaged, _ = trained(tmp_path / "averaged", digits, pretrained, **options)
    _, last, _ = trained(tmp_path / "last", digits, pretrained, micro_batch_size=16)
    first, second = weights_of(averaged), weights_of(last)
    assert changed(first, second) == set(first)
    # Between the last weights and those before.
    assert all(np.abs(first[path] - second[path]).max() < 0.5 for path in first)


def test_a_frozen_weight_does_not_decay():
    plan = WeightPlan("kernel", 1, True, 0.5, 0.2)
    weight = keras.Variable(np.array([1.0], "float32"), name="kernel")
    recipe = dataclasses.replace(RECIPE, learning_rate=0.1, clip_norm=0.0)
    optimizer = make_optimizer(recipe, [weight], [dataclasses.replace(plan, path=weight.path)])
    optimizer.apply([keras.ops.zeros((1,))], [weight])
    # Decay goes with the weight's own rate: 1 - 0.1 × 0.5 × 0.2.
    np.testing.assert_allclose(weight.numpy(), [0.99], rtol=1e-6)
