"""A Qwen that thinks deeper: a run of its layers, the core, is used again and again before the next token is chosen.

    e = prelude(tokens)                                 z_H = e + H_init, z_L = L_init
    H_cycles times:
        L_cycles times:   z_L <- z_L + b (core(u) - z_L)           u = e + a_H (z_H - e) + a_L z_L
        once:             z_H <- z_L + g (core(u) - z_L)
    logits = head(norm(coda(z_H)))

The two states and their cycles are HRM's (arXiv 2506.21734) and TRM's (arXiv 2510.04871), made causal: every token has
its own, reads those of earlier tokens through attention, and may stop when its halting head is sure. The first run of
the core replaces z_L whatever the gates say, so with b = g = 0, as a new model has them, the model computes its
source's function bit for bit at any depth, and training opens them. Layers, embeddings, norm and head are stock.

Shapes: B batch, S tokens of a call, D width, V vocabulary.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import (
    Qwen3Attention,
    Qwen3DecoderLayer,
    Qwen3RotaryEmbedding,
)
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_recursive_qwen import RecursiveQwenConfig, check_cycles, check_halting
from ..configuration.layer_selection import LayerSelection, select_layers
from .call_bound_layers import NOT_SPLIT, splits_linears
from .checkpoint_tensors import commit_of, load_part
from .fused_attention import FusedQwen2Attention, FusedQwen3Attention
from .fused_norm import FusedRMSNorm, fuse_norms
from .graft_model import GraftPreTrainedModel
from .loop_lora import LoopLinear, LoopQwen2DecoderLayer, LoopQwen3DecoderLayer
from .qwen_checkpoint import read_generation_config, read_language_config, read_language_tensors
from .recurrence import Halting, HaltingHead, Recurrence, SegmentEnds, padding_of
from .recursive_cache import CoreCache, RecursiveCache
from .strict_loading import hub_arguments

STOCK_LAYERS = {"qwen2": Qwen2DecoderLayer, "qwen3": Qwen3DecoderLayer}
FUSED_ATTENTION = {"qwen2": FusedQwen2Attention, "qwen3": FusedQwen3Attention}
LOOP_LAYERS = {"qwen2": LoopQwen2DecoderLayer, "qwen3": LoopQwen3DecoderLayer}


@dataclass
class RecursiveModelOutputWithPast(BaseModelOutputWithPast):
    """Backbone output.

    Attributes:
        cycles_used: (B, S) cycles each token took; None where no token could halt.
        halt_logits: (B, S, cycles) of the halting head: at every cycle made where tokens could halt, at the supervised
            cycles (the last one, without any) in training mode or with `supervised_cycles`; None otherwise.
        cycle_hidden_states: one (B, S, D) a supervised cycle, after coda and norm; None without `supervised_cycles`.
    """

    cycles_used: torch.Tensor | None = None
    halt_logits: torch.Tensor | None = None
    cycle_hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class RecursiveCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output with the head; see `RecursiveModelOutputWithPast` for the rest that is not stock.

    Attributes:
        cycle_logits: one (B, kept, V) a supervised cycle; None without `supervised_cycles`.
    """

    cycles_used: torch.Tensor | None = None
    halt_logits: torch.Tensor | None = None
    cycle_logits: tuple[torch.Tensor, ...] | None = None


def _run_layers(layers: list[nn.Module], which: slice, states: torch.Tensor, cache: Any, **shared: Any) -> torch.Tensor:
    for layer in layers[which]:
        states = layer(states, past_key_values=cache, **shared)
    return states


