"""The protocols of Meta's papers: DeiT, DeiT III and MAE.

Facts from the papers and their code; `Protocol.source` and `Change.source` say where each is.
"""

import dataclasses
from typing import Any

from keras_vit.finetune.protocol import (
    CIFAR,
    IMAGENET,
    LARGE,
    RATIO,
    VTAB_SPLITS,
    Change,
    Protocol,
    Published,
    epochs,
    label_geometry,
    schedules,
)
from keras_vit.finetune.recipe import Recipe

DEIT_CODE = "facebookresearch/deit"

PER_EPOCH_LAG = (
    "The authors' code sets the rate of an epoch after it (main.py: lr_scheduler.step(epoch)), so "
    "that theirs is one epoch late; here epoch e has the scheduler's value for e."
)
MIX_PARTNERS = (
    "MixUp and CutMix pair each image with its mirror place in the batch; here the partners lie "
    "in the same micro-batch."
)

# What DeiT, DeiT III and MAE share: timm's RandomResizedCrop (its default area from 8 %) with
# bicubic interpolation, RandAugment "rand-m9-mstd0.5-inc1", MixUp 0.8 or CutMix 1.0 with even
# chances, label smoothing 0.1; no clipping, and training on all of train.
STRONG_AUGMENTATION: dict[str, Any] = {
    "crop": "inception",
    "crop_min_area": 0.08,
    "interpolation": "bicubic",
    "augment": "randaugment",
    "augment_operations": 2,
    "augment_magnitude": 9.0,
    "augment_magnitude_std": 0.5,
    "mixup": 0.8,
    "cutmix": 1.0,
    "mix_probability": 1.0,
    "label_smoothing": 0.1,
    "clip_norm": 0.0,
    "validation_fraction": 0.0,
}

# timm's CosineLRScheduler as DeiT's main.py makes it: a rate an epoch, from 1e-6 up over the first
# five epochs of a cosine that counts from the start and ends at 1e-5.
TIMM_SCHEDULE: dict[str, Any] = {
    "schedule_interval": "epoch",
    "cosine_from": "start",
    "warmup_epochs": 5,
    "warmup_learning_rate": 1e-6,
    "final_learning_rate": 1e-5,
}

# Keras adds 1e-7 to the root of the second moment; PyTorch, and timm in LAMB too, 1e-8.
TORCH_EPSILON: dict[str, Any] = {"optimizer_options": {"epsilon": 1e-8}}
TORCH_ADAMW: dict[str, Any] = {"optimizer": "adamw", **TORCH_EPSILON}

# A folder's own validation images stay what choices are made by.
FLOWERS_SPLITS = Change(
    {"own_validation": "train"},
    "arXiv 2012.12877 (DeiT), table 6: 2,040 training images, the 1,020 for validation among them",
    data=("oxford_flowers102",),
)

