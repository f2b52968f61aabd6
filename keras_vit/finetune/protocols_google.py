"""The protocols of Google's papers: ViT, AugReg and big_vision.

Facts from the papers and their code; `Protocol.source` and `Change.source` say where each is.
"""

from keras_vit.finetune.protocol import (
    BUDGETS,
    CIFAR,
    DATA_SETS,
    IMAGENET,
    PETS_AND_FLOWERS,
    RATIO,
    VTAB,
    VTAB_SPLITS,
    Change,
    Protocol,
    Published,
    label_geometry,
    schedules,
    steps,
)
from keras_vit.finetune.recipe import Recipe

# Sources that several values share.
VIT_CODE = "google-research/vision_transformer"
VIT_README = f"{VIT_CODE}, README.md"
VIT_CONFIGS = f"{VIT_CODE}, vit_jax/configs"
AUGREG_NOTEBOOK = f"{VIT_CODE}, vit_jax_augreg.ipynb"
TRANSFER_CODE = "google-research/big_vision, big_vision/configs/transfer.py"

BFLOAT16_MOMENTUM = (
    "The authors keep the momentum in bfloat16; here it has the dtype of the weights."
)

VIT = Protocol(
    name="vit",
    title="An Image is Worth 16x16 Words",
    source=(
        f"arXiv 2010.11929, table 4 and appendix B.1.1: SGD with momentum 0.9, batches of 512, no "
        f"weight decay, global norm clipped at 1, cosine, 384 px. Images: section 4.1, as "
        f"arXiv 1912.11370 section 3.3 (448 px, whatever the aspect; crop of 384 px; flip). "
        f"Learning rate and warm-up, which the paper leaves open: {VIT_CONFIGS}/common.py"
    ),
    recipe=Recipe(
        image_size=384,
        crop="squash",
        resize_size=448,
        # input_pipeline.py: the test images are resized to the size, whatever their aspect.
        evaluation_crop="squash",
        steps=500,
        warmup_steps=50,
        batch_size=512,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.03,
        weight_decay=0.0,
        clip_norm=1.0,
    ),
    learning_rates=(0.001, 0.003, 0.01, 0.03),
    changes=(
        Change(steps(100, 10), AUGREG_NOTEBOOK, budget=("quick",)),
        # Held out to choose the learning rate; the paper's final runs train on all of train.
        Change({"validation_fraction": 0.02}, "appendix B.1.1", data=CIFAR),
        Change(
            {"validation_fraction": 0.1, "own_validation": "ignore"},
            "appendix B.1.1",
            data=PETS_AND_FLOWERS,
        ),
        Change(
            {"validation_fraction": 0.01},
            "appendix B.1.1; the rate 0.06 is for hybrids",
            data=IMAGENET,
            learning_rates=(0.003, 0.01, 0.03, 0.06),
        ),
        Change(
            {"learning_rate": 0.01}, "table 4, appendix B.1.1", data=VTAB, learning_rates=(0.01,)
        ),
        Change(
            {"learning_rate": 0.01},
            f"{VIT_CONFIGS}/vit.py",
            data=("cifar10",),
            model=("vit_b16",),
        ),
        *schedules(
            CIFAR,
            quick=(steps(500, 50), VIT_README),
            standard=(steps(1_000, 100), VIT_README),
            full=(steps(10_000, 500), "table 4; warm-up of common.py"),
        ),
        *schedules(
            IMAGENET,
            quick=(steps(1_000, 100), RATIO),
            standard=(steps(2_000, 200), RATIO),
            full=(steps(20_000, 500), "table 4; warm-up of common.py"),
        ),
        *schedules(
            PETS_AND_FLOWERS,
            quick=(steps(100, 10), AUGREG_NOTEBOOK),
            standard=(steps(500, 100), f"table 4; warm-up of {TRANSFER_CODE}"),
            full=(steps(500, 100), f"table 4; warm-up of {TRANSFER_CODE}"),
        ),
        *schedules(
            VTAB,
            quick=(steps(100, 10), AUGREG_NOTEBOOK),
            standard=(
                steps(500, 100),
                f"steps of {AUGREG_NOTEBOOK} for VTAB; warm-up of augreg.py",
            ),
            full=(steps(2_500, 200), "table 4; warm-up of arXiv 2106.10270, table 4"),
        ),
        VTAB_SPLITS,
        *label_geometry(384),
    ),
    published=(
        *(
            Published(data, f"{model} (ImageNet-21k)", 384, accuracy, "arXiv 2010.11929, table 5")
            for model, accuracies in {
                "ViT-B/16": (98.95, 91.67, 94.43, 99.38, 83.97),
                "ViT-B/32": (98.79, 91.97, 93.02, 99.11, 81.28),
                "ViT-L/16": (99.16, 93.44, 94.73, 99.61, 85.15),
                "ViT-L/32": (99.13, 93.04, 93.09, 99.19, 80.99),
                "ViT-H/14": (99.27, 93.82, 94.82, 99.51, 85.13),
            }.items()
            for data, accuracy in zip(DATA_SETS[:5], accuracies, strict=True)
        ),
        Published(
            "vtab", "ViT-L/16 (ImageNet-21k)", 384, 72.72, "arXiv 2010.11929, table 2, mean of 19"
        ),
        Published("vtab", "ViT-H/14 (JFT)", 384, 77.63, "arXiv 2010.11929, table 2, mean of 19"),
        *(
            Published(
                data,
                "ViT-B/16 (ImageNet-21k)",
                384,
                accuracy,
                f"{VIT_README}, {steps} steps",
                budget,
            )
            for data, accuracies in {
                "cifar10": (98.59, 98.86, 99.02),
                "cifar100": (89.17, 91.15, 92.06),
            }.items()
            for accuracy, steps, budget in zip(
                accuracies, ("500", "1,000", "10,000"), BUDGETS, strict=True
            )
        ),
    ),
    differences=(
        f"{VIT_CODE} crops boxes of 5 to 100 % of the area instead (input_pipeline.py), and the "
        'accuracies of its README are with that; crop="inception", resize_size=None does it.',
        BFLOAT16_MOMENTUM,
        "The paper's final runs train on what was held out too: validation_fraction=0 does it.",
        "The ImageNet results of the paper's table 2 are at 512 px with averaged weights; those of "
        "its table 5, given here, are not.",
    ),
)