class RecursiveQwenPreTrainedModel(GraftPreTrainedModel):
    """What backbone and model have in common."""

    config_class = RecursiveQwenConfig
    _no_split_modules = [layer.__name__ for layer in (*STOCK_LAYERS.values(), *LOOP_LAYERS.values())]
    _can_record_outputs = {
        "hidden_states": [Qwen2DecoderLayer, Qwen3DecoderLayer],
        "attentions": [Qwen2Attention, Qwen3Attention],
    }

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As the stock one.

        Raises:
            ValueError: tensor parallelism of a model whose cycles have low-rank terms of their own.
        """
        if splits_linears(kwargs):
            config = kwargs.get("config") or cls.config_class.from_pretrained(
                pretrained_model_name_or_path, **hub_arguments(kwargs)
            )
            if config.loop_lora_rank:
                raise ValueError(NOT_SPLIT)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Recurrence):
            module.reset_parameters(self.config)
        elif isinstance(module, LoopLinear):
            module.reset_loop_parameters()
        elif isinstance(module, HaltingHead):
            # Not sure of anything before it is trained: no token halts.
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, -5.0)


class RecursiveQwenModel(RecursiveQwenPreTrainedModel):
    """The backbone: embeddings, layers, the recurrence over the core, and the halting head."""

    def __init__(self, config: RecursiveQwenConfig) -> None:
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(self._layer(index) for index in range(config.num_hidden_layers))
        self.norm = FusedRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = Qwen3RotaryEmbedding(config=config)
        self.recurrence = Recurrence(config)
        self.q_head = HaltingHead(config.hidden_size, 1)
        self.gradient_checkpointing = False
        self.post_init()

    def _layer(self, index: int) -> nn.Module:
        config, family = self.config, self.config.layer_family
        loops = config.loop_lora_rank > 0 and config.core_range[0] <= index < config.core_range[1]
        layer = (LOOP_LAYERS if loops else STOCK_LAYERS)[family](config, index)
        layer.self_attn = FUSED_ATTENTION[family](config, index)
        if loops:
            layer.exchange_linears(config.loop_lora_rank, config.loop_lora_alpha, config.loop_lora_cycles)
        return fuse_norms(layer)

    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | dict[str, torch.Tensor] | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_cycles: int | None = None,
        L_cycles: int | None = None,
        halt_threshold: float | None = None,
        supervised_cycles: Collection[int] | None = None,
        gradient_cycles: int | None = None,
        **kwargs: Any,
    ) -> RecursiveModelOutputWithPast:
        """Run the backbone.

        Args:
            input_ids: (B, S).
            attention_mask: (B, tokens so far), 0 on padding; or what transformers' mask functions make of it.
            inputs_embeds: (B, S, D) in place of `input_ids`.
            num_cycles, L_cycles: depth of this call, in place of the configuration's `H_cycles` and `L_cycles`.
            halt_threshold: in place of the configuration's; 1 lets no token halt. In training mode and with
                `supervised_cycles` none ever does.
            supervised_cycles: cycles (1 is the first) whose state goes through coda and norm; behind each the states
                are cut from the graph (deep supervision). The last cycle is always among them.
            gradient_cycles: only that many cycles before each supervised one (before the end, without any) are part of
                the graph; None: all.

        Raises:
            ValueError: not exactly one of ids and embeddings; a depth or threshold out of range; supervised cycles that
                are not made; a cache of another depth.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        config = self.config
        cycles = config.H_cycles if num_cycles is None else num_cycles
        steps = config.L_cycles if L_cycles is None else L_cycles
        check_cycles(cycles, steps)
        threshold = config.halt_threshold if halt_threshold is None else halt_threshold
        check_halting(threshold, config.halt_patience)
        halts = threshold is not None and threshold < 1 and not self.training and supervised_cycles is None
        segment_ends = SegmentEnds(supervised_cycles, cycles, gradient_cycles)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        use_cache = config.use_cache if use_cache is None else use_cache
        if supervised_cycles is not None or (self.gradient_checkpointing and self.training):
            use_cache, past_key_values = False, None
        if use_cache and past_key_values is None:
            past_key_values = RecursiveCache()
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + seen).unsqueeze(0)
        runs = config.core_runs(cycles, steps)
        core_cache = CoreCache(
            past_key_values,
            tuple(config.core_range),
            config.num_hidden_layers,
            runs,
            runs // cycles,
            config.kv_sharing,
            hold=halts,
        )
        core_cache.check()
        if isinstance(attention_mask, dict):
            mask = attention_mask["full_attention"]
        else:
            mask = create_causal_mask(
                config=config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
            )
        run_layers = partial(
            _run_layers,
            list(self.layers),
            attention_mask=mask,
            position_ids=position_ids,
            position_embeddings=self.rotary_emb(inputs_embeds, position_ids),
            use_cache=use_cache,
            **kwargs,
        )
        first, last = config.core_range
        embedded = run_layers(slice(0, first), inputs_embeds, past_key_values)
        halting = None
        if halts:
            halting = Halting(padding_of(attention_mask, inputs_embeds), cycles, threshold, config.halt_patience)
        outputs: list[torch.Tensor] = []
        halt_logits: list[torch.Tensor] = []
        for cycle, high in self._cycles(embedded, run_layers, core_cache, cycles, steps, segment_ends, halting):
            ends_segment = cycle + 1 in segment_ends and (self.training or supervised_cycles is not None)
            if ends_segment or halting is not None:
                halt_logits.append(self.q_head(high).to(high.device))
            if ends_segment and supervised_cycles is not None:
                outputs.append(self.norm(run_layers(slice(last, None), high, None)))
            if halting is not None and halting.step(halt_logits[-1], cycle):
                break
        core_cache.finish((cycle + 1) * core_cache.runs_per_cycle)
        if halting is not None and isinstance(past_key_values, RecursiveCache):
            past_key_values.record_cycles(halting.used)
        if supervised_cycles is None:
            last_hidden_state = self.norm(run_layers(slice(last, None), high, past_key_values))
        else:
            last_hidden_state = outputs[-1]
        return RecursiveModelOutputWithPast(
            last_hidden_state=last_hidden_state,
            past_key_values=past_key_values if use_cache else None,
            cycles_used=None if halting is None else halting.used,
            halt_logits=torch.stack(halt_logits, dim=-1) if halt_logits else None,
            cycle_hidden_states=tuple(outputs) or None,
        )

    def _cycles(
        self,
        embedded: torch.Tensor,
        run_layers: Callable[..., torch.Tensor],
        core_cache: CoreCache,
        cycles: int,
        steps: int,
        segment_ends: SegmentEnds,
        halting: Halting | None,
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """The recurrence: the number of a cycle, from 0 on, and the high state (B, S, D) behind it."""
        moves, core_layers = self.recurrence(embedded), slice(*self.config.core_range)
        high, low = moves.start()

        def core(cycle: int, step: int, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
            run = core_cache.run(cycle * core_cache.runs_per_cycle + step, None if halting is None else halting.halted)
            terms = {"cycle": cycle} if self.config.loop_lora_rank else {}
            ran = run_layers(core_layers, moves.core_input(high, low), run, **terms)
            return ran.to(embedded.device)  # layers may be spread over devices

        for cycle in range(cycles):
            with nullcontext() if segment_ends.in_graph(cycle) else torch.no_grad():
                new_low = low
                for step in range(steps):
                    ran = core(cycle, step, high, new_low)
                    first_run = cycle == step == 0
                    new_low = ran if first_run else torch.lerp(new_low, ran, moves.low_update)
                new_high = new_low
                if core_cache.runs > 1:
                    ran = core(cycle, steps, high, new_low)
                    new_high = torch.lerp(new_low, ran, moves.high_update)
            if halting is not None:
                new_high, new_low = halting.rest(high, new_high), halting.rest(low, new_low)
            high, low = new_high, new_low
            yield cycle, high
            if segment_ends.cuts(cycle):
                high, low = high.detach(), low.detach()


class RecursiveQwenForCausalLM(RecursiveQwenPreTrainedModel, GenerationMixin):
    """The backbone with Qwen's language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: RecursiveQwenConfig) -> None:
        super().__init__(config)
        self.model = RecursiveQwenModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_qwen_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        layer_selection: LayerSelection = "all",
        core_range: tuple[int, int] | None = None,
        L_layers: int | None = None,
        **config_kwargs: Any,
    ) -> "RecursiveQwenForCausalLM":
        """Make a recursive model of a published Qwen2 or Qwen3.

        Tensors are read one by one, those of dropped layers not at all, and none is copied. With all layers kept, the
        new model computes the source's function at any depth until it is trained.

        Args:
            source: repository id or folder of a dense Qwen2 or Qwen3.
            revision: branch, tag or commit of it.
            dtype: of the model; "auto" takes the source's.
            layer_selection, core_range, L_layers: which layers are kept and which are the core; see `select_layers`.
            config_kwargs: further values of `RecursiveQwenConfig`: `H_cycles`, `L_cycles`, `halt_threshold`, ….

        Raises:
            ValueError: another kind of model (a mixture of experts among them), sliding windows, a core outside the
                layers, or files or tensors missing or damaged.
        """
        commit = commit_of(source, revision or "main")
        stock = read_language_config(source, commit, tuple(STOCK_LAYERS))
        kept, core = select_layers(stock.num_hidden_layers, layer_selection, core_range=core_range, L_layers=L_layers)
        values = stock.to_diff_dict() | {
            "layer_family": stock.model_type,
            "head_dim": getattr(stock, "head_dim", None) or stock.hidden_size // stock.num_attention_heads,
            "num_hidden_layers": len(kept),
            "layer_types": [stock.layer_types[layer] for layer in kept],
            "core_range": core,
            "base_models": {"language": {"repo_id": source, "revision": commit}} if commit else None,
        }
        for name in ("model_type", "architectures", "transformers_version", "auto_map"):
            values.pop(name, None)
        config = cls.config_class(**(values | config_kwargs))
        dropped = set(range(stock.num_hidden_layers)) - set(kept)
        leave = tuple(f"model.layers.{layer}." for layer in dropped)
        tensors = read_language_tensors(source, stock, revision=commit, dtype=dtype, leave=leave)
        for new, old in enumerate(kept):
            if new != old:  # layers only move down, onto indices that are free by then
                for name in [name for name in tensors if name.startswith(f"model.layers.{old}.")]:
                    tensors[name.replace(f".{old}.", f".{new}.", 1)] = tensors.pop(name)
        new = ("model.recurrence.", "model.q_head.", ".loop_down", ".loop_up")
        model = load_part(cls, config, tensors, part="language", name=source, new=new)
        model.generation_config = read_generation_config(source, commit, config)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_cycles: int | None = None,
        L_cycles: int | None = None,
        halt_threshold: float | None = None,
        **kwargs: Any,
    ) -> RecursiveCausalLMOutputWithPast:
        """Backbone, head and loss.

        Args:
            labels: (B, S), -100 where nothing is learned; shifted inside.
            logits_to_keep: keep the last n positions (0: all), or the positions of a 1-D index tensor.
            (the rest): see `RecursiveQwenModel.forward`.

        Returns:
            `logits` (B, kept, V) and, with labels, `loss`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            num_cycles=num_cycles,
            L_cycles=L_cycles,
            halt_threshold=halt_threshold,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        if outputs.cycle_hidden_states is None:
            cycle_logits = None
            logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        else:
            cycle_logits = tuple(self.lm_head(states[:, kept, :]) for states in outputs.cycle_hidden_states)
            logits = cycle_logits[-1]
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return RecursiveCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cycles_used=outputs.cycles_used,
            halt_logits=outputs.halt_logits,
            cycle_logits=cycle_logits,
        )

    @torch.no_grad()
    def confidence(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, num_cycles: int | None = None
    ) -> torch.Tensor:
        """How sure the halting head is, at each token, of the token that follows: to choose among sampled answers.

        Args:
            input_ids: (B, S).
            attention_mask: (B, S).
            num_cycles: in place of the configuration's.

        Returns:
            (B, S) probabilities, those at padding without meaning.
        """
        cycles = self.config.H_cycles if num_cycles is None else num_cycles
        outputs = self.model(input_ids, attention_mask, num_cycles=cycles, supervised_cycles=[cycles])
        return outputs.halt_logits[..., -1].sigmoid()

    def at_depth(
        self, num_cycles: int, L_cycles: int | None = None, halt_threshold: float | None = None
    ) -> "RecursiveQwenForCausalLM":
        """The same model, on the same tensors, with another depth in its configuration.

        A shallow one is the draft of its deep self: `model.generate(..., assistant_model=model.at_depth(1))`.

        Raises:
            ValueError: a depth or threshold out of range.
        """
        config = copy.deepcopy(self.config)
        config.H_cycles, config.L_cycles = num_cycles, config.L_cycles if L_cycles is None else L_cycles
        config.halt_threshold = config.halt_threshold if halt_threshold is None else halt_threshold
        check_cycles(config.H_cycles, config.L_cycles)
        check_halting(config.halt_threshold, config.halt_patience)
        other, backbone = copy.copy(self), copy.copy(self.model)
        other.config = backbone.config = config
        other._modules = self._modules | {"model": backbone}
        other.generation_config = copy.deepcopy(self.generation_config)
        return other

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """transformers' cache, with a slot for every run of the core.

        The depth may stand among the arguments of `generate` or in the generation configuration; a draft model has its
        own and does not take over that of the model it drafts for.
        """
        for name in ("num_cycles", "L_cycles", "halt_threshold"):
            if generation_config.is_assistant:
                model_kwargs.pop(name, None)
            elif getattr(generation_config, name, None) is not None:
                model_kwargs.setdefault(name, getattr(generation_config, name))
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if cache is None or cache is given:
            return
        if type(cache) is DynamicCache:
            model_kwargs["past_key_values"] = RecursiveCache(offloading=cache.offloading)
        elif self.config.kv_sharing == "none":
            evaluations = self.config.layer_evaluations(model_kwargs.get("num_cycles"), model_kwargs.get("L_cycles"))
            cache.layers += [copy.deepcopy(cache.layers[0]) for _ in range(evaluations - len(cache.layers))]


__all__ = [
    "RecursiveCausalLMOutputWithPast",
    "RecursiveModelOutputWithPast",
    "RecursiveQwenForCausalLM",
    "RecursiveQwenModel",
]
