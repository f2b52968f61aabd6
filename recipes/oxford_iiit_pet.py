"""Oxford-IIIT Pet, 37 breeds of cats and dogs: AugReg's transfer protocol (arXiv 2106.10270).

Command:
    python recipes/oxford_iiit_pet.py --weights CHECKPOINT [--data-dir TFDS_FOLDER]

    With --image-size the resize size keeps its proportion: 448 for 384 px, 261 for 224 px.

Hardware: one GPU.

Published: ViT-B/16 (ImageNet-21k), 384 px, 500 steps: 94.43 % (arXiv 2010.11929, table 5);
ViT-B/32 (ImageNet-21k, AugReg), 384 px, 500 steps: 93.78 % (head of big_vision's
configs/transfer.py). The AugReg paper has no figure for this data set alone.

Measured: not measured.
"""

import dataclasses

from keras_vit.finetune import run_command_line
from keras_vit.finetune.protocols import protocol_recipe

RECIPE = dataclasses.replace(
    protocol_recipe("augreg", "oxford_iiit_pet", budget="standard"), name="oxford_iiit_pet"
)

if __name__ == "__main__":
    run_command_line(RECIPE)
