"""How a training step is spread over devices and hosts."""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import keras
import numpy as np

from keras_vit.finetune.hosts import COUNT_VARIABLE, host_count, host_number


class Distribution:
    """One device, which computes everything.

    The others, `mirrored` and `data_parallel`, compute the same of the same batches on many.

    Attributes:
        devices: Number of devices in the whole job.
        keeps_pairs: Whether images that are mixed with each other must be on one device.
    """

    devices = 1
    keeps_pairs = False

    @contextlib.contextmanager
    def scope(self) -> Iterator["Distribution"]:
        """Everything inside is built and computed on these devices; see `current_distribution`."""
        token = _current.set(self)
        try:
            with self._backend_scope():
                yield self
        finally:
            _current.reset(token)

    def _backend_scope(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def batch_divisor(self, *, mixes: bool) -> int:
        """What the number of images on all devices at once must be a multiple of.

        Args:
            mixes: Whether images are mixed with each other.
        """
        pairs = mixes and self.keeps_pairs and self.devices > 1
        return 2 * self.devices if pairs else self.devices

    def check_batch(self, option: str, size: int, *, mixes: bool) -> None:
        """Raises a ValueError if the devices do not divide a number of images evenly.

        Args:
            option: The option that says the number.
            size: Images on all devices at once.
            mixes: Whether images are mixed with each other.
        """
        divisor = self.batch_divisor(mixes=mixes)
        if size % divisor == 0:
            return
        pairs = " (mixed images stay with their partners)" if divisor > self.devices else ""
        below = size // divisor * divisor
        nearest = f"{below} or {below + divisor}" if below else f"{divisor}"
        raise ValueError(
            f"{self.devices} devices cannot divide {option}={size} images evenly{pairs}. Choose a "
            f"multiple of {divisor}, such as {nearest}, or another number of devices"
        )

    def take_over(self, model: keras.Model) -> None:
        """Makes `train_on_batch` of a compiled model work on these devices.

        It takes this host's rows of a batch and answers with the loss and the accuracy of the
        whole.
        """

    def predict_on_batch(self, model: keras.Model, inputs: Any) -> Any:
        """What a model answers for a whole batch, on every host.

        Args:
            model: The model.
            inputs: An array, or arrays in a structure, of as many rows as the devices divide
                evenly, the same on every host.

        Returns:
            An array of NumPy, or as many as the model has outputs.
        """
        return model.predict_on_batch(inputs)


_KEYS_A_STRATEGY = 1000
_strategies = itertools.count()


class _Mirrored(Distribution):
    """Copies of the model on the devices of one host, by tf.distribute."""

    # Each copy mixes the images that it has.
    keeps_pairs = True

    def __init__(self):
        _check_backend("mirrored", "tensorflow", "on JAX distribute='data_parallel'")
        import tensorflow as tf

        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        # TensorFlow keeps the shape of each reduction by its key for as long as the process lasts,
        # and gives every strategy the same keys: the next run would have to have the same weights.
        keys = {"_collective_key_base": _KEYS_A_STRATEGY * next(_strategies)}
        strategy = type("MirroredStrategy", (tf.distribute.MirroredStrategy,), keys)
        self._strategy = strategy([device.name for device in devices])
        self.devices = len(devices)

    def _backend_scope(self):
        return self._strategy.scope()

    def take_over(self, model):
        step = _mirrored_step(model, self._strategy)

        def train_function(iterator):
            inputs, targets, _ = next(iterator)
            return step(*self._split_training(inputs, targets))

        # What `train_on_batch` calls. Keras' own hands every copy the whole batch, and clips the
        # gradients before they are summed.
        model.train_function = train_function

    def predict_on_batch(self, model, inputs):
        rows = np.arange(len(keras.tree.flatten(inputs)[0])).reshape(self.devices, -1)
        return model.predict_on_batch(self._split(inputs, rows))

    def _split_training(self, inputs, targets):
        partners = inputs.get("partners") if isinstance(inputs, dict) else None
        rows = replica_rows(len(targets), self.devices, paired=partners is not None)
        if partners is not None:
            # From places in the batch to places among the rows of a copy, which are in order.
            local = np.empty_like(partners)
            for own in rows:
                local[own] = np.searchsorted(own, partners[own])
            inputs = {**inputs, "partners": local}
        return self._split(inputs, rows), self._split(targets, rows)

    def _split(self, arrays, rows):
        import tensorflow as tf

        devices = self._strategy.extended.worker_devices

        def split(array):
            def part(context):
                copy = context.replica_id_in_sync_group
                with tf.device(devices[copy]):
                    return tf.convert_to_tensor(array[rows[copy]])

            return self._strategy.experimental_distribute_values_from_function(part)

        return keras.tree.map_structure(split, arrays)


def replica_rows(size: int, replicas: int, *, paired: bool) -> np.ndarray:
    """Which rows of a batch each copy of the model takes, each row once.

    Args:
        size: Number of rows.
        replicas: Number of copies.
        paired: Whether row i stays with row `size - 1 - i`, its partner in a mix.

    Returns:
        An array `(replicas, size / replicas)`, each line in ascending order.

    Example:

    >>> replica_rows(8, 2, paired=True)
    array([[0, 1, 6, 7],
           [2, 3, 4, 5]])
    """
    if not paired or replicas == 1:
        return np.arange(size).reshape(replicas, -1)
    first = np.arange(size // 2).reshape(replicas, -1)
    return np.concatenate([first, size - 1 - first[:, ::-1]], axis=1)


# An odd number: seeds of copies differ, whatever the seed is.
_SEED_STRIDE = 1_000_003


def _mirrored_step(model, strategy) -> Callable[..., Any]:
    """A training step on all copies: gradients are summed first, then clipped and applied once."""
    import tensorflow as tf

    random_states = [
        variable
        for variable in model.non_trainable_variables
        if variable.name == "seed_generator_state"
    ]

    def compute_gradients(inputs, targets):
        context = tf.distribute.get_replica_context()
        # Otherwise all copies would drop the same units.
        shift = [_SEED_STRIDE * context.replica_id_in_sync_group, 0]
        shifts = [tf.cast(shift, variable.dtype) for variable in random_states]
        seeds = [
            (variable, tf.convert_to_tensor(variable.value) + shift)
            for variable, shift in zip(random_states, shifts, strict=True)
        ]
        with tf.GradientTape() as tape:
            with keras.StatelessScope(state_mapping=seeds) as states:
                logits = model(inputs, training=True)
            # Keras divides it by the number of copies.
            loss = model.compute_loss(x=inputs, y=targets, y_pred=logits, training=True)
            scaled_loss = model.optimizer.scale_loss(loss)
        variables = [variable.value for variable in model.trainable_variables]
        gradients = tape.gradient(scaled_loss, variables)
        advanced = [
            states.get_current_value(variable) - shift
            for variable, shift in zip(random_states, shifts, strict=True)
        ]
        accuracy = tf.reduce_mean(tf.cast(_matches(targets, logits), "float32"))
        return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients), advanced, loss, accuracy

    def first(values):
        return [strategy.experimental_local_results(value)[0] for value in values]

    @tf.function(reduce_retracing=True)
    def step(inputs, targets):
        gradients, states, loss, accuracy = strategy.run(compute_gradients, args=(inputs, targets))
        optimizer = model.optimizer
        # Outside the copies a `LossScaleOptimizer` of Keras wants to be called by this name.
        apply = getattr(optimizer, "_common_apply", optimizer.apply)
        apply(first(gradients), model.trainable_variables)
        for variable, value in zip(random_states, first(states), strict=True):
            variable.assign(value)
        return {
            "loss": strategy.reduce("SUM", loss, axis=None),
            "accuracy": strategy.reduce("MEAN", accuracy, axis=None),
        }

    return step


def _matches(targets, logits):
    if len(targets.shape) == 2:
        return keras.metrics.categorical_accuracy(targets, logits)
    return keras.metrics.sparse_categorical_accuracy(targets, logits)


class _DataParallel(Distribution):
    """Copies of the model on all devices of all hosts, by keras.distribution on JAX."""

    def __init__(self):
        _check_backend("data_parallel", "jax", "on TensorFlow distribute='mirrored'")
        self._distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
        self.devices = self._distribution.device_mesh.devices.size

    @contextlib.contextmanager
    def _backend_scope(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._distribution.scope())
            if host_number():
                # Host 0 speaks for all. Errors are each host's own.
                quiet = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(quiet))
            yield

    def predict_on_batch(self, model, inputs):
        import jax

        def divided(array):
            layout = self._distribution.get_data_layout(array.shape).backend_layout
            rows = len(array) // host_count()
            own = array[host_number() * rows : (host_number() + 1) * rows]
            return jax.make_array_from_process_local_data(layout, own)

        outputs = self._prediction(model)(
            [variable.value for variable in model.variables],
            keras.tree.map_structure(divided, inputs),
        )
        return keras.tree.map_structure(np.asarray, outputs)

    def _prediction(self, model):
        """The model as a compiled function whose outputs are whole on every host; kept with it."""
        import jax

        if not hasattr(model, "_whole_prediction"):
            mesh = self._distribution.device_mesh.backend_mesh
            # In an order that does not depend on which of them train.
            variables = model.variables

            def predict(values, inputs):
                state = list(zip(variables, values, strict=True))
                with keras.StatelessScope(state_mapping=state):
                    return model(inputs, training=False)

            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            model._whole_prediction = jax.jit(predict, out_shardings=whole)
        return model._whole_prediction


