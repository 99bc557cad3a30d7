"""Configuration of the Perceiver VLM: a vision tower, a Perceiver connector and a Qwen3 language model.

Three nested configurations, one for each part, so that every part keeps its own attention implementation and any
Qwen3 or vision checkpoint's `config.json` can be dropped in unchanged:

    Qwen3PerceiverConfig
      vision_config     SigLIP / SigLIP2 (`siglip_vision_model`), SigLIP2-NaFlex (`siglip2_vision_model`) or timm
      connector_config  Qwen3PerceiverConnectorConfig: resampler + projector
      text_config       Qwen3Config, any size

Sources: Flamingo's Perceiver resampler (arXiv 2204.14198), SigLIP2 (arXiv 2502.14786), Qwen3 (arXiv 2505.09388).
"""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, Qwen3Config, SiglipVisionConfig

from .vision_language_config import VisionLanguageConfig

VISION_MODEL_TYPES = ("siglip_vision_model", "siglip2_vision_model", "timm_wrapper")


@strict
class Qwen3PerceiverConnectorConfig(PreTrainedConfig):
    """The trained part: `num_latents` learned queries read the patches, an MLP maps them to the language width.

    Args:
        num_latents: soft tokens per image, whatever its size.
        depth: resampler layers; each is one cross-attention and one MLP.
        num_heads: attention heads. The latent width is `num_heads * head_dim`.
        head_dim: width of a head.
        mlp_ratio: inner width of a resampler MLP as a multiple of the latent width.
        projector_mlp_ratio: inner width of the projector as a multiple of the language model's hidden size.
        position_encoding: what the attention keys know of where a patch lies. `"none"`: nothing, the latents see a
            set of patches; `"sincos2d"`: fixed 2-D sine-cosine codes are added to the keys.
        kv_layer_norm: LayerNorm on the patches before keys and values.
        final_layer_norm: LayerNorm on the latents before the projector.
        vision_layer_norm: LayerNorm on the tower's output before the resampler.
        latent_init_std: standard deviation of the learned queries at the start.
        initializer_range: standard deviation of linear weights at the start; None: fan_in ** -0.5, layer by layer.
    """

    model_type = "qwen3_perceiver_connector"
    base_config_key = "connector_config"

    num_latents: int = 64
    depth: int = 2
    num_heads: int = 8
    head_dim: int = 64
    mlp_ratio: int | float = 4
    projector_mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    position_encoding: Literal["none", "sincos2d"] = "none"
    kv_layer_norm: bool = False
    final_layer_norm: bool = False
    vision_layer_norm: bool = False
    layer_norm_eps: float = 1e-5
    attention_dropout: float | int = 0.0
    latent_init_std: float = 0.02
    initializer_range: float | None = None

    @property
    def latent_size(self) -> int:
        """Width of a latent."""
        return self.num_heads * self.head_dim

    def __post_init__(self, **kwargs: Any) -> None:
        """Refuse shapes no connector can have."""
        super().__post_init__(**kwargs)
        for name in ("num_latents", "depth", "num_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`connector_config.{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("mlp_ratio", "projector_mlp_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`connector_config.{name}` must be positive, got {getattr(self, name)}.")
        if self.position_encoding == "sincos2d" and self.latent_size % 4:
            raise ValueError(
                f"2-D sine-cosine positions need a latent width (num_heads x head_dim = {self.latent_size}) "
                "divisible by 4."
            )


@strict
class Qwen3PerceiverConfig(VisionLanguageConfig):
    """Configuration of `Qwen3PerceiverModel` and `Qwen3PerceiverVLM`.

    Args:
        vision_config: configuration (or its dict) of the vision tower; default SigLIP2 so400m-patch14-384, no head.
        connector_config: configuration (or its dict) of resampler and projector.
        (the rest): see `VisionLanguageConfig`.

    Raises:
        ValueError: an unsupported tower or language model, or a special token outside the vocabulary.
    """

    model_type = "qwen3_perceiver"
    sub_configs = {
        "vision_config": AutoConfig,
        "connector_config": Qwen3PerceiverConnectorConfig,
        "text_config": Qwen3Config,
    }

    connector_config: dict[str, Any] | PreTrainedConfig | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.vision_config is None:
            self.vision_config = siglip2_so400m_384()
        elif isinstance(self.vision_config, dict):
            _check_tower(self.vision_config.get("model_type"))
            # `from_dict` rather than the constructor: timm stores its labels in a form only `from_dict` reads.
            self.vision_config = CONFIG_MAPPING[self.vision_config["model_type"]].from_dict(self.vision_config)
        if self.connector_config is None:
            self.connector_config = Qwen3PerceiverConnectorConfig()
        elif isinstance(self.connector_config, dict):
            self.connector_config = Qwen3PerceiverConnectorConfig(**self.connector_config)
        super().__post_init__(**kwargs)
        _check_tower(self.vision_config.model_type)

    @property
    def num_image_tokens(self) -> int:
        """Placeholders, and so soft tokens, of one image: the resampler's output does not depend on its size."""
        return self.connector_config.num_latents


def siglip2_so400m_384() -> SiglipVisionConfig:
    """`google/siglip2-so400m-patch14-384`'s tower without its pooling head: 384 / 14 -> 27 x 27 = 729 patches."""
    return SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
        vision_use_head=False,
    )


def _check_tower(model_type: str | None) -> None:
    if model_type not in VISION_MODEL_TYPES:
        raise ValueError(
            f"`vision_config.model_type` is {model_type!r}; supported vision towers are "
            f"{', '.join(VISION_MODEL_TYPES)}. For a full SigLIP or SigLIP2 checkpoint pass its `vision_config`."
        )


__all__ = ["Qwen3PerceiverConfig", "Qwen3PerceiverConnectorConfig"]
