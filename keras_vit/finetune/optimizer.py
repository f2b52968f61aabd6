"""The paper's SGD, and the optimizer of a recipe."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
from keras import ops

from keras_vit.finetune.recipe import Recipe
from keras_vit.finetune.rules import WeightPlan
from keras_vit.layers.one_pass import in_one_pass

# Optimizer steps without an overflow after which the loss scale doubles, as in Keras.
GROWTH_STEPS = 2000


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
        # Not rounded to the weight's dtype.
        wide = keras.backend.result_type(variable.dtype, "float32")
        learning_rate = ops.cast(learning_rate, wide)
        momentum = ops.cast(self.momentum, wide)
        velocity = self.velocities[self._get_variable_index(variable)]
        moved = in_one_pass(_momentum_step)(variable, velocity, gradient, learning_rate, momentum)
        self.assign(variable, moved[0])
        self.assign(velocity, moved[1])

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}


def _momentum_step(weight, velocity, gradient, learning_rate, momentum):
    velocity = momentum * velocity + gradient
    return weight - learning_rate * velocity, velocity


class _WeightWise:
    """What `make_optimizer` adds to an optimizer of Keras; its one `learning_rate` stays visible.

    Each weight has its own factor of the learning rate and its own decoupled decay, and the
    average of the weights moves once an optimizer step, where Keras' moves once a micro-batch.
    """

    def set_plans(self, plans: Sequence[WeightPlan], ema_decay: float) -> None:
        """Takes over what is done with each variable that trains; to be called before `build`."""
        self._plans = list(plans)
        self.use_ema = ema_decay > 0
        self.ema_momentum = ema_decay

    def build(self, variables):
        super().build(variables)
        self._plan_of = {
            self._var_key(variable): plan
            for variable, plan in zip(variables, self._plans, strict=True)
        }
        if self.use_ema:
            for average, variable in zip(
                self._model_variables_moving_average, variables, strict=True
            ):
                # A copy: JAX gives buffers away, and would give a shared one twice.
                average.assign(ops.copy(ops.convert_to_tensor(variable)))

    def update_step(self, gradient, variable, learning_rate):
        plan = self._plan_of[self._var_key(variable)]
        learning_rate = ops.cast(learning_rate * plan.learning_rate, variable.dtype)
        if plan.weight_decay:
            shrink = learning_rate * plan.weight_decay
            self.assign_sub(variable, ops.convert_to_tensor(variable) * shrink)
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables):
        """Done in `update_step`."""

    def _update_model_variables_moving_average(self, trainable_variables):
        share = 1.0 - self.ema_momentum
        steps = self.gradient_accumulation_steps or 1
        # Zero for a micro-batch that completes no step.
        completes = ops.cast(ops.equal((self._iterations + 1) % steps, 0), "float32")
        for variable, average in zip(
            trainable_variables, self._model_variables_moving_average, strict=True
        ):
            moved = ops.convert_to_tensor(variable) - ops.convert_to_tensor(average)
            average.assign(average + ops.cast(share * completes, average.dtype) * moved)


# Stands after the optimizer of Keras in the order of classes, so that what this does before all
# updates of a step, as Nadam does, is done.
_UPDATES: tuple[type, ...] = ()

if keras.backend.backend() == "torch":

    class _OneByOne(keras.optimizers.Optimizer):
        """Keras' own updates all weights at once there, with one learning rate."""

        def _backend_update_step(self, gradients, variables, learning_rate):
            for gradient, variable in zip(gradients, variables, strict=True):
                self.update_step(gradient, variable, learning_rate)

    _UPDATES = (_OneByOne,)

if keras.backend.backend() == "tensorflow":

    class _AllCopies(keras.optimizers.Optimizer):
        """A mirrored step applies the summed gradients outside of the copies.

        Keras' own functions expect to be inside one of them.
        """

        def _backend_update_step(self, gradients, variables, learning_rate):
            if not _outside_of_copies():
                super()._backend_update_step(gradients, variables, learning_rate)
                return
            pairs = [(gradient, v.value) for gradient, v in zip(gradients, variables, strict=True)]
            self._distributed_tf_update_step(self._distribution_strategy, pairs, learning_rate)

        def _backend_increment_gradient_accumulators(self, gradients, accumulators):
            if not _outside_of_copies():
                super()._backend_increment_gradient_accumulators(gradients, accumulators)
                return
            for gradient, accumulator in zip(gradients, accumulators, strict=True):
                accumulator.assign(accumulator + gradient)

    def _outside_of_copies():
        import tensorflow as tf

        return tf.distribute.in_cross_replica_context()

    _UPDATES = (_AllCopies,)


