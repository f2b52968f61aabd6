"""Runs written checkpoints in timm and transformers, in a process without TensorFlow.

`python published_libraries.py FOLDER`: for each sub-folder with images.npy and a hub folder
`timm` or `hf`, writes what the library computes to timm.npy or hf.npy, or why not to timm.txt or
hf.txt. PyTorch and TensorFlow do not bear each other in one process everywhere.
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np


def run_timm(folder, pixels):
    import timm

    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(pixels)


def run_transformers(folder, pixels):
    import safetensors
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    options = {}
    with safetensors.safe_open(folder / "model.safetensors", "numpy") as file:
        if name in ("ViTModel", "DeiTModel") and "pooler.dense.weight" not in file.keys():
            options["add_pooling_layer"] = False
    model, loading = getattr(transformers, name).from_pretrained(
        folder, output_loading_info=True, **options
    )
    wrong = {key: value for key, value in loading.items() if value}
    if wrong:
        raise AssertionError(f"{name} does not fit: {wrong}")
    transformers.AutoImageProcessor.from_pretrained(folder)
    outputs = model.eval()(pixels)
    for field in ("logits", "image_embeds", "pooler_output"):
        if outputs.get(field) is not None:
            return outputs[field]
    return outputs.last_hidden_state[:, 0]


def main(folder):
    import torch

    for format, run in (("timm", run_timm), ("hf", run_transformers)):
        for written in sorted(folder.glob(f"*/{format}")):
            pixels = torch.from_numpy(np.load(written.parent / "images.npy")).permute(0, 3, 1, 2)
            try:
                with torch.no_grad():
                    np.save(written.with_suffix(".npy"), run(written, pixels).numpy())
            except Exception:
                written.with_suffix(".txt").write_text(traceback.format_exc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
