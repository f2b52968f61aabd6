"""The table of pairs: which model of which library, at full and at tiny size."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Case:
    """One model of one library.

    Args:
        family: What it stands for.
        library: `"timm"`, `"transformers"` or `"torchvision"`.
        model: The architecture's name (timm, torchvision), or the class (transformers).
        arguments: Given to the constructor at both sizes.
        full: Given at full size only, above all a smaller depth where memory or time is short.
        tiny: Given at tiny size only, in place of the library's tiny arguments.
        output: What of the library's model is compared: a key of `libraries.OUTPUTS`.
        expected: Arguments of `keras_vit.from_checkpoint` that the file cannot tell.
        other_size: (height, width) of a second comparison, positions resampled by the library; or
            None, where the library does not resample.
        variant: Tells rows of the same model apart.
    """

    family: str
    library: str
    model: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    full: dict[str, Any] = dataclasses.field(default_factory=dict)
    tiny: dict[str, Any] = dataclasses.field(default_factory=dict)
    output: str = "logits"
    expected: dict[str, Any] = dataclasses.field(default_factory=dict)
    other_size: tuple[int, int] | None = None
    variant: str = ""

    def __str__(self):
        return f"{self.library}-{self.model}" + (f"-{self.variant}" if self.variant else "")


def _timm(family, model, **rest):
    return Case(family, "timm", model, **rest)


def _transformers(family, model, **rest):
    return Case(family, "transformers", model, **rest)


_SHALLOW = {"depth": 2}
_NO_HEAD = {"num_classes": 0}

TIMM = (
    _timm("ViT (AugReg)", "vit_base_patch16_224", other_size=(256, 320)),
    _timm("ViT, patch 32", "vit_base_patch32_224"),
    _timm(
        "ViT, not square",
        "vit_small_patch16_224",
        full={"img_size": (160, 256)},
        tiny={"img_size": (48, 80)},
        variant="160x256",
    ),
    _timm("ViT, width 1280", "vit_huge_patch14_224", full=_SHALLOW),
    _timm("MAE, DINO (no head)", "vit_small_patch16_224", arguments=_NO_HEAD, variant="features"),
    _timm(
        "MAE, fine-tuned",
        "vit_base_patch16_224",
        arguments={"global_pool": "avg"},
        other_size=(192, 256),
        variant="avg",
    ),
    _timm("QK-norm", "vit_base_patch16_224", arguments={"qk_norm": True}, variant="qk_norm"),
    _timm(
        "no biases of q, k, v",
        "vit_small_patch16_224",
        arguments={"qkv_bias": False},
        variant="no_qkv_bias",
    ),
    _timm("mean pooling, no class token", "vit_medium_patch16_gap_256", other_size=(192, 320)),
    _timm("registers, mean pooling", "vit_betwixt_patch16_reg4_gap_256"),
    _timm("registers with positions", "vit_so150m2_patch16_reg1_gap_256", full=_SHALLOW),
    _timm("registers, map pooling", "vit_so150m_patch16_reg4_map_256", full=_SHALLOW),
    _timm("DeiT", "deit_small_patch16_224"),
    _timm("DeiT, distilled", "deit_base_distilled_patch16_224", other_size=(256, 256)),
    _timm("DeiT-III", "deit3_base_patch16_224", other_size=(256, 320)),
    _timm("FlexiViT", "flexivit_small"),
    _timm("DINOv2", "vit_small_patch14_dinov2", other_size=(224, 280)),
    _timm("DINOv2, registers", "vit_small_patch14_reg4_dinov2", other_size=(280, 224)),
    _timm("DINOv2, SwiGLU", "vit_giant_patch14_dinov2", full={**_SHALLOW, "img_size": 224}),
    _timm("DINOv3", "vit_base_patch16_dinov3_qkvb", other_size=(256, 320)),
    _timm("DINOv3, no biases of q, k, v", "vit_small_patch16_dinov3"),
    _timm("DINOv3, SwiGLU", "vit_small_plus_patch16_dinov3_qkvb", other_size=(192, 192)),
    _timm("DINOv3, width 1280", "vit_huge_plus_patch16_dinov3", full=_SHALLOW),
    _timm("SigLIP", "vit_base_patch16_siglip_224", other_size=(256, 192)),
    _timm("SigLIP 2, mean pooling, tanh GELU", "vit_base_patch32_siglip_gap_256"),
    _timm("SigLIP 2, So400m, tanh GELU", "vit_so400m_patch16_siglip_256", full=_SHALLOW),
    _timm("SigLIP 2, width 1536", "vit_giantopt_patch16_siglip_256", full=_SHALLOW),
    _timm("CLIP", "vit_base_patch32_clip_224", other_size=(256, 320)),
    _timm("CLIP, quick GELU", "vit_base_patch16_clip_quickgelu_224"),
    _timm("BEiT", "beit_base_patch16_224", other_size=(192, 256)),
    _timm("EVA (ViT of BEiT's kind)", "eva_giant_patch14_336", full=_SHALLOW),
    _timm("hybrid, R", "vit_tiny_r_s16_p8_224", tiny={"img_size": 96}, other_size=(256, 320)),
    _timm("hybrid, R26", "vit_small_r26_s32_224", tiny={"img_size": 96}, other_size=(288, 288)),
    _timm("hybrid, R50", "vit_base_r50_s16_224"),
)

_GIANT = {"hidden_size": 1536, "num_attention_heads": 24, "num_hidden_layers": 2}
_RELATIVE = {"use_relative_position_bias": True}

TRANSFORMERS = (
    _transformers("ViT", "ViTForImageClassification", other_size=(256, 320)),
    _transformers("ViT with pre_logits", "ViTModel", output="pooled"),
    _transformers("DeiT", "DeiTForImageClassification"),
    _transformers(
        "DeiT, distilled", "DeiTForImageClassificationWithTeacher", other_size=(256, 256)
    ),
    _transformers("MAE", "ViTMAEModel", output="unmasked_class_token"),
    _transformers("MSN", "ViTMSNForImageClassification"),
    _transformers("I-JEPA", "IJepaForImageClassification"),
    _transformers("DINOv2", "Dinov2ForImageClassification", other_size=(224, 280)),
    _transformers("DINOv2 (no head)", "Dinov2Model", output="pooled"),
    _transformers(
        "DINOv2, SwiGLU",
        "Dinov2ForImageClassification",
        arguments={"use_swiglu_ffn": True},
        full=_GIANT,
        variant="swiglu",
    ),
    _transformers(
        "DINOv2, registers",
        "Dinov2WithRegistersForImageClassification",
        full={"patch_size": 14},
        other_size=(224, 280),
    ),
    _transformers(
        "DINOv3",
        "DINOv3ViTModel",
        arguments={"num_register_tokens": 4},
        output="pooled",
        other_size=(256, 320),
    ),
    _transformers(
        "DINOv3, SwiGLU",
        "DINOv3ViTModel",
        arguments={"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"},
        output="pooled",
        variant="gated",
    ),
    _transformers("SigLIP", "SiglipVisionModel", output="pooled", other_size=(256, 192)),
    _transformers("SigLIP with its text tower", "SiglipModel", output="vision_pooled"),
    _transformers("SigLIP, classifier", "SiglipForImageClassification"),
    _transformers("CLIP", "CLIPVisionModel", output="pooled", other_size=(256, 320)),
    _transformers("CLIP with projection", "CLIPVisionModelWithProjection", output="embedding"),
    _transformers("CLIP with its text tower", "CLIPModel", output="vision_embedding"),
    _transformers("BEiT", "BeitForImageClassification", arguments=_RELATIVE, other_size=(192, 256)),
    _transformers(
        "BEiT, one table for all blocks",
        "BeitForImageClassification",
        arguments={"use_shared_relative_position_bias": True},
        variant="shared",
    ),
    _transformers("data2vec", "Data2VecVisionForImageClassification", arguments=_RELATIVE),
)

TORCHVISION = (Case("ViT", "torchvision", "vit_b_16"), Case("ViT", "torchvision", "vit_b_32"))

CASES = TIMM + TRANSFORMERS + TORCHVISION
