"""Perceiver VLM: a frozen vision tower, a Perceiver connector and stock Qwen3.

    pixels -> vision tower -> connector -> soft tokens -> spliced at placeholders -> Qwen3Model -> linear head

The language model is transformers' own `Qwen3Model`, the tower transformers' own SigLIP or timm wrapper; what is new
is the connector (`perceiver_connector.py`) and the splice (`soft_tokens.py`). Without an image the model is Qwen3, bit
for bit. Everything the graft adds lives in the backbone, behind a plain linear head, because trainers call the
backbone and the head apart.

Shapes: B batch, S sequence, I images in the whole batch, L soft tokens an image, D language width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
    PreTrainedModel,
    Qwen3Model,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import cached_file, can_return_tuple
from transformers.utils.hub import extract_commit_hash

from ..configuration.configuration_qwen3_perceiver import Qwen3PerceiverConfig, Qwen3PerceiverConnectorConfig
from .graft_only_loading import GraftOnlyLoadingMixin
from .perceiver_connector import PerceiverConnector
from .soft_tokens import splice_soft_tokens
from .strict_loading import StrictLoadingMixin
from .vision_towers import build_vision_tower, encode_patches, load_vision_tower, vision_hidden_size


@dataclass
class Qwen3PerceiverModelOutputWithPast(BaseModelOutputWithPast):
    """Backbone output.

    Attributes:
        image_hidden_states: one (L, D) tensor of soft tokens an image; None without images.
    """

    image_hidden_states: list[torch.Tensor] | None = None


@dataclass
class Qwen3PerceiverCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output with the head.

    Attributes:
        image_hidden_states: one (L, D) tensor of soft tokens an image; None without images.
    """

    image_hidden_states: list[torch.Tensor] | None = None


class Qwen3PerceiverPreTrainedModel(GraftOnlyLoadingMixin, StrictLoadingMixin, PreTrainedModel):
    """What transformers has to know of both classes."""

    config: Qwen3PerceiverConfig
    config_class = Qwen3PerceiverConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _no_split_modules = ["PerceiverLayer", "Qwen3DecoderLayer", "SiglipEncoderLayer", "Siglip2EncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    graft_modules = ("connector",)

    @classmethod
    def assemble_bases(cls, config: Qwen3PerceiverConfig, dtype: str | torch.dtype) -> "Qwen3PerceiverVLM":
        vision, language = config.base_models["vision"], config.base_models["language"]
        return Qwen3PerceiverVLM.from_vision_language_pretrained(
            vision["repo_id"],
            language["repo_id"],
            vision_revision=vision["revision"],
            language_revision=language["revision"],
            connector_config=config.connector_config,
            dtype=dtype,
            image_token_id=config.image_token_id,
            vision_start_token_id=config.vision_start_token_id,
            vision_end_token_id=config.vision_end_token_id,
        )


class Qwen3PerceiverModel(Qwen3PerceiverPreTrainedModel):
    """The backbone: tower, connector and Qwen3 without its head (`AutoModel`)."""

    def __init__(self, config: Qwen3PerceiverConfig) -> None:
        super().__init__(config)
        self.vision_tower = build_vision_tower(config.vision_config)
        self.connector = PerceiverConnector._from_config(
            config.connector_config,
            vision_size=vision_hidden_size(self.vision_tower, config.vision_config),
            language_size=config.text_config.hidden_size,
        )
        self.language_model = Qwen3Model._from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "Qwen3PerceiverModel":
        """A tower with nothing to train stays in evaluation mode: no batch statistics, no dropout."""
        super().train(mode)
        if not self._trains_tower():
            self.vision_tower.eval()
        return self

    def _trains_tower(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_tower.parameters())

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        A tower with nothing to train runs without a graph, also where PEFT or gradient checkpointing hook its
        patch embedding so that its output requires gradients: that alone halves the training step on a CPU.

        Args:
            pixel_values: (I, 3, H, W), or (I, P, 3 * patch * patch) for a NaFlex tower.
            pixel_attention_mask: (I, P), NaFlex only.
            spatial_shapes: (I, 2), NaFlex only.

        Returns:
            `last_hidden_state` (I, P, C): the tower's patches; `pooler_output`: a list of (L, D) soft tokens an image.
        """
        needs_graph = self._trains_tower() or pixel_values.requires_grad
        with torch.set_grad_enabled(torch.is_grad_enabled() and needs_graph):
            patches = encode_patches(self.vision_tower, pixel_values, pixel_attention_mask, spatial_shapes)
        soft_tokens = self.connector(patches)
        return BaseModelOutputWithPooling(
            last_hidden_state=patches.hidden_states, pooler_output=list(soft_tokens.unbind(0))
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Qwen3PerceiverModelOutputWithPast:
        """Run the backbone.

        Args:
            input_ids: (B, S) with one image placeholder for each soft token.
            pixel_values, pixel_attention_mask, spatial_shapes: see `get_image_features`; images of the whole batch
                in reading order.
            inputs_embeds: (B, S, D) in place of `input_ids`.
            mm_token_type_ids: (B, S); accepted because processors offer it, not needed: positions stay 1-D.
            mm_encoder_outputs: `{"image": output of get_image_features}`, in place of the pixels, so that `generate`
                encodes an image once.

        Raises:
            ValueError: not exactly one of ids and embeddings; pixels and encoded images together; placeholders and
                soft tokens that differ in number.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None:
            if encoded is not None:
                raise ValueError("You cannot specify both pixel_values and mm_encoder_outputs at the same time")
            encoded = self.get_image_features(pixel_values, pixel_attention_mask, spatial_shapes, return_dict=True)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        soft_tokens = None
        if encoded is not None:
            soft_tokens = list(encoded.pooler_output)
            inputs_embeds = splice_soft_tokens(
                input_ids,
                inputs_embeds,
                soft_tokens,
                placeholder_id=self.config.image_token_id,
                embed=self.get_input_embeddings(),
            )
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return Qwen3PerceiverModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=soft_tokens,
        )


