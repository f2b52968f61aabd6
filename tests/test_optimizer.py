"""The paper's SGD against NumPy, accumulation, clipping, decay and loss scaling."""

import keras
import numpy as np
import pytest

from keras_vit.finetune import SGD, Recipe, learning_rate
from keras_vit.finetune.optimizer import drop_unfinished_accumulation, set_steps_done
from keras_vit.finetune.optimizer import make_optimizer as make_planned_optimizer
from keras_vit.finetune.recipe import OPTIMIZERS
from keras_vit.finetune.rules import weight_plans


def variable(value, name="kernel"):
    return keras.Variable(np.asarray(value, "float32"), name=name)


def apply(optimizer, gradient, weight):
    gradient = keras.ops.convert_to_tensor(np.asarray(gradient, "float32"))
    if keras.backend.backend() != "jax":
        optimizer.apply([gradient], [weight])
        return
    # Under JAX Keras trains by pure functions; its loss scaling has no other way.
    if not optimizer.built:
        optimizer.build([weight])
    values = [v.value for v in optimizer.variables]
    (weight_value,), values = optimizer.stateless_apply(values, [gradient], [weight.value])
    for target, value in zip((weight, *optimizer.variables), (weight_value, *values), strict=True):
        target.assign(value)


def reference_steps(weight, gradients, rates, momentum=0.9, clip=None):
    """optax: trace = g + momentum * trace; w -= rate * trace."""
    velocity = np.zeros_like(weight)
    for gradient, rate in zip(gradients, rates, strict=True):
        if clip:
            gradient = gradient * min(1.0, clip / np.linalg.norm(gradient))
        velocity = momentum * velocity + gradient
        weight = weight - rate * velocity
    return weight


def make_optimizer(recipe, variables):
    return make_planned_optimizer(recipe, variables, weight_plans(variables, recipe))


def test_follows_the_reference_rule_and_not_keras_under_a_schedule():
    random = np.random.default_rng(0)
    gradients = random.normal(size=(20, 3)).astype("float32")
    recipe = Recipe(steps=20, warmup_steps=5, learning_rate=0.3)
    rates = [learning_rate(step, recipe) for step in range(20)]
    ours, keras_sgd = SGD(momentum=0.9), keras.optimizers.SGD(momentum=0.9)
    weights = {ours: variable([1.0, 2.0, 3.0]), keras_sgd: variable([1.0, 2.0, 3.0])}
    for optimizer, weight in weights.items():
        for gradient, rate in zip(gradients, rates, strict=True):
            optimizer.learning_rate = rate
            apply(optimizer, gradient, weight)
    expected = reference_steps(np.array([1.0, 2.0, 3.0]), gradients, rates)
    np.testing.assert_allclose(weights[ours].numpy(), expected, rtol=1e-5)
    assert np.abs(weights[keras_sgd].numpy() - expected).max() > 1e-2


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_accumulation_averages_first_and_clips_then(name):
    recipe = Recipe(batch_size=8, clip_norm=1.0, optimizer=name)
    whole = variable(np.zeros(2))
    parts = variable(np.zeros(2))
    gradients = np.array([[30.0, 0.0], [-28.0, 0.0], [0.0, 2.0], [0.0, 6.0]])
    optimizer = make_optimizer(recipe, [whole])
    apply(optimizer, gradients.mean(axis=0), whole)
    optimizer = make_optimizer(Recipe(batch_size=8, micro_batch_size=2, optimizer=name), [parts])
    for gradient in gradients:
        np.testing.assert_array_equal(parts.numpy(), [0.0, 0.0])
        apply(optimizer, gradient, parts)
    np.testing.assert_allclose(parts.numpy(), whole.numpy(), rtol=1e-5)
    if name == "sgd":
        mean = gradients.mean(axis=0)
        expected = -0.03 * mean / np.linalg.norm(mean)
        np.testing.assert_allclose(parts.numpy(), expected, rtol=1e-5)


