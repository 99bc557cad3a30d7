"""CLaRa on Qwen3: documents become latents of the language model, are retrieved as such and answered from as such.

    compressor        passage, memory tokens    -> hidden states at the memory tokens: the passage's latents
    query reasoner    question, memory tokens   -> the same for a question; cosine of the two flattened is the score
    generator         prompt with the latents in the places of placeholders -> answer

One frozen Qwen3 in three roles, each a set of low-rank terms on its linear layers (`role_lora.py`), and embeddings for
a few new tokens (`memory_embedding.py`). The backbone holds all of that and works alone as compressor and retriever;
the model adds the head. In the stock role, without a document, it is Qwen3, bit for bit. Source: CLaRa (arXiv
2511.18659).

Shapes: B prompts, N passages of all of them, L tokens of a passage or question, M latents of a passage, S tokens of a
prompt, D width, V vocabulary, K documents that are chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, torch_compilable_check

from ..configuration.configuration_clara_qwen3 import ROLES, ClaraQwen3Config
from .call_bound_layers import NOT_SPLIT, splits_linears
from .checkpoint_tensors import commit_of, load_part
from .clara_api import AnsweringMixin, CompressionMixin
from .differentiable_top_k import differentiable_top_k
from .graft_model import GraftPreTrainedModel
from .graft_only_loading import GraftOnlyLoadingMixin
from .qwen_checkpoint import read_generation_config, read_language_config, read_language_tensors
from .role_qwen3 import RoleQwen3Model
from .soft_tokens import splice_soft_tokens


@dataclass
class ClaraModelOutputWithPast(BaseModelOutputWithPast):
    """Backbone output.

    Attributes:
        memory: one (M, D) tensor of latents a passage, in reading order; None without documents.
        alignment_loss: (N,) squared distance of the means of a passage's and its memory tokens' hidden states, averaged
            over the width; None where nothing was compressed.
        retrieval_scores: (B, N) cosines of questions and passages; None without questions.
        retrieved: (B, K) passages that the prompts were answered from, best first, -1 for none; None without a choice.
    """

    memory: list[torch.Tensor] | None = None
    alignment_loss: torch.Tensor | None = None
    retrieval_scores: torch.Tensor | None = None
    retrieved: torch.Tensor | None = None


@dataclass
class ClaraCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Output with the head; see `ClaraModelOutputWithPast` for the rest that is not stock."""

    memory: list[torch.Tensor] | None = None
    alignment_loss: torch.Tensor | None = None
    retrieval_scores: torch.Tensor | None = None
    retrieved: torch.Tensor | None = None


class ClaraQwen3PreTrainedModel(GraftOnlyLoadingMixin, GraftPreTrainedModel):
    """What backbone and model have in common."""

    config_class = ClaraQwen3Config
    graft_modules = ("role_down", "role_up", "memory")
    _no_split_modules = RoleQwen3Model._no_split_modules

    @classmethod
    def is_stored(cls, name: str, config: ClaraQwen3Config) -> bool:
        """A graft-only repository may hold some of the roles; the new embeddings it always has."""
        role = name.rsplit(".", 1)[-1]
        return cls.is_new(name) and (role not in ROLES or role in (config.stored_roles or ROLES))

    @classmethod
    def assemble_bases(cls, config: ClaraQwen3Config, dtype: str | torch.dtype) -> "ClaraQwen3ForCausalLM":
        """The whole model with new roles; or, where the base is a CLaRa model itself, that one with its roles."""
        base = config.base_models["language"]
        names = ("doc_max_length", "compression_rates", "lora_rank", "lora_alpha", "lora_dropout", "document_token_id")
        names += ("num_retrieved", "retrieval_temperature")
        settings = {"revision": base["revision"], "dtype": dtype} | {name: getattr(config, name) for name in names}
        kind, _ = ClaraQwen3Config.get_config_dict(base["repo_id"], revision=base["revision"])
        if kind.get("model_type") == config.model_type:
            return ClaraQwen3ForCausalLM.from_pretrained(base["repo_id"], **settings)
        return ClaraQwen3ForCausalLM.from_qwen_pretrained(base["repo_id"], **settings)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """As the stock one; the model knows where it came from, and takes its processor from there.

        Raises:
            ValueError: tensor parallelism, or what `GraftOnlyLoadingMixin.from_pretrained` refuses.
        """
        if splits_linears(kwargs):
            raise ValueError(NOT_SPLIT)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        # A token is left out: it would lie about in the model. Whoever has one is logged in, or sets the processor.
        places = {name: kwargs[name] for name in ("revision", "cache_dir", "local_files_only") if kwargs.get(name)}
        model.base_model.loaded_from = {"pretrained_model_name_or_path": pretrained_model_name_or_path} | places
        return loaded


