"""The learning rate of each step."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_vit.finetune import Recipe, learning_rate
from keras_vit.finetune.run import resolve_epochs


def reference(steps, base, warmup_steps):
    """google-research/vision_transformer's `create_learning_rate_schedule`, in NumPy."""
    step = np.arange(steps)
    progress = np.clip((step - warmup_steps) / float(steps - warmup_steps), 0.0, 1.0)
    rate = base * 0.5 * (1.0 + np.cos(np.pi * progress))
    return rate * np.minimum(1.0, step / warmup_steps) if warmup_steps else rate


@pytest.mark.parametrize("warmup_steps", [0, 1, 10, 99])
def test_equals_the_reference_over_100_steps(warmup_steps):
    recipe = Recipe(steps=100, warmup_steps=warmup_steps, learning_rate=0.03)
    rates = [learning_rate(step, recipe) for step in range(100)]
    np.testing.assert_allclose(rates, reference(100, 0.03, warmup_steps), rtol=1e-12, atol=1e-16)


@given(st.integers(1, 400), st.floats(1e-6, 10.0), st.data())
def test_rises_then_falls_within_bounds(steps, base, data):
    warmup_steps = data.draw(st.integers(0, steps))
    recipe = Recipe(steps=steps, warmup_steps=warmup_steps, learning_rate=base)
    rates = np.array([learning_rate(step, recipe) for step in range(steps)])
    assert (rates >= 0).all() and (rates <= base).all()
    assert (np.diff(rates[: warmup_steps + 1]) > 0).all()
    assert (np.diff(rates[warmup_steps:]) < 0).all()


def test_ends_at_zero():
    recipe = Recipe(steps=50, warmup_steps=5)
    assert learning_rate(50, recipe) == 0.0
    assert learning_rate(0, recipe) == 0.0


def timms(epoch, recipe):
    """timm's `CosineLRScheduler` by epochs."""
    peak, low = recipe.learning_rate, recipe.final_learning_rate
    if epoch < recipe.warmup_epochs:
        start = recipe.warmup_learning_rate
        return start + epoch * (peak - start) / recipe.warmup_epochs
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * epoch / recipe.epochs))


# ImageNet, whose warm-up of 3127.85 steps is rounded, and epochs of 13.5 and of 626 steps.
@pytest.mark.parametrize("images", [1_281_167, 27_648, 1_282_048])
def test_the_rate_of_an_epoch_is_that_of_timms_scheduler(images):
    recipe = Recipe(
        batch_size=2048,
        epochs=50,
        warmup_epochs=5,
        warmup_learning_rate=1e-6,
        learning_rate=3e-4,
        final_learning_rate=1e-5,
        schedule_interval="epoch",
        cosine_from="start",
    )
    in_steps, steps_per_epoch = resolve_epochs(recipe, images), images / 2048
    for epoch in range(50):
        rate = learning_rate(math.ceil(epoch * steps_per_epoch), in_steps, steps_per_epoch)
        # Warm-up and run are rounded to whole steps.
        rounding = 0.5 / (5 * steps_per_epoch) * recipe.learning_rate
        assert rate == pytest.approx(timms(epoch, recipe), abs=rounding)


def test_a_batch_of_more_images_than_there_are_is_said(capsys):
    for images in (800, 2048):
        resolve_epochs(Recipe(batch_size=2048, epochs=5, warmup_epochs=1), images)
        resolve_epochs(Recipe(batch_size=2048, steps=500), images)
    (line,) = capsys.readouterr().out.splitlines()
    assert "batch_size=2048" in line and "800 training images" in line
    assert "5 epochs are 2 steps" in line and "--batch-size" in line


def test_a_warm_up_that_is_rounded_up_ends_at_the_peak():
    recipe = Recipe(
        batch_size=10, epochs=20, warmup_epochs=5, schedule="linear", schedule_interval="epoch"
    )
    # Epochs of 13.5 steps; the 68 of the warm-up end half a step after the fifth.
    in_steps = resolve_epochs(recipe, 135)
    rates = [learning_rate(step, in_steps, 13.5) for step in range(in_steps.steps)]
    assert max(rates) == rates[68] == recipe.learning_rate