class Qwen3PerceiverVLM(Qwen3PerceiverPreTrainedModel, GenerationMixin):
    """The backbone with Qwen3's language-model head (`AutoModelForCausalLM`, `AutoModelForImageTextToText`)."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: Qwen3PerceiverConfig) -> None:
        super().__init__(config)
        self.model = Qwen3PerceiverModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # transformers chooses the loss by the class name, which here says neither CausalLM nor
        # ConditionalGeneration; without this the loss would not be normalised over accumulated batches.
        self.loss_type = "ForCausalLM"
        self.post_init()

    @classmethod
    def from_vision_language_pretrained(
        cls,
        vision: str,
        language: str,
        *,
        connector_config: Qwen3PerceiverConnectorConfig | dict[str, Any] | None = None,
        vision_revision: str | None = None,
        language_revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        **config_kwargs: Any,
    ) -> "Qwen3PerceiverVLM":
        """Graft: a pretrained tower, a pretrained Qwen3 and a new connector between them.

        Args:
            vision: repository id or folder of a SigLIP, SigLIP2 or timm checkpoint.
            language: repository id or folder of a dense Qwen3 checkpoint of any size.
            connector_config: resampler and projector; the specified connector when left out.
            vision_revision, language_revision: branch, tag or commit of either.
            dtype: of the whole model; "auto" takes the language model's.
            config_kwargs: further `Qwen3PerceiverConfig` values, e.g. token ids of a tokenizer that is not Qwen3's.

        Returns:
            The assembled model; only the connector's weights are new.

        Raises:
            ValueError: a tower or language model of another kind, or a checkpoint with tensors missing.
        """
        text_config = AutoConfig.from_pretrained(language, revision=language_revision or "main")
        if text_config.model_type != "qwen3":
            raise ValueError(
                f"{language!r} holds a {text_config.model_type!r} model; the language model must be a dense Qwen3."
            )
        language_model, info = AutoModelForCausalLM.from_pretrained(
            language, config=text_config, revision=language_revision or "main", dtype=dtype, output_loading_info=True
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"The language checkpoint {language!r} lacks {len(missing)} tensors: {', '.join(missing[:5])}"
                f"{', …' if len(missing) > 5 else ''}. Nothing was assembled; download it again or choose another."
            )
        tower = load_vision_tower(vision, vision_revision or "main", language_model.dtype)
        # Only what came from the Hub has a commit, and only that means anything to others.
        sources = {"vision": (vision, vision_revision), "language": (language, language_revision)}
        commits = {part: (name, _commit_of(name, revision or "main")) for part, (name, revision) in sources.items()}
        bases = {part: {"repo_id": name, "revision": sha} for part, (name, sha) in commits.items() if sha}
        config = cls.config_class(
            vision_config=tower.config.to_dict(),
            connector_config=connector_config,
            text_config=language_model.config.to_dict(),
            dtype=language_model.dtype,
            base_models=bases or None,
            **config_kwargs,
        )
        with torch.device("meta"):
            model = cls(config)
        backbone = model.model
        backbone.vision_tower = tower
        backbone.language_model = language_model.model
        model.lm_head = language_model.lm_head
        backbone.connector = PerceiverConnector._from_config(
            config.connector_config,
            vision_size=vision_hidden_size(tower, tower.config),
            language_size=text_config.hidden_size,
            dtype=language_model.dtype,
        )
        # The parts came with configurations of their own; from here on there is one, the model's.
        config.vision_config, config.text_config = tower.config, language_model.config
        model.generation_config = language_model.generation_config
        model.tie_weights()
        return model.eval()

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Encode images; see `Qwen3PerceiverModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Qwen3PerceiverCausalLMOutputWithPast:
        """Backbone, head and loss.

        Args:
            labels: (B, S), -100 where nothing is learned; shifted inside.
            logits_to_keep: keep the last n positions (0: all), or the positions of a 1-D index tensor.
            (the rest): see `Qwen3PerceiverModel.forward`.

        Returns:
            `logits` (B, kept, V) and, with labels, `loss`.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return Qwen3PerceiverCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def _commit_of(name: str, revision: str) -> str | None:
    """The commit of a Hub repository that is in the cache by now; None for a folder."""
    file = cached_file(name, "config.json", revision=revision)
    return None if file.startswith(name) else extract_commit_hash(file, None)


__all__ = ["Qwen3PerceiverModel", "Qwen3PerceiverPreTrainedModel", "Qwen3PerceiverVLM"]
