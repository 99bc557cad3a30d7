"""What every vision graft is: a frozen vision tower, a small new part, and stock Qwen3.

    pixels -> vision tower -> new part -> soft tokens -> spliced at placeholders -> Qwen3Model -> linear head

A graft's own file says which tower it has, which part is new and how pixels become soft tokens; how they reach Qwen3,
generation, loss, assembly from base checkpoints and loading are here, once. The language model is transformers' own
`Qwen3Model`; without an image the model is Qwen3, bit for bit. Everything a graft adds lives in the backbone, behind a
plain linear head, because trainers call the backbone and the head apart.

Shapes: B batch, S sequence, L soft tokens of one image, D language width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    Cache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3ForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .checkpoint_tensors import commit_of, load_part
from .graft_model import GraftPreTrainedModel
from .graft_only_loading import GraftOnlyLoadingMixin
from .qwen_checkpoint import read_generation_config, read_language_config, read_language_tensors
from .soft_tokens import splice_soft_tokens


@dataclass
class VisionLanguageModelOutputWithPast(BaseModelOutputWithPast):
    """Backbone output.

    Attributes:
        image_hidden_states: one (L, D) tensor of soft tokens an image; None without images.
    """

    image_hidden_states: list[torch.Tensor] | None = None


@dataclass
class VisionLanguageCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output with the head.

    Attributes:
        image_hidden_states: one (L, D) tensor of soft tokens an image; None without images.
    """

    image_hidden_states: list[torch.Tensor] | None = None


class VisionLanguagePreTrainedModel(GraftOnlyLoadingMixin, GraftPreTrainedModel):
    """What transformers has to know of backbone and model; a graft's subclass sets `config_class` and the like.

    Attributes:
        graft_settings: names of configuration values, beside the bases, that an assembled model is made with.
    """

    input_modalities = ("image", "text")
    graft_settings: tuple[str, ...] = ("image_token_id", "vision_start_token_id", "vision_end_token_id")