DEIT = Protocol(
    name="deit",
    title="DeiT",
    source=(
        "arXiv 2012.12877, table 9 (epochs of warm-up, label smoothing, RandAugment, MixUp, "
        "CutMix, repeated augmentation, no clipping); transfer: the first author in issue 45 of "
        f"{DEIT_CODE} (CIFAR-10 and Cars: SGD, rate 0.01, batches of 768, decay 1e-4, 1,000 "
        "epochs, neither erasing nor stochastic depth), which its issue 175 points to for CIFAR "
        "and other small data"
    ),
    recipe=Recipe(
        image_size=224,
        # main.py's --eval-crop-ratio.
        evaluation_crop_fraction=0.875,
        epochs=1000,
        batch_size=768,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.01,
        weight_decay=1e-4,
        repeated_augmentation=3,
        **STRONG_AUGMENTATION,
        **TIMM_SCHEDULE,
    ),
    changes=(
        Change(
            {
                "image_size": 384,
                "batch_size": 512,
                "learning_rate": 5e-6,
                "learning_rate_batch_size": 512,
                "weight_decay": 1e-8,
                "final_learning_rate": 5e-6,
                "random_erasing": 0.25,
                **TORCH_ADAMW,
            },
            f"{DEIT_CODE}, README_deit.md, fine-tuning of DeiT-B at 384 px, and main.py's defaults",
            data=IMAGENET,
        ),
        *schedules(
            ("*",),
            quick=(epochs(50, 5), RATIO),
            standard=(epochs(100, 5), RATIO),
            full=(epochs(1000, 5), "issue 45; warm-up of table 9"),
        ),
        *schedules(
            IMAGENET,
            quick=(epochs(2, 0), f"{RATIO}, in whole epochs"),
            standard=(epochs(3, 0), f"{RATIO}, in whole epochs"),
            full=(epochs(30, 5), "README_deit.md; warm-up of main.py"),
        ),
        FLOWERS_SPLITS,
        VTAB_SPLITS,
        *label_geometry(224),
    ),
    published=(
        *(
            Published(data, "DeiT-B (ImageNet-1k)", size, accuracy, "arXiv 2012.12877, table 7")
            for size, accuracies in {224: (99.1, 90.8, 98.4), 384: (99.1, 90.8, 98.5)}.items()
            for data, accuracy in zip((*CIFAR, "oxford_flowers102"), accuracies, strict=True)
        ),
        Published("imagenet2012", "DeiT-B (ImageNet-1k)", 384, 83.1, "arXiv 2012.12877, table 7"),
        Published(
            "imagenet2012",
            "DeiT-B (ImageNet-1k)",
            384,
            82.89,
            f"{DEIT_CODE}, README_deit.md, the checkpoint",
        ),
    ),
    differences=(
        "timm's SGD has Nesterov's momentum and adds the decay to the gradient; here it is plain "
        "and the decay decoupled.",
        PER_EPOCH_LAG,
        MIX_PARTNERS,
        "No distillation: neither the teacher nor its token's own loss.",
        "Fine-tuning at 384 px: 30 epochs in the README, 25 in the paper. main.py has stochastic "
        "depth 0.1 there, but keeps the model in evaluation mode for DeiT's fine-tuning, so that "
        "none acts; here it is 0.",
        "The issue does not say whether the rate is the one after scaling to the batch; it is "
        "taken as it stands.",
    ),
)

DEIT3 = Protocol(
    name="deit3",
    title="DeiT III, fine-tuning of ImageNet-1k models",
    source=(
        f"arXiv 2204.07118; {DEIT_CODE}, README_revenge.md, fine-tuning at 384 px (224 for H): "
        "AdamW, rate 1e-5, batches of 512, 20 epochs, decay 0.1, RandAugment, MixUp, CutMix. The "
        "README has no values for other data: they have those of DeiT"
    ),
    recipe=dataclasses.replace(
        DEIT.recipe,
        repeated_augmentation=1,
        # --eval-crop-ratio 1.0 in README_revenge.md.
        evaluation_crop_fraction=1.0,
    ),
    changes=(
        Change(
            {
                "image_size": 384,
                "batch_size": 512,
                "learning_rate": 1e-5,
                "weight_decay": 0.1,
                "drop_path": 0.15,
                **TORCH_ADAMW,
            },
            "README_revenge.md, ViT-B at 384 px; --min-lr of main.py: 1e-5, so that the rate stays",
            data=IMAGENET,
        ),
        Change(
            {"drop_path": 0.0},
            "README_revenge.md, ViT-S at 384 px",
            data=IMAGENET,
            model=("*_s16",),
        ),
        Change(
            {"drop_path": 0.4},
            "README_revenge.md, ViT-L at 384 px",
            data=IMAGENET,
            model=("*_l16",),
        ),
        Change(
            {"drop_path": 0.55, "image_size": 224},
            "README_revenge.md, ViT-H at 224 px",
            data=IMAGENET,
            model=("*_h14",),
        ),
        *schedules(
            ("*",),
            quick=(epochs(50, 5), RATIO),
            standard=(epochs(100, 5), RATIO),
            full=(epochs(1000, 5), "DeiT: issue 45; warm-up of table 9"),
        ),
        *schedules(
            IMAGENET,
            quick=(epochs(1, 0), f"{RATIO}, in whole epochs"),
            standard=(epochs(2, 0), f"{RATIO}, in whole epochs"),
            full=(epochs(20, 5), "README_revenge.md"),
        ),
        FLOWERS_SPLITS,
        VTAB_SPLITS,
        *label_geometry(224),
    ),
    published=tuple(
        Published(
            "imagenet2012",
            f"{model} (ImageNet-1k)",
            size,
            accuracy,
            f"{DEIT_CODE}, README_revenge.md",
        )
        for model, size, accuracy in (
            ("ViT-S/16", 384, 83.4),
            ("ViT-B/16", 384, 85.0),
            ("ViT-L/16", 384, 85.8),
            ("ViT-H/14", 224, 85.2),
        )
    ),
    differences=(
        "The values for data other than ImageNet are DeiT's: DeiT III publishes none.",
        PER_EPOCH_LAG,
        MIX_PARTNERS,
    ),
)