def make_optimizer(
    recipe: Recipe, variables: Sequence[keras.Variable], plans: Sequence[WeightPlan]
) -> keras.optimizers.Optimizer:
    """Makes and builds the optimizer of a recipe.

    Gradients are averaged over the micro-batches first and clipped then. Under `mixed_float16` a
    `LossScaleOptimizer` stands around the rest.

    Args:
        recipe: The options; its `precision` must be resolved.
        variables: The trainable variables of the model.
        plans: What is done with each weight of the model, from `weight_plans`.

    Returns:
        A built optimizer whose `learning_rate` can be set.

    Raises:
        ValueError: For `optimizer_options` that the optimizer does not take.
    """
    plan_of = {plan.path: plan for plan in plans}
    options = dict(recipe.optimizer_options)
    if recipe.optimizer in ("sgd", "keras_sgd"):
        options["momentum"] = recipe.momentum
    base = _optimizer_class(recipe.optimizer)
    try:
        optimizer = type(base.__name__, (_WeightWise, base, *_UPDATES), {})(
            learning_rate=recipe.peak_learning_rate,
            global_clipnorm=recipe.clip_norm or None,
            gradient_accumulation_steps=(
                recipe.accumulation_steps if recipe.accumulation_steps > 1 else None
            ),
            **options,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"keras.optimizers.{base.__name__} cannot be made with optimizer_options="
            f"{recipe.optimizer_options}: {error}"
        ) from error
    optimizer.set_plans([plan_of[variable.path] for variable in variables], recipe.ema_decay)
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, dynamic_growth_steps=GROWTH_STEPS * recipe.accumulation_steps
        )
    optimizer.build(variables)
    return optimizer


def _optimizer_class(name):
    if name == "sgd":
        return SGD
    classes = {key.lower(): value for key, value in vars(keras.optimizers).items()}
    return classes[name.removeprefix("keras_")]


@contextlib.contextmanager
def averaged_weights(optimizer: keras.optimizers.Optimizer) -> Iterator[None]:
    """Puts the running average in the place of the weights while the context lasts.

    Does nothing where the optimizer keeps no average.

    Args:
        optimizer: A built optimizer of `make_optimizer`.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not inner.use_ema:
        yield
        return
    variables = inner._trainable_variables
    kept = [variable.numpy() for variable in variables]
    try:
        use_averaged_weights(optimizer)
        yield
    finally:
        for variable, value in zip(variables, kept, strict=True):
            variable.assign(value)


def use_averaged_weights(optimizer: keras.optimizers.Optimizer) -> None:
    """Sets the weights to their running average, for good, where the optimizer keeps one."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if inner.use_ema:
        averages = inner._model_variables_moving_average
        for variable, average in zip(inner._trainable_variables, averages, strict=True):
            # A copy, as in `build`.
            variable.assign(ops.copy(ops.convert_to_tensor(average)))


def gradient_accumulators(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """What a built optimizer adds the gradients of micro-batches up in; [] where it has none."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return list(getattr(inner, "_accumulated_gradients", ()))


def set_steps_done(optimizer: keras.optimizers.Optimizer, steps: int) -> None:
    """Sets an optimizer to a number of steps, however many micro-batches they were made of.

    It counts micro-batches: with the count of others an update would come in the middle of a step.

    Args:
        optimizer: A built optimizer, between two steps.
        steps: Number of optimizer steps done.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    inner._iterations.assign(steps * (inner.gradient_accumulation_steps or 1))
    if inner is not optimizer:
        # It may be past the count of micro-batches at which the loss scale doubles now.
        optimizer.step_counter.assign(0)


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
    finished = int(inner._iterations.numpy())
    if finished % steps == 0:
        return False
    # Not counted, as a skipped step is not without accumulation.
    inner._iterations.assign(finished // steps * steps)
    for accumulator in gradient_accumulators(optimizer):
        accumulator.assign(ops.zeros(accumulator.shape, accumulator.dtype))
    return True