def _check_backend(name, backend, alternative):
    if keras.backend.backend() != backend:
        raise ValueError(
            f"distribute={name!r} needs KERAS_BACKEND={backend}. Received: KERAS_BACKEND="
            f"{keras.backend.backend()}; set it so, or {alternative}"
        )


_KINDS: dict[str, Callable[[], Distribution]] = {
    "none": Distribution,
    "mirrored": _Mirrored,
    "data_parallel": _DataParallel,
}
_ONE_DEVICE = Distribution()
_current: ContextVar[Distribution] = ContextVar("distribution", default=_ONE_DEVICE)


def make_distribution(name: str) -> Distribution:
    """The distribution of a name, over all devices that there are.

    Args:
        name: `"none"`, `"mirrored"` or `"data_parallel"`.

    Raises:
        ValueError: If the backend has it not, or there are several hosts and it is for one.

    Example:

    >>> with make_distribution("none").scope() as distribution:
    ...     distribution.devices
    1
    """
    if host_count() > 1 and name != "data_parallel":
        raise ValueError(
            f"{COUNT_VARIABLE}={host_count()} makes this one of several hosts; they need "
            f"distribute='data_parallel'. Received: distribute={name!r}"
        )
    return _KINDS[name]()


def current_distribution() -> Distribution:
    """The distribution whose scope this is; one device outside of any."""
    return _current.get()


@contextlib.contextmanager
def on_this_host_alone() -> Iterator[None]:
    """Inside, a host of several builds and computes on its own, on one device."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        with _ONE_DEVICE.scope():
            yield
    finally:
        keras.distribution.set_distribution(distribution)