DEIT3_IN21K = Protocol(
    name="deit3_in21k",
    title="DeiT III, fine-tuning of ImageNet-21k models",
    source=(
        f"arXiv 2204.07118; {DEIT_CODE}, README_revenge.md, fine-tuning on ImageNet-1k at 224 px: "
        "LAMB, rate 3e-4, batches of 2,048, 50 epochs, decay 0.02, three-augment, colour jitter "
        "0.3, simple random crop, CutMix without MixUp, label smoothing 0.1"
    ),
    recipe=Recipe(
        image_size=224,
        crop="resize",
        resize_size=224,
        interpolation="bicubic",
        augment="three",
        color_jitter=0.3,
        cutmix=1.0,
        label_smoothing=0.1,
        clip_norm=1.0,  # The default of Apex' fused LAMB.
        validation_fraction=0.0,
        epochs=50,
        # Ours: small data sets do not fill the authors' batch of 2,048.
        batch_size=256,
        optimizer="lamb",
        learning_rate=3e-4,
        learning_rate_batch_size=2048,
        weight_decay=0.02,
        drop_path=0.15,
        **TORCH_EPSILON,
        **TIMM_SCHEDULE,
    ),
    changes=(
        Change({"drop_path": 0.05}, "README_revenge.md, ViT-S", model=("*_s16",)),
        Change({"drop_path": 0.4}, "README_revenge.md, ViT-L", model=("*_l16",)),
        Change({"drop_path": 0.45}, "README_revenge.md, ViT-H", model=("*_h14",)),
        Change({"batch_size": 2048}, "README_revenge.md; others do not fill it", data=LARGE),
        *schedules(
            ("*",),
            quick=(epochs(10, 1), "ours: a fifth, as data is small"),
            standard=(epochs(25, 3), "ours: half, as data is small"),
            full=(epochs(50, 5), "README_revenge.md"),
        ),
        *schedules(
            LARGE,
            quick=(epochs(3, 0), f"{RATIO}, in whole epochs"),
            standard=(epochs(5, 1), f"{RATIO}, in whole epochs"),
            full=(epochs(50, 5), "README_revenge.md"),
        ),
        FLOWERS_SPLITS,
        VTAB_SPLITS,
        *label_geometry(224),
    ),
    published=tuple(
        Published(
            "imagenet2012",
            f"{model} (ImageNet-21k)",
            224,
            accuracy,
            f"{DEIT_CODE}, README_revenge.md",
        )
        for model, accuracy in {
            "ViT-S/16": 83.1,
            "ViT-B/16": 85.7,
            "ViT-L/16": 87.0,
            "ViT-H/14": 87.2,
        }.items()
    ),
    differences=(
        "The authors use Apex's fused LAMB, where the decay is part of the trust ratio; here it is "
        "Keras', and the decay stays outside.",
        "The authors pad by 4 mirrored pixels before the random crop.",
        "The README has no values for other data: they have those of ImageNet, but small data, and "
        "data of unknown size, batches of 256 with the rate in proportion and more epochs.",
        PER_EPOCH_LAG,
        MIX_PARTNERS,
    ),
)

