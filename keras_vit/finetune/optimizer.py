"""The paper's SGD, and the optimizer of a recipe."""

import keras
from keras import ops

from keras_vit.finetune.recipe import Recipe


@keras.saving.register_keras_serializable(package="keras_vit")
class SGD(keras.optimizers.Optimizer):
    """Gradient descent with momentum, by the rule of optax and PyTorch.

    `velocity = momentum * velocity + gradient`, then `weight -= learning_rate * velocity`.
    `keras.optimizers.SGD` multiplies the gradient by the learning rate before it enters the
    velocity; the two differ as soon as the learning rate changes, which it does at every step of
    a schedule. Reference: `optax.sgd` as google-research/vision_transformer calls it. That code
    keeps the velocity in bfloat16 to save memory; here it has the dtype of the weights.

    Args:
        learning_rate: A float.
        momentum: Share of the velocity that is kept, in [0, 1).
        **kwargs: Options of every Keras optimizer: `global_clipnorm`, `weight_decay`,
            `gradient_accumulation_steps` and others.

    Example:

    >>> optimizer = SGD(learning_rate=0.5, momentum=0.9)
    >>> weight = keras.Variable([1.0])
    >>> optimizer.apply([ops.convert_to_tensor([1.0])], [weight])
    >>> float(weight.numpy()[0])
    0.5
    """

    def __init__(self, learning_rate=0.03, momentum=0.9, name="sgd", **kwargs):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"`momentum` must be in [0, 1). Received: momentum={momentum}")
        self.momentum = float(momentum)

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype)
        learning_rate = ops.cast(learning_rate, variable.dtype)
        momentum = ops.cast(self.momentum, variable.dtype)
        velocity = self.velocities[self._get_variable_index(variable)]
        new_velocity = momentum * ops.convert_to_tensor(velocity) + gradient
        self.assign(velocity, new_velocity)
        self.assign_sub(variable, learning_rate * new_velocity)

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def make_optimizer(recipe: Recipe, variables) -> keras.optimizers.Optimizer:
    """Makes and builds the optimizer of a recipe.

    Gradients are averaged over the micro-batches first and clipped then. Weight decay touches
    kernels only: no biases, norms, positions or tokens. Under `mixed_float16` a
    `LossScaleOptimizer` stands around the rest.

    Args:
        recipe: The options; its `precision` must be resolved.
        variables: The trainable variables.

    Returns:
        A built optimizer whose `learning_rate` can be set.
    """
    options = {
        "learning_rate": recipe.learning_rate,
        "weight_decay": recipe.weight_decay or None,
        "global_clipnorm": recipe.clip_norm or None,
        "gradient_accumulation_steps": (
            recipe.accumulation_steps if recipe.accumulation_steps > 1 else None
        ),
    }
    if recipe.optimizer == "adamw":
        options["weight_decay"] = recipe.weight_decay  # AdamW does not take None.
        optimizer = keras.optimizers.AdamW(**options)
    else:
        optimizer = SGD(momentum=recipe.momentum, **options)
    not_kernels = [variable for variable in variables if variable.name != "kernel"]
    if not_kernels:
        optimizer.exclude_from_weight_decay(var_list=not_kernels)
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def drop_unfinished_accumulation(optimizer: keras.optimizers.Optimizer) -> bool:
    """Makes an optimizer start its next step afresh when a micro-batch was skipped.

    `LossScaleOptimizer` skips a micro-batch whose gradient overflowed. The gradients of the
    others would then be completed by those of the next batch, and every later step would
    straddle two batches. Dropping them skips the whole step, as it would have been without
    accumulation.

    Args:
        optimizer: A built optimizer, between two steps.

    Returns:
        Whether a step was dropped.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    steps = inner.gradient_accumulation_steps or 1
    finished = int(ops.convert_to_numpy(inner._iterations.value))
    if finished % steps == 0:
        return False
    inner._iterations.assign((finished // steps + 1) * steps)
    for accumulator in inner._accumulated_gradients:
        accumulator.assign(ops.zeros(accumulator.shape, accumulator.dtype))
    return True