# Muon is for matrices.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("sgd", "muon")])
def test_steps_are_those_of_keras(name):
    recipe = Recipe(optimizer=name, learning_rate=0.1, clip_norm=0.0)
    ours, theirs = variable([1.0, 2.0]), variable([1.0, 2.0])
    classes = {key.lower(): value for key, value in vars(keras.optimizers).items()}
    momentum = {"momentum": 0.9} if name == "keras_sgd" else {}
    expected = classes[name.removeprefix("keras_")](learning_rate=0.1, **momentum)
    found = make_optimizer(recipe, [ours])
    # A recipe says it, and says none.
    expected.weight_decay = None
    for gradient in ([1.0, 2.0], [0.5, -1.0], [2.0, 1.0]):
        apply(expected, gradient, theirs)
        apply(found, gradient, ours)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5)
    assert np.abs(ours.numpy() - [1.0, 2.0]).min() > 1e-6


def test_no_clipping_at_zero():
    weight = variable([0.0])
    apply(make_optimizer(Recipe(clip_norm=0.0, learning_rate=1.0), [weight]), [50.0], weight)
    assert weight.numpy() == [-50.0]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_touches_kernels_only(name):
    kernel, bias = variable([1.0]), variable([1.0], name="bias")
    recipe = Recipe(optimizer=name, weight_decay=0.5, learning_rate=0.1)
    optimizer = make_optimizer(recipe, [kernel, bias])
    zero = keras.ops.zeros((1,))
    optimizer.apply([zero, zero], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), [0.95], rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), [1.0])


def test_config_round_trip():
    optimizer = SGD(learning_rate=0.25, momentum=0.5, global_clipnorm=2.0)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is SGD
    assert again.get_config() == optimizer.get_config()


def test_momentum_out_of_range():
    with pytest.raises(ValueError, match="momentum=1.0"):
        SGD(momentum=1.0)


def loss_scale(optimizer):
    return float(optimizer.dynamic_scale.numpy())


def test_overflow_skips_the_step_halves_the_scale_and_recovers():
    weight = variable([1.0])
    recipe = Recipe(precision="mixed_float16", clip_norm=0.0, learning_rate=0.5, momentum=0.0)
    optimizer = make_optimizer(recipe, [weight])
    scale = loss_scale(optimizer)
    apply(optimizer, [np.inf], weight)
    assert weight.numpy() == [1.0]
    assert loss_scale(optimizer) == scale / 2
    optimizer.learning_rate = 0.25
    apply(optimizer, [scale / 2], weight)
    assert weight.numpy() == [0.75]


def test_overflow_in_one_micro_batch_drops_the_whole_step():
    weight = variable([1.0])
    recipe = Recipe(
        precision="mixed_float16",
        batch_size=4,
        micro_batch_size=2,
        clip_norm=0.0,
        learning_rate=0.5,
        momentum=0.0,
    )
    optimizer = make_optimizer(recipe, [weight])
    apply(optimizer, [np.nan], weight)
    apply(optimizer, [loss_scale(optimizer)], weight)
    assert drop_unfinished_accumulation(optimizer)
    assert not drop_unfinished_accumulation(optimizer)
    assert weight.numpy() == [1.0]
    # As without accumulation, Adam's bias correction takes no notice of it.
    assert int(optimizer.iterations.numpy()) == 0
    # The next step averages its own two micro-batches and nothing of the last one.
    for gradient in (1.0, 3.0):
        apply(optimizer, [gradient * loss_scale(optimizer)], weight)
    assert weight.numpy() == [0.0]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_loss_scale_doubles_after_as_many_steps_of_any_micro_batches(micro_batches):
    weight = variable([1.0])
    recipe = Recipe(precision="mixed_float16", batch_size=micro_batches, micro_batch_size=1)
    optimizer = make_optimizer(recipe, [weight])
    scale = loss_scale(optimizer)
    optimizer.step_counter.assign(1999 * micro_batches)
    for _ in range(micro_batches):
        assert loss_scale(optimizer) == scale
        apply(optimizer, [1.0], weight)
    assert loss_scale(optimizer) == 2 * scale


def test_of_fewer_micro_batches_the_loss_scale_doubles_still():
    weight = variable([1.0])
    optimizer = make_optimizer(Recipe(precision="mixed_float16"), [weight])
    # As counted in micro-batches of which a step had four.
    optimizer.step_counter.assign(5000)
    set_steps_done(optimizer, 1250)
    assert int(optimizer.step_counter.numpy()) < 2000