MAE = Protocol(
    name="mae",
    title="Masked Autoencoders, end-to-end fine-tuning",
    source=(
        "arXiv 2111.06377, table 9 (AdamW, decay 0.05, batches of 1,024, warm-up of 5 epochs, "
        "cosine, RandAugment (9, 0.5), label smoothing 0.1, MixUp 0.8, CutMix 1.0); "
        "facebookresearch/mae, FINETUNE.md (B: rate 5e-4 per 256 images, layer decay 0.65, drop "
        "path 0.1, 100 epochs; random erasing 0.25) and main_finetune.py (final rate 1e-6)"
    ),
    recipe=Recipe(
        image_size=224,
        # util/datasets.py, for up to 224 px.
        evaluation_crop_fraction=224 / 256,
        random_erasing=0.25,
        epochs=100,
        warmup_epochs=5,
        # Ours: small data sets do not fill the authors' batch of 1,024.
        batch_size=256,
        learning_rate=5e-4,
        learning_rate_batch_size=256,
        final_learning_rate=1e-6,
        weight_decay=0.05,
        layer_decay=0.65,
        drop_path=0.1,
        **TORCH_ADAMW,
        **STRONG_AUGMENTATION,
    ),
    changes=(
        Change(
            {"learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.2},
            "FINETUNE.md, ViT-L",
            model=("*_l16",),
        ),
        Change(
            {"learning_rate": 1e-3, "layer_decay": 0.75, "drop_path": 0.3},
            "FINETUNE.md, ViT-H",
            model=("*_h14",),
        ),
        Change({"batch_size": 1024}, "table 9; others do not fill it", data=LARGE),
        Change({"evaluation_crop_fraction": 1.0}, "util/datasets.py", above=224),
        *schedules(
            ("*",),
            quick=(epochs(20, 2), "ours: a fifth, as data is small"),
            standard=(epochs(50, 5), "ours: half, as data is small"),
            full=(epochs(100, 5), "FINETUNE.md, ViT-B"),
        ),
        *schedules(
            LARGE,
            quick=(epochs(5, 0.5), RATIO),
            standard=(epochs(10, 1), RATIO),
            full=(epochs(100, 5), "FINETUNE.md, ViT-B"),
        ),
        Change(
            epochs(50, 5),
            "FINETUNE.md, ViT-L and ViT-H",
            model=("*_l16", "*_h14"),
            budget=("full",),
        ),
        FLOWERS_SPLITS,
        VTAB_SPLITS,
        *label_geometry(224),
    ),
    published=tuple(
        Published(
            "imagenet2012",
            f"{model} (MAE, ImageNet-1k)",
            224,
            accuracy,
            "facebookresearch/mae, FINETUNE.md",
        )
        for model, accuracy in {"ViT-B/16": 83.664, "ViT-L/16": 85.952, "ViT-H/14": 86.928}.items()
    ),
    differences=(
        "Table 9 has layer decay 0.75 for all sizes and drop path 0.1, 0.1 and 0.2; FINETUNE.md, "
        "which is for the published checkpoints, has 0.65, 0.75, 0.75 and 0.1, 0.2, 0.3.",
        "The authors' new head starts at a normal of 2e-5; here at zero.",
        "The authors' accuracies are with the mean of the patch tokens and a new norm after it "
        "(main_finetune.py: global_pool, fc_norm); here with the checkpoint's norm and the class "
        "token, which their --cls_token does.",
        MIX_PARTNERS,
        "The paper gives no values for other data: they have those of ImageNet, but small data and "
        "data of unknown size batches of 256.",
    ),
)