class VisionLanguageModel(VisionLanguagePreTrainedModel):
    """The backbone: tower, new part and Qwen3 without its head.

    A graft's subclass makes `vision_tower`, `language_model` and, in `build_graft`, the modules that `graft_modules`
    names, and says how images are encoded.
    """

    vision_tower: PreTrainedModel
    language_model: PreTrainedModel

    def build_graft(self, dtype: torch.dtype | None = None) -> None:
        """Give the backbone new modules under the names of `graft_modules`, initialised, for the tower at hand."""
        raise NotImplementedError

    def get_image_features(self, pixel_values: torch.Tensor, **image_inputs: Any) -> BaseModelOutputWithPooling:
        """Encode images.

        Returns:
            `last_hidden_state`: the tower's features; `pooler_output`: a list of (L, D) soft tokens an image.
        """
        raise NotImplementedError

    def train(self, mode: bool = True) -> "VisionLanguageModel":
        """A tower with nothing to train stays in evaluation mode: no batch statistics, no dropout."""
        super().train(mode)
        if not self._trains_tower():
            self.vision_tower.eval()
        return self

    def _trains_tower(self) -> bool:
        return any(parameter.requires_grad for parameter in self.vision_tower.parameters())

    def tower_grad(self, pixel_values: torch.Tensor) -> torch.set_grad_enabled:
        """Context in which the tower runs: without a graph where it has nothing to train.

        Also where PEFT or gradient checkpointing hook its patch embedding so that its output requires gradients: that
        alone halves the training step on a CPU.
        """
        needs_graph = self._trains_tower() or pixel_values.requires_grad
        return torch.set_grad_enabled(torch.is_grad_enabled() and needs_graph)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VisionLanguageModelOutputWithPast:
        """Run the backbone.

        Args:
            input_ids: (B, S) with one image placeholder for each soft token.
            pixel_values: images of the whole batch in reading order, as `get_image_features` of the graft takes them.
            pixel_attention_mask, spatial_shapes, image_grid_thw: what its tower wants to know beside them.
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
            beside = {
                "pixel_attention_mask": pixel_attention_mask,
                "spatial_shapes": spatial_shapes,
                "image_grid_thw": image_grid_thw,
            }
            given = {name: value for name, value in beside.items() if value is not None}
            encoded = self.get_image_features(pixel_values, **given, return_dict=True)
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
        return VisionLanguageModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=soft_tokens,
        )


class VisionLanguageForCausalLM(VisionLanguagePreTrainedModel, GenerationMixin):
    """The backbone with Qwen3's language-model head; a graft's subclass names its `backbone_class`."""

    backbone_class: type[VisionLanguageModel]
    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.model = self.backbone_class(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # transformers chooses the loss by the class name, which need not say CausalLM or ConditionalGeneration;
        # without this the loss would not be normalised over accumulated batches.
        self.loss_type = "ForCausalLM"
        self.post_init()

    @classmethod
    def load_vision_tower(cls, name: str, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
        """The pretrained tower of a vision checkpoint, frozen parts and nothing else.

        Raises:
            ValueError: a checkpoint of another kind, or tensors of the tower missing from it.
        """
        raise NotImplementedError

    @classmethod
    def from_vision_language_pretrained(
        cls,
        vision: str,
        language: str,
        *,
        vision_revision: str | None = None,
        language_revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        **config_kwargs: Any,
    ) -> "VisionLanguageForCausalLM":
        """Graft: a pretrained tower, a pretrained Qwen3 and a new part between them.

        Args:
            vision: repository id or folder of a checkpoint that holds the tower; see `load_vision_tower`.
            language: repository id or folder of a dense Qwen3 checkpoint of any size.
            vision_revision, language_revision: branch, tag or commit of either.
            dtype: of the whole model; "auto" takes the language model's.
            config_kwargs: further values of the graft's configuration: settings of the new part, token ids of a
                tokenizer that is not Qwen3's.

        Returns:
            The assembled model; only the new part's weights are new.

        Raises:
            ValueError: a tower or language model of another kind, or a checkpoint with tensors missing.
        """
        # A branch may move while its files are read, so both are pinned. Only what came from the Hub has a commit, and
        # only that means anything to others.
        commits = {
            "vision": (vision, commit_of(vision, vision_revision or "main")),
            "language": (language, commit_of(language, language_revision or "main")),
        }
        bases = {part: {"repo_id": name, "revision": sha} for part, (name, sha) in commits.items() if sha}
        language_model = load_language_model(language, commits["language"][1], dtype)
        tower = cls.load_vision_tower(vision, commits["vision"][1], language_model.dtype)
        config = cls.config_class(
            vision_config=tower.config.to_dict(),
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
        backbone.build_graft(language_model.dtype)
        # The parts came with configurations of their own; from here on there is one, the model's.
        config.vision_config, config.text_config = tower.config, language_model.config
        model.generation_config = language_model.generation_config
        return model.eval()

    @classmethod
    def from_base_models(cls, config: PreTrainedConfig, dtype: str | torch.dtype) -> "VisionLanguageForCausalLM":
        """Assemble anew from the repositories and commits that a configuration names; the graft's weights are new."""
        vision, language = config.base_models["vision"], config.base_models["language"]
        return cls.from_vision_language_pretrained(
            vision["repo_id"],
            language["repo_id"],
            vision_revision=vision["revision"],
            language_revision=language["revision"],
            dtype=dtype,
            **{name: getattr(config, name) for name in cls.graft_settings},
        )

    def get_image_features(self, *image_inputs: Any, **named_inputs: Any) -> BaseModelOutputWithPooling:
        """Encode images; see the backbone's `get_image_features`."""
        return self.model.get_image_features(*image_inputs, **named_inputs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        pixel_attention_mask: torch.Tensor | None = None,
        spatial_shapes: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_token_type_ids: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> VisionLanguageCausalLMOutputWithPast:
        """Backbone, head and loss.

        Args:
            labels: (B, S), -100 where nothing is learned; shifted inside.
            logits_to_keep: keep the last n positions (0: all), or the positions of a 1-D index tensor.
            (the rest): see `VisionLanguageModel.forward`.

        Returns:
            `logits` (B, kept, V) and, with labels, `loss`.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            pixel_attention_mask=pixel_attention_mask,
            spatial_shapes=spatial_shapes,
            image_grid_thw=image_grid_thw,
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
        return VisionLanguageCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
        )


def load_language_model(name: str, revision: str | None, dtype: str | torch.dtype) -> Qwen3ForCausalLM:
    """A pretrained Qwen3 with its head and its generation settings.

    Raises:
        ValueError: another kind of model, a quantised one, or files or tensors missing or damaged.
    """
    config = read_language_config(name, revision, ("qwen3",))
    tensors = read_language_tensors(name, config, revision=revision, dtype=dtype)
    model = load_part(Qwen3ForCausalLM, config, tensors, part="language", name=name)
    model.generation_config = read_generation_config(name, revision, config)
    return model


__all__ = [
    "VisionLanguageCausalLMOutputWithPast",
    "VisionLanguageForCausalLM",
    "VisionLanguageModel",
    "VisionLanguageModelOutputWithPast",
    "VisionLanguagePreTrainedModel",
]
