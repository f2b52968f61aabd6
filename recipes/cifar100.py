"""CIFAR-100, from a checkpoint trained on ImageNet-21k.

Command:
    python recipes/cifar100.py --weights CHECKPOINT [--data-dir TFDS_FOLDER]

Hardware: one GPU.

Published: ViT-B/16 (ImageNet-21k), 384 px, 500 steps with a warm-up of 50: 89.17 %; 1,000 steps
with a warm-up of 100: 91.15 %; 10,000 steps with a warm-up of 500: 92.06 % (README of
google-research/vision_transformer).

Measured: not measured.
"""

from keras_vit.finetune import Recipe, run_command_line

RECIPE = Recipe(
    name="cifar100",
    data="cifar100",
    image_size=224,
    steps=1000,
    warmup_steps=100,
    batch_size=512,
    learning_rate=0.03,
)

if __name__ == "__main__":
    run_command_line(RECIPE)
