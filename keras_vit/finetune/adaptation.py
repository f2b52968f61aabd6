"""What of a model is trained: LoRA's additions, and which weights are frozen."""

import keras

from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.rules import WeightPlan, weight_plans
from keras_vit.models import without_unread_tokens

HEADS = ("head", "head_distillation")


def prepare_for_training(model: keras.Model, recipe: Recipe) -> list[WeightPlan]:
    """Adds what a recipe's `adapt` asks for to a model, and freezes what does not train.

    LoRA is that of Keras' own layers. Its model is saved with the additions merged into the
    kernels, so that nobody who loads it needs to know.

    Args:
        model: A Vision Transformer with the weights that it starts from; it is changed.
        recipe: The options.

    Returns:
        What is done with each weight, as `weight_plans` says it.

    Raises:
        ValueError: For rules that do not fit the model.
    """
    if recipe.adapt == "lora":
        for layer in _projections(model):
            layer.enable_lora(recipe.lora_rank, recipe.lora_alpha)
    depth = sum(layer.name.startswith("block_") for layer in model.layers)
    plans = weight_plans(model.weights, recipe, depth=depth)
    trains = {plan.path: plan.trains for plan in plans}
    for weight in model.weights:
        weight.trainable = trains[weight.path]
    return plans


def _projections(model):
    """The dense layers of attention and MLP, block by block."""
    for layer in model.layers:
        if layer.name.startswith("block_"):
            yield from (layer.attention.query_key_value, layer.attention.projection)
            yield from (layer.mlp.expansion, layer.mlp.projection)


def split_at_head(model: keras.Model) -> tuple[keras.Model, keras.Model]:
    """Divides a model into what computes its features and what classifies them.

    Args:
        model: A Vision Transformer with a head, or two.

    Returns:
        `(backbone, classifier)`: from images to a list of features `(batch, width)`, one a head;
        and from that list to the model's output. Both share the model's weights.

    Raises:
        ValueError: If the model has no head.
    """
    names = [layer.name for layer in model.layers if layer.name in HEADS]
    if not names:
        raise ValueError(f"The model {model.name!r} has no layer 'head' to train")
    features = [model.get_layer(name).input for name in names]
    # What lies between the heads' inputs and the output, built anew on inputs of its own.
    classifier = keras.Model(features, model.output, name="classifier")
    backbone = keras.Model(model.input, features, name="backbone")
    return without_unread_tokens(backbone), classifier