class ClaraQwen3Model(CompressionMixin, ClaraQwen3PreTrainedModel):
    """The backbone: Qwen3 without its head, in three roles."""

    def __init__(self, config: ClaraQwen3Config) -> None:
        super().__init__(config)
        self.language_model = RoleQwen3Model(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        document_input_ids: torch.LongTensor | None = None,
        memory: Sequence[torch.Tensor] | torch.Tensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        candidates: torch.Tensor | None = None,
        top_k: int | None = None,
        memory_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        role: str | None = "generator",
        **kwargs: Any,
    ) -> ClaraModelOutputWithPast:
        """Run the backbone.

        Args:
            input_ids: (B, S) with one placeholder for each latent. Without prompts, questions and passages are scored.
            document_input_ids: (N, L) passages with their memory tokens, padded on the right, in the order of the
                placeholders; or, with `query_input_ids`, in any order.
            memory: in their place, (N, M, D) or a list of (M, D) latents.
            query_input_ids: (B, L) questions with memory tokens, padded on the right: the prompts are answered from the
                `top_k` passages that fit each best, and a loss behind them trains the scores.
            candidates: (B, N), True where a passage may be chosen for a question; all, where left out.
            top_k: passages that are chosen for a question; default `num_retrieved`, or all if there are fewer.
            memory_embeds: (B, S, D) latents in the places of their placeholders; how `generate` carries them.
            inputs_embeds: (B, S, D) in place of `input_ids`.
            role: whose terms the prompts are read with; None: the stock Qwen3.

        Raises:
            ValueError: not exactly one of ids and embeddings; documents in several forms; placeholders and latents that
                differ in number; passages without, or with different numbers of, memory tokens.
        """
        given = [value is not None for value in (document_input_ids, memory, memory_embeds)]
        if sum(given) > 1:
            raise ValueError(
                "Give documents once: `document_input_ids`, or `memory`, or `memory_embeds`, and not both."
            )
        scores_only = query_input_ids is not None and input_ids is None and inputs_embeds is None
        if not scores_only and (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        alignment_loss = scores = retrieved = None
        if document_input_ids is not None:
            memory, alignment_loss = self.compress_ids(document_input_ids)
        if query_input_ids is not None:
            if memory is None:
                raise ValueError("`query_input_ids` are there and no documents: give `document_input_ids` or `memory`.")
            memory = torch.stack(list(memory))
            scores = self.score(self.encode_query_ids(query_input_ids), memory)
            if scores_only:
                return ClaraModelOutputWithPast(
                    memory=list(memory), alignment_loss=alignment_loss, retrieval_scores=scores
                )
            memory, retrieved = self._choose(scores, memory, candidates, top_k)
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if memory is not None:
            memory = list(memory)
            inputs_embeds = self.place(memory, input_ids, inputs_embeds)
        elif memory_embeds is not None:
            is_latent = self.placeholders(input_ids, inputs_embeds).unsqueeze(-1)
            inputs_embeds = torch.where(is_latent, memory_embeds.to(inputs_embeds.dtype), inputs_embeds)
        outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            role=role,
            **kwargs,
        )
        return ClaraModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            memory=memory,
            alignment_loss=alignment_loss,
            retrieval_scores=scores,
            retrieved=retrieved,
        )

    def compress_ids(self, document_input_ids: torch.LongTensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents (N, M, D) of passages (N, L), and the alignment loss (N,) of `ClaraModelOutputWithPast`.

        Where the compressor does not train, no graph is built.

        Raises:
            ValueError: passages without, or with different numbers of, memory tokens.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains("compressor")):
            latents_NMD, hidden_NLD, is_memory_NL = self._read(document_input_ids, "compressor")
            first_N1 = is_memory_NL.int().argmax(dim=1, keepdim=True)
            is_text_NL = torch.arange(hidden_NLD.shape[1], device=hidden_NLD.device) < first_N1
            text_ND = (hidden_NLD * is_text_NL.unsqueeze(-1)).sum(dim=1) / first_N1.clamp(min=1)
            difference_ND = text_ND.float() - latents_NMD.float().mean(dim=1)
            return latents_NMD, difference_ND.square().mean(dim=-1)

    def encode_query_ids(self, query_input_ids: torch.LongTensor) -> torch.Tensor:
        """Latents (B, M, D) of questions (B, L) with memory tokens, padded on the right.

        Raises:
            ValueError: questions without, or with different numbers of, memory tokens.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains("query_reasoner")):
            return self._read(query_input_ids, "query_reasoner")[0]

    def score(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Cosines (B, N) of questions (B, M, D) and passages (N, M, D), each flattened.

        Raises:
            ValueError: questions and passages were compressed at different rates.
        """
        if queries.shape[1:] != memory.shape[1:]:
            raise ValueError(
                f"A question has {queries.shape[1]} latents and a passage {memory.shape[1]}: compress both at one rate "
                "(`compression_rate`), with one model."
            )
        queries, memory = (functional.normalize(part.float().flatten(1), dim=-1) for part in (queries, memory))
        return queries @ memory.T

    def _choose(
        self, scores: torch.Tensor, memory: torch.Tensor, candidates: torch.Tensor | None, top_k: int | None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The latents of the passages that each question is answered from, and which these are (B, K)."""
        count = min(self.config.num_retrieved, len(memory)) if top_k is None else top_k
        places, retrieved = differentiable_top_k(scores / self.config.retrieval_temperature, count, candidates)
        chosen = torch.einsum("bkn,nmd->bkmd", places.to(memory.dtype), memory)
        return list(chosen[retrieved >= 0]), retrieved

    def _read(self, ids: torch.LongTensor, role: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents (N, M, D) in a role, all hidden states (N, L, D), and which of them are the latents (N, L).

        Padding stands behind the memory tokens, where nothing that is read attends to it: no mask is needed.
        """
        first = self.config.separator_token_id + 1
        is_memory = (ids >= first) & (ids < first - 1 + self.config.num_new_embeddings)
        counts = is_memory.sum(dim=1)
        torch_compilable_check(
            (counts == counts[0]).all() & (counts[0] > 0),
            lambda: (
                f"Of {len(ids)} passages or questions {int((counts == 0).sum())} have no memory tokens and the others "
                f"{sorted(set(counts.tolist()) - {0})}; all of a call are compressed at one rate. Let the processor "
                "write them, and do not truncate its output."
            ),
        )
        hidden = self.language_model(input_ids=ids, use_cache=False, role=role).last_hidden_state
        latents = hidden[is_memory].view(len(ids), -1, hidden.shape[-1])
        return latents, hidden, is_memory

    def _trains(self, role: str) -> bool:
        embeddings = self.get_input_embeddings()
        linear = self.language_model.layers[0].self_attn.q_proj
        terms = getattr(linear, "base_layer", linear).role_up[role]
        return terms.requires_grad or embeddings.memory.requires_grad

    def placeholders(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """(B, S), True where a latent belongs."""
        identifier = self.config.document_token_id
        if input_ids is not None:
            return input_ids == identifier
        embedding = self.get_input_embeddings()(torch.tensor(identifier, device=inputs_embeds.device))
        return (inputs_embeds == embedding).all(dim=-1)

    def place(
        self, memory: list[torch.Tensor], input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor
    ) -> torch.Tensor:
        """(B, S, D) embeddings with latents in the places of placeholders.

        Raises:
            ValueError: placeholders and latents differ in number.
        """
        return splice_soft_tokens(
            input_ids,
            inputs_embeds,
            memory,
            placeholder_id=self.config.document_token_id,
            embed=self.get_input_embeddings(),
            name="Document",
        )


class ClaraQwen3ForCausalLM(AnsweringMixin, ClaraQwen3PreTrainedModel, GenerationMixin):
    """The backbone with Qwen3's language-model head."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: ClaraQwen3Config) -> None:
        super().__init__(config)
        self.model = ClaraQwen3Model(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_qwen_pretrained(
        cls, source: str, *, revision: str | None = None, dtype: str | torch.dtype = "auto", **config_kwargs: Any
    ) -> "ClaraQwen3ForCausalLM":
        """A pretrained Qwen3 with new roles and new tokens; no weight is copied twice.

        Args:
            source: repository id or folder of a dense Qwen3 checkpoint of any size.
            revision: branch, tag or commit of it.
            dtype: of the language model; "auto" takes the source's.
            config_kwargs: further values of `ClaraQwen3Config`.

        Returns:
            The model, whose generator is the source until it is trained.

        Raises:
            ValueError: another kind of model, a quantised one, files or tensors missing or damaged, or too few unused
                rows in the vocabulary for the new tokens.
        """
        commit = commit_of(source, revision or "main")
        stock = read_language_config(source, commit, ("qwen3",))
        base = {"language": {"repo_id": source, "revision": commit}} if commit else None
        config = cls.config_class(text_config=stock.to_dict(), base_models=base, **config_kwargs)
        tensors = read_language_tensors(source, stock, revision=commit, dtype=dtype)
        tensors = {
            f"model.language_{name}" if name.startswith("model.") else name: tensor for name, tensor in tensors.items()
        }
        model = load_part(cls, config, tensors, part="language", name=source, new=cls.graft_modules)
        config.dtype = model.dtype
        model.generation_config = read_generation_config(source, commit, stock)
        return model.eval()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        document_input_ids: torch.LongTensor | None = None,
        memory: Sequence[torch.Tensor] | torch.Tensor | None = None,
        query_input_ids: torch.LongTensor | None = None,
        candidates: torch.Tensor | None = None,
        top_k: int | None = None,
        memory_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        role: str | None = "generator",
        **kwargs: Any,
    ) -> ClaraCausalLMOutputWithPast:
        """Backbone, head and loss.

        Args:
            labels: (B, S), -100 where nothing is learned; shifted inside.
            logits_to_keep: keep the last n positions (0: all), or the positions of a 1-D index tensor.
            (the rest): see `ClaraQwen3Model.forward`.

        Returns:
            `logits` (B, kept, V), None without prompts, and with labels `loss`, the cross-entropy.
        """
        outputs = self.model(
            input_ids=input_ids,
            document_input_ids=document_input_ids,
            memory=memory,
            query_input_ids=query_input_ids,
            candidates=candidates,
            top_k=top_k,
            memory_embeds=memory_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            role=role,
            return_dict=True,
            **kwargs,
        )
        loss = logits = None
        if outputs.last_hidden_state is not None:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        if labels is not None:
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)
        return ClaraCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            memory=outputs.memory,
            alignment_loss=outputs.alignment_loss,
            retrieval_scores=outputs.retrieval_scores,
            retrieved=outputs.retrieved,
        )

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        *args: Any,
        document_input_ids: torch.LongTensor | None = None,
        memory: Sequence[torch.Tensor] | torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As transformers' `generate`, from documents or their latents, which are compressed once.

        Args:
            document_input_ids, memory: see `ClaraQwen3Model.forward`; behind a cache that is continued, those of the
                new part alone.

        Raises:
            ValueError: documents in both forms; placeholders and latents that differ in number.
        """
        if document_input_ids is not None and memory is not None:
            raise ValueError("Give documents once: `document_input_ids`, or `memory`, and not both.")
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if document_input_ids is not None:
            with torch.no_grad():
                memory, _ = self.model.compress_ids(document_input_ids)
        cache = kwargs.get("past_key_values")
        seen = 0 if cache is None else int(cache.get_seq_length())
        embeds = kwargs.get("inputs_embeds")
        places = ids[:, seen:] if embeds is None else None
        new = self.get_input_embeddings()(places) if embeds is None else embeds
        if memory is not None or bool(self.model.placeholders(places, new).any()):
            latents = [new.new_empty(0, new.shape[-1])] if memory is None else list(memory)
            placed = self.model.place(latents, places, new)
            kwargs["memory_embeds"] = functional.pad(placed, (0, 0, seen, 0))
        return super().generate(inputs, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.LongTensor,
        *args: Any,
        memory_embeds: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As transformers', with the latents of the tokens that are new to the cache."""
        prepared = super().prepare_inputs_for_generation(input_ids, *args, past_key_values=past_key_values, **kwargs)
        if memory_embeds is not None:
            embeds = prepared.get("inputs_embeds")
            length = (prepared["input_ids"] if embeds is None else embeds).shape[1]
            seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            if seen < memory_embeds.shape[1]:
                piece = memory_embeds[:, seen : seen + length]
                prepared["memory_embeds"] = functional.pad(piece, (0, 0, 0, length - piece.shape[1]))
        return prepared

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """As transformers', but never below the memory tokens, which have their places in the vocabulary.

        Raises:
            ValueError: fewer rows than that.
        """
        needed = self.config.separator_token_id + self.config.num_new_embeddings
        if new_num_tokens is not None and new_num_tokens < needed:
            raise ValueError(
                f"There are memory tokens up to id {needed - 1}, and {new_num_tokens} rows would cut "
                f"{needed - new_num_tokens} of them off. The vocabulary need not be resized for them."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)


__all__ = [
    "ClaraCausalLMOutputWithPast",
    "ClaraModelOutputWithPast",
    "ClaraQwen3ForCausalLM",
    "ClaraQwen3Model",
    "ClaraQwen3PreTrainedModel",
]
