"""What transformers has to know of every graft, whatever it adds to a Qwen."""

from transformers import PreTrainedModel

from .strict_loading import StrictLoadingMixin


class GraftPreTrainedModel(StrictLoadingMixin, PreTrainedModel):
    """Base of a graft's backbone and of its model with a head; what is stock in them can do all this."""

    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


__all__ = ["GraftPreTrainedModel"]
