"""The model that a run starts from."""

import dataclasses
from typing import Any

import keras

from keras_vit.checkpoints import load_checkpoint, open_checkpoint
from keras_vit.finetune.recipe import Recipe
from keras_vit.models import VisionTransformerConfig, vision_transformer
from keras_vit.models.variants import get_variant
from keras_vit.zoo import checkpoint_config, weights_path

DEFAULT_MODEL = "vit_ti16"


def model_config(
    recipe: Recipe,
    architecture: VisionTransformerConfig | None = None,
    num_classes: int = 2,
) -> VisionTransformerConfig:
    """The architecture of a recipe: as given, its `model`'s, or its checkpoint's.

    Whatever the first or the last returns, this one gives logits for raw pixels.

    Raises:
        ValueError: For an unknown model, an image size that does not fit it, a file that is no
            checkpoint, a checkpoint of another size than `model`, or an architecture that pools
            nothing.
    """
    options: dict[str, Any] = {
        "image_size": recipe.image_size,
        "dropout": recipe.dropout,
        "attention_dropout": recipe.attention_dropout,
        "drop_path": recipe.drop_path,
        "efficient_drop_path": recipe.efficient_drop_path,
        "remat": recipe.remat,
    }
    if recipe.preprocessing:
        options["preprocessing"] = recipe.preprocessing
    if architecture:
        return _as_classifier(architecture, "The architecture", num_classes=num_classes, **options)
    if not recipe.weights:
        row = get_variant(recipe.model or DEFAULT_MODEL)
        return VisionTransformerConfig(**row | options | {"num_classes": num_classes})
    row = get_variant(recipe.model) if recipe.model else {}
    path = weights_path(recipe.weights)
    with open_checkpoint(path) as checkpoint:
        facts, ambiguous = checkpoint.facts, checkpoint.ambiguous
    for field in ("patch_size", "hidden_size", "depth", "mlp_dim", "num_heads"):
        wanted = row.get(field)
        if wanted is not None and facts.get(field, wanted) not in (wanted, (wanted, wanted)):
            raise ValueError(
                f"{recipe.weights} is no {recipe.model}: its {field} is {facts[field]}, expected "
                f"{wanted}. Leave --model out to take the checkpoint's"
            )
    # What published models of such tensors have differently, the model's name tells: not the GELU,
    # of which a family may have two.
    named = VisionTransformerConfig(**row) if row else None
    told_by_name = {field: getattr(named, field) for field in ambiguous - {"activation"} if named}
    if "num_heads" not in facts:
        told_by_name["num_heads"] = row.get("num_heads")
    config = checkpoint_config(
        path,
        num_classes,
        **told_by_name,
        include_top=True,
        include_preprocessing=True,
        **options,
    )
    return _as_classifier(config, recipe.weights, representation_size=None)


def _as_classifier(config, name, **fields):
    """The config with the head and the input that the training expects, and further fields."""
    if config.pooling is None:
        raise ValueError(
            f"{name} pools nothing: it answers for every token. A classifier needs one answer an "
            "image; build the model with a pooling, and save it first where it is a checkpoint's"
        )
    return dataclasses.replace(
        config,
        include_top=True,
        include_preprocessing=True,
        classifier_activation=None,
        head_output="average",
        **fields,
    )


def build_model(recipe: Recipe, config: VisionTransformerConfig) -> keras.Model:
    """The model of a recipe, with the weights it starts from and a head of zeros."""
    # Evaluation, prediction and export prepare images in one way, which suits the training.
    preprocessing = dataclasses.replace(
        config.preprocessing,
        crop_fraction=recipe.evaluation_crop_fraction,
        crop_mode=recipe.evaluation_crop,
        interpolation=recipe.interpolation,
    )
    config = dataclasses.replace(config, preprocessing=preprocessing)
    name = recipe.model or "vision_transformer"
    model = vision_transformer(config, dtype=recipe.precision, name=name)
    if recipe.weights:
        accept = ("preprocessing",) if recipe.preprocessing else ()
        # The checkpoint's classes are others, even where there are as many of them.
        report = load_checkpoint(model, weights_path(recipe.weights), accept=accept, new_head=True)
        print(report, flush=True)
    return model