AUGREG = Protocol(
    name="augreg",
    title="How to train your ViT? (AugReg), transfer",
    source=(
        "arXiv 2106.10270 (TMLR 05/2022), section 3.5 and table 4 of appendix B: SGD with momentum "
        "0.9, batches of 512, global norm clipped at 1, warm-up, cosine, 224 and 384 px. General "
        f"steps, warm-up and image sizes: {VIT_CONFIGS}/augreg.py; no dropout (the same file)"
    ),
    recipe=Recipe(
        image_size=384,
        crop="squash",
        resize_size=448,
        # input_pipeline.py: the test images are resized to the size, whatever their aspect.
        evaluation_crop="squash",
        steps=500,
        warmup_steps=100,
        batch_size=512,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.01,
        weight_decay=0.0,
        clip_norm=1.0,
    ),
    learning_rates=(0.001, 0.003, 0.01),
    changes=(
        Change(steps(100, 10), AUGREG_NOTEBOOK, budget=("quick",)),
        Change({"validation_fraction": 0.02}, "section 3.1", data=CIFAR),
        Change(
            {"validation_fraction": 0.1, "own_validation": "ignore"},
            "section 3.1",
            data=PETS_AND_FLOWERS,
        ),
        Change(
            {"validation_fraction": 0.01, "learning_rate": 0.03},
            "section 3.1, table 4",
            data=IMAGENET,
            learning_rates=(0.01, 0.03),
        ),
        Change(
            {"learning_rate": 0.01},
            f"{VIT_README}, names of the fine-tuned checkpoints",
            data=IMAGENET,
            model=("vit_l16", "vit_b32", "vit_s32", "vit_r26_s32", "vit_r50_l32"),
        ),
        *schedules(
            CIFAR,
            quick=(steps(500, 100), f"{VIT_CONFIGS}/augreg.py"),
            standard=(steps(2_500, 200), "table 4, CIFAR-100"),
            full=(steps(10_000, 500), "table 4, CIFAR-100"),
        ),
        *schedules(
            IMAGENET,
            quick=(steps(1_000, 100), RATIO),
            standard=(steps(2_000, 200), RATIO),
            full=(steps(20_000, 500), "table 4"),
        ),
        *schedules(
            (*PETS_AND_FLOWERS, *VTAB),
            quick=(steps(100, 10), AUGREG_NOTEBOOK),
            standard=(steps(500, 100), "table 4, Pets and Kitti"),
            full=(steps(2_500, 200), "table 4, Pets and Kitti"),
        ),
        Change(
            {},
            f"{AUGREG_NOTEBOOK}: rates for VTAB",
            data=VTAB,
            learning_rates=(0.001, 0.003, 0.01, 0.03),
        ),
        VTAB_SPLITS,
        *label_geometry(384),
    ),
    published=tuple(
        Published("imagenet2012", f"{model} (ImageNet-21k, AugReg)", 384, accuracy, VIT_README)
        for model, accuracy in {
            "ViT-Ti/16": 78.22,
            "ViT-S/32": 79.58,
            "ViT-S/16": 83.73,
            "ViT-B/32": 83.59,
            "ViT-B/16": 85.49,
            "ViT-L/16": 85.59,
            "R+Ti/16": 75.40,
            "R26+S/32": 83.85,
            "R50+L/32": 85.99,
        }.items()
    ),
    differences=(
        "The paper does not say how training images are cropped; augreg.py has 448 and 384 px, as "
        "for ViT, while the input pipeline beside it crops boxes of 5 to 100 % of the area.",
        "CIFAR-10 and Flowers are not in the paper: they have the values of CIFAR-100 and Pets. "
        "Its Resisc45 and Kitti are whole data sets, not VTAB's 1,000 images.",
        "The paper chooses rate and steps on held-out images; the general rate is the largest of "
        "its grid, which the README takes for Pets too.",
        BFLOAT16_MOMENTUM,
    ),
)

