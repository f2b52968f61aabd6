"""CIFAR-10, from a checkpoint trained on ImageNet-21k: ViT's protocol (arXiv 2010.11929).

Command:
    python recipes/cifar10.py --weights CHECKPOINT [--data-dir TFDS_FOLDER] [--budget quick]

Hardware: one GPU. For two CPU cores: `keras-vit finetune --data cifar10`, see docs/recipes.md.

Published: ViT-B/16 (ImageNet-21k), 384 px, 500 steps with a warm-up of 50: 98.59 %; 1,000 steps
with a warm-up of 100: 98.86 %; 10,000 steps with a warm-up of 500: 99.02 % (README of
google-research/vision_transformer).

Measured: not measured. A subset with ViT-Ti/16 on two CPU cores is in docs/recipes.md.
"""

import dataclasses

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import protocol_recipe

RECIPE = dataclasses.replace(protocol_recipe("vit", "cifar10", budget="standard"), name="cifar10")

if __name__ == "__main__":
    run_command_line(RECIPE)
