"""The rules of the papers' code in NumPy and float64, written from its facts and not from ours.

Each function says which function of which code it states. Steps count the optimizer steps that
are already done, as optax counts them.
"""

import numpy as np

# Learning rates.


def vision_transformer_rate(step, *, peak, steps, warmup, decay="cosine", linear_end=1e-5):
    """google-research/vision_transformer, vit_jax/utils.py: create_learning_rate_schedule."""
    progress = np.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
    if decay == "linear":
        rate = linear_end + (peak - linear_end) * (1.0 - progress)
    else:
        rate = peak * (1.0 + np.cos(np.pi * progress)) / 2.0
    return rate * min(1.0, step / warmup) if warmup else rate


def big_vision_rate(step, *, lr, steps, warmup, decay="cosine", end=0.0):
    """google-research/big_vision: `lr` of the config times utils.create_learning_rate_schedule.

    The schedule rises to 1 and falls; its linear decay ends at `end`.
    """
    progress = min(max((step - warmup) / (steps - warmup), 0.0), 1.0)
    relative = (
        end + (1.0 - end) * (1.0 - progress)
        if decay == "linear"
        else 0.5 + 0.5 * np.cos(np.pi * progress)
    )
    if warmup > 0:
        relative *= min(1.0, step / warmup)
    return lr * relative


def mae_rate(step, *, steps_per_epoch, blr, batch_size, epochs, warmup_epochs, min_lr):
    """facebookresearch/mae: util/lr_sched.py, called with the epoch as a fraction, each step.

    The rate is `blr` per 256 images; the least rate is not scaled.
    """
    lr = blr * batch_size / 256
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    share = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) / 2.0 * (1.0 + np.cos(np.pi * share))


def timm_rate(step, *, steps_per_epoch, lr, epochs, warmup_epochs, warmup_lr, min_lr):
    """timm's CosineLRScheduler, one cycle, `warmup_prefix` false, whole epochs."""
    epoch = step // steps_per_epoch
    if epoch < warmup_epochs:
        return warmup_lr + epoch * (lr - warmup_lr) / warmup_epochs
    if epoch >= epochs:
        return min_lr
    return min_lr + 0.5 * (lr - min_lr) * (1.0 + np.cos(np.pi * epoch / epochs))


# Optimizers: each changes a list of arrays in place.


def clip_by_global_norm(gradients, largest):
    """optax.clip_by_global_norm: unchanged below the largest norm, scaled to it above."""
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    if norm < largest:
        return list(gradients)
    return [gradient / norm * largest for gradient in gradients]


class OptaxSGD:
    """optax.sgd(momentum): the trace holds gradients, and the rate of the step multiplies it."""

    def __init__(self, weights, momentum=0.9):
        self.weights = weights
        self.momentum = momentum
        self.traces = [np.zeros_like(weight) for weight in weights]

    def step(self, gradients, rate, factors=None):
        factors = factors or [1.0] * len(self.weights)
        for weight, trace, gradient, factor in zip(
            self.weights, self.traces, gradients, factors, strict=True
        ):
            trace[...] = gradient + self.momentum * trace
            weight -= rate * factor * trace


class KerasSGD:
    """keras.optimizers.SGD(momentum): the velocity holds steps, rate included."""

    def __init__(self, weights, momentum=0.9):
        self.weights = weights
        self.momentum = momentum
        self.velocities = [np.zeros_like(weight) for weight in weights]

    def step(self, gradients, rate):
        for weight, velocity, gradient in zip(
            self.weights, self.velocities, gradients, strict=True
        ):
            velocity[...] = self.momentum * velocity - rate * gradient
            weight += velocity


class TorchAdamW:
    """torch.optim.AdamW: the weight shrinks by rate times decay, then moves by Adam's step."""

    def __init__(self, weights, decays, betas=(0.9, 0.999), epsilon=1e-8):
        self.weights = weights
        self.decays = decays
        self.betas = betas
        self.epsilon = epsilon
        self.first = [np.zeros_like(weight) for weight in weights]
        self.second = [np.zeros_like(weight) for weight in weights]
        self.count = 0

    def step(self, gradients, rate, factors=None):
        """`factors` are those of layer-wise decay: they multiply the rate, so the decay too."""
        self.count += 1
        factors = factors or [1.0] * len(self.weights)
        for index, (weight, gradient) in enumerate(zip(self.weights, gradients, strict=True)):
            own_rate = rate * factors[index]
            weight *= 1.0 - own_rate * self.decays[index]
            for moment, beta, value in (
                (self.first[index], self.betas[0], gradient),
                (self.second[index], self.betas[1], np.square(gradient)),
            ):
                moment *= beta
                moment += (1.0 - beta) * value
            mean = self.first[index] / (1.0 - self.betas[0] ** self.count)
            variance = self.second[index] / (1.0 - self.betas[1] ** self.count)
            weight -= own_rate * mean / (np.sqrt(variance) + self.epsilon)


class MovingAverage:
    """timm's ModelEma: starts at the weights, moves once after each optimizer step."""

    def __init__(self, weights, decay):
        self.decay = decay
        self.averages = [weight.copy() for weight in weights]

    def update(self, weights):
        for average, weight in zip(self.averages, weights, strict=True):
            average *= self.decay
            average += (1.0 - self.decay) * weight


# Layer-wise rates.


def mae_layer(name, depth):
    """facebookresearch/mae, util/lr_decay.py (BEiT's rule), for the names of timm's weights."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed"):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return depth + 1


def mae_rate_factor(name, depth, decay):
    """The factor of a weight's learning rate: 1 for the head, less for each layer below."""
    return decay ** (depth + 1 - mae_layer(name, depth))