BIG_VISION = Protocol(
    name="big_vision",
    title="big_vision's transfer",
    source=(
        f"{TRANSFER_CODE}: SGD with momentum 0.9, batches of 512, no weight decay, global norm "
        "clipped at 1, rate 0.01, cosine, resize_small(448) and random_crop(384), flip"
    ),
    recipe=Recipe(
        image_size=384,
        crop="resize",
        resize_size=448,
        # transfer.py: resize_small(448) and central_crop(384).
        evaluation_crop_fraction=384 / 448,
        steps=500,
        warmup_steps=100,
        batch_size=512,
        optimizer="sgd",
        momentum=0.9,
        learning_rate=0.01,
        weight_decay=0.0,
        clip_norm=1.0,
    ),
    changes=(
        Change(steps(100, 10), AUGREG_NOTEBOOK, budget=("quick",)),
        Change({"validation_fraction": 0.02}, "transfer.py, _set_dataset", data=CIFAR),
        Change({"validation_fraction": 0.01}, "transfer.py, _set_dataset", data=IMAGENET),
        Change(
            {"validation_fraction": 0.1, "own_validation": "ignore"},
            "transfer.py, _set_dataset",
            data=PETS_AND_FLOWERS,
        ),
        # The head of transfer.py: the best for ViT-B/32 on held-out images.
        Change({"learning_rate": 0.003}, "head of transfer.py, ViT-B/32", data=("cifar10",)),
        Change({"learning_rate": 0.01}, "head of transfer.py, ViT-B/32", data=("cifar100",)),
        Change(
            {"learning_rate": 0.003, "crop": "inception", "resize_size": None},
            "head of transfer.py, ViT-B/32",
            data=PETS_AND_FLOWERS,
        ),
        Change(
            {"learning_rate": 0.03, "crop": "inception", "resize_size": None},
            "head of transfer.py, ViT-B/32",
            data=IMAGENET,
        ),
        *schedules(
            CIFAR,
            quick=(steps(500, 50), VIT_README),
            standard=(steps(1_000, 100), VIT_README),
            full=(steps(10_000, 500), "transfer.py, _set_dataset"),
        ),
        *schedules(
            IMAGENET,
            quick=(steps(1_000, 100), RATIO),
            standard=(steps(2_000, 200), RATIO),
            full=(steps(20_000, 500), "transfer.py, _set_dataset"),
        ),
        VTAB_SPLITS,
        *label_geometry(384),
    ),
    published=tuple(
        Published(data, "ViT-B/32 (ImageNet-21k, AugReg)", 384, accuracy, "head of transfer.py")
        for data, accuracy in {
            "cifar10": 98.55,
            "cifar100": 91.35,
            "oxford_iiit_pet": 93.78,
            "oxford_flowers102": 99.43,
            "imagenet2012": 83.27,
        }.items()
    ),
    differences=(
        BFLOAT16_MOMENTUM,
        "resize_small averages over areas; here resampling is bilinear with antialias.",
        "transfer.py holds out the last 1, 2 or 10 % of TFDS's train; here the same share, drawn "
        "at random from each class.",
        "VTAB and other data are not in transfer.py: they have the steps of its small data sets.",
    ),
)
