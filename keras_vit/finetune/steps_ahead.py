"""Steps on JAX that begin before the result of the last is there."""

import keras

from keras_vit.finetune.hosts import host_count


class StepsAhead:
    """Trains a compiled model, and hands its weights back only when it is asked to.

    `train_on_batch` waits for the loss and puts all weights back into their variables after each
    step. A GPU has nothing to do meanwhile. Here weights stay where the next step finds them, and
    until `settle` the variables hold arrays that JAX has deleted.

    Args:
        model: A model that `train_on_batch` has trained before: that compiled the step.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        self._groups: tuple = ()
        self._state: list | None = None

    def begin(self, inputs, targets) -> dict:
        """Begins a step.

        Args:
            inputs: Of a batch, as for `train_on_batch`.
            targets: Likewise.

        Returns:
            What `train_on_batch` returns, as arrays that are perhaps still to be computed.
        """
        import jax

        model = self._model
        if self._state is None:
            self._groups = (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
            )
            self._state = [[variable.value for variable in group] for group in self._groups]
        metrics = [keras.ops.zeros_like(variable.value) for variable in model.metrics_variables]
        batch = jax.device_put((inputs, targets, None))
        logs, state = model.train_function((*self._state, metrics), iter([batch]))
        self._state = list(state[:3])
        return logs

    def set_learning_rate(self, value: float) -> None:
        """Sets the learning rate of the steps that begin from now on."""
        optimizer = self._model.optimizer
        optimizer.learning_rate = value
        if self._state is not None:
            rate, variables = optimizer.learning_rate, self._groups[2]
            place = next(i for i, variable in enumerate(variables) if variable is rate)
            self._state[2][place] = rate.value

    def settle(self) -> None:
        """Puts the weights, as after the last step begun, back into their variables."""
        if self._state is None:
            return
        for group, values in zip(self._groups, self._state, strict=True):
            for variable, value in zip(group, values, strict=True):
                variable.assign(value)
        self._state = None


def runs_ahead(precision: str) -> bool:
    """Whether steps can begin ahead: on JAX, on one device, with nothing to be decided between.

    Under float16 each step waits for the last one's loss scale.
    """
    alone = keras.distribution.distribution() is None and host_count() == 1
    return keras.backend.backend() == "jax" and alone and precision != "mixed_float16"
