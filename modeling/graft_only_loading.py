"""Repositories that hold the trained new parts alone and name the base checkpoints they were grafted onto.

A connector of 82 million parameters instead of a model of 8.7 billion: `from_pretrained` fetches the bases at the
commits that the configuration records, assembles them, and puts the stored parts in place.
"""

from typing import Any

from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.utils import cached_file

from .strict_loading import hub_arguments

# What a base may not differ in: names of the towers' and the language models' configurations.
SHAPES = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "depth",
    "out_hidden_size",
    "vocab_size",
    "architecture",
)
UNSUPPORTED = (
    "device_map",
    "quantization_config",
    "distributed_config",
    "tp_plan",
    "tp_size",
    "max_memory",
    "offload_folder",
    "state_dict",
)


class GraftOnlyLoadingMixin:
    """Put before `PreTrainedModel`; a subclass says how bases are assembled and which modules are the graft.

    Attributes:
        graft_modules: names of the modules that a graft-only repository stores, wherever in the backbone they are.
    """

    graft_modules: tuple[str, ...] = ()

    @classmethod
    def is_new(cls, name: str) -> bool:
        """Whether a parameter belongs to what the graft adds, by its name in the model or the backbone."""
        return not set(cls.graft_modules).isdisjoint(name.split("."))

    @classmethod
    def is_stored(cls, name: str, config: Any) -> bool:
        """Whether a graft-only repository with this configuration holds a parameter."""
        return cls.is_new(name)

    @classmethod
    def assemble_bases(cls, config: Any, dtype: Any) -> Any:
        """The model with a head, assembled from `config.base_models`, its graft still random."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *model_args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """As `PreTrainedModel.from_pretrained`; a graft-only repository is assembled first.

        Raises:
            ValueError: the bases do not fit the stored graft, or an argument that a graft-only repository cannot take.
        """
        hub = hub_arguments(kwargs)
        stored = config or cls.config_class.from_pretrained(pretrained_model_name_or_path, **hub)
        if not stored.graft_only:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if refused := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
            raise ValueError(
                f"{pretrained_model_name_or_path!r} holds a graft alone and is assembled in memory, which cannot take "
                f"{', '.join(refused)}. Load it without, `save_pretrained` the whole, and load that."
            )
        model = cls.assemble_bases(stored, kwargs.get("dtype") or "auto")
        _check_fit(pretrained_model_name_or_path, stored, model.config)
        tensors = load_file(cached_file(pretrained_model_name_or_path, "model.safetensors", **hub))
        expected = {name for name in model.state_dict() if model.is_stored(name, stored)}
        try:
            if differing := sorted(expected ^ tensors.keys()):
                raise RuntimeError(f"{len(differing)} tensors are missing or too many: {', '.join(differing[:5])}.")
            model.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise ValueError(f"The graft at {pretrained_model_name_or_path!r} is not whole: {error}") from error
        model.generation_config = GenerationConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        # Auto classes move the argument into the configuration.
        if attention := kwargs.get("attn_implementation") or stored._attn_implementation:
            model.set_attn_implementation(attention)
        model = model if isinstance(model, cls) else model.base_model
        info = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return (model, info) if kwargs.get("output_loading_info") else model


def _check_fit(name: Any, stored: Any, assembled: Any) -> None:
    """The graft was trained between two widths; bases of others are not its bases."""
    for part in stored.base_parts:
        key = {"language": "text_config"}.get(part, f"{part}_config")
        ours, theirs = getattr(stored, key).to_dict(), getattr(assembled, key).to_dict()
        for value in SHAPES:
            if ours.get(value) != theirs.get(value):
                raise ValueError(
                    f"The graft {name!r} and its {part} base {stored.base_models[part]['repo_id']!r} do not fit: "
                    f"{value} is {ours.get(value)} in the graft's configuration and {theirs.get(value)} in the base."
                )


__all__ = ["GraftOnlyLoadingMixin"]
