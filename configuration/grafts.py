"""The table of grafts: which classes a `model_type` publishes, and in which file of the package each lives.

Everything that has to know "which code belongs to this model" reads it here: Auto-class registration, the exporter,
saving, the command line.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Graft:
    """One architecture.

    Attributes:
        model_type: `config.model_type`.
        auto_classes: Auto class -> "package.module.Class" below `qwen_grafts`. The base model stands under
            `AutoModel`; TRL looks for `AutoModelForImageTextToText`, PEFT's auto class for `AutoModelForCausalLM`.
        pipeline_tag: the Hub's task name.
    """

    model_type: str
    auto_classes: dict[str, str]
    pipeline_tag: str
    tags: tuple[str, ...] = field(default=())

    @property
    def has_processor(self) -> bool:
        """Whether it has a processor; where it has none, a tokenizer takes its place."""
        return "AutoProcessor" in self.auto_classes

    @property
    def reads_images(self) -> bool:
        """Whether its processor takes images."""
        return "AutoModelForImageTextToText" in self.auto_classes

    @property
    def reads_documents(self) -> bool:
        """Whether its processor takes documents beside a question."""
        return self.has_processor and not self.reads_images

    @property
    def auto_map(self) -> dict[str, str]:
        """`auto_map` of a flat repository: Auto class -> "module.Class"."""
        return {auto: ".".join(path.split(".")[-2:]) for auto, path in self.auto_classes.items()}

    @property
    def modules(self) -> list[str]:
        """Modules, relative to the package, whose import closure is the code set; first one first."""
        return list(dict.fromkeys(path.rsplit(".", 1)[0] for path in self.auto_classes.values()))


GRAFTS: dict[str, Graft] = {
    graft.model_type: graft
    for graft in (
        Graft(
            model_type="qwen3_perceiver",
            auto_classes={
                "AutoConfig": "configuration.configuration_qwen3_perceiver.Qwen3PerceiverConfig",
                "AutoModel": "modeling.modeling_qwen3_perceiver.Qwen3PerceiverModel",
                "AutoModelForCausalLM": "modeling.modeling_qwen3_perceiver.Qwen3PerceiverVLM",
                "AutoModelForImageTextToText": "modeling.modeling_qwen3_perceiver.Qwen3PerceiverVLM",
                "AutoProcessor": "processing.processing_qwen3_perceiver.Qwen3PerceiverProcessor",
            },
            pipeline_tag="image-text-to-text",
            tags=("qwen3", "siglip2", "perceiver", "vision-language"),
        ),
        Graft(
            model_type="qwen3_vision_bridge",
            auto_classes={
                "AutoConfig": "configuration.configuration_qwen3_vision_bridge.Qwen3VisionBridgeConfig",
                "AutoModel": "modeling.modeling_qwen3_vision_bridge.Qwen3VisionBridgeModel",
                "AutoModelForCausalLM": "modeling.modeling_qwen3_vision_bridge.Qwen3VisionBridgeForCausalLM",
                "AutoModelForImageTextToText": "modeling.modeling_qwen3_vision_bridge.Qwen3VisionBridgeForCausalLM",
                "AutoProcessor": "processing.processing_qwen3_vision_bridge.Qwen3VisionBridgeProcessor",
            },
            pipeline_tag="image-text-to-text",
            tags=("qwen3", "qwen2.5-vl", "vision-language", "thinking"),
        ),
        Graft(
            model_type="recursive_qwen",
            auto_classes={
                "AutoConfig": "configuration.configuration_recursive_qwen.RecursiveQwenConfig",
                "AutoModel": "modeling.modeling_recursive_qwen.RecursiveQwenModel",
                "AutoModelForCausalLM": "modeling.modeling_recursive_qwen.RecursiveQwenForCausalLM",
            },
            pipeline_tag="text-generation",
            tags=("recursive", "recurrent-depth", "adaptive-computation"),
        ),
        Graft(
            model_type="clara_qwen3",
            auto_classes={
                "AutoConfig": "configuration.configuration_clara_qwen3.ClaraQwen3Config",
                "AutoModel": "modeling.modeling_clara_qwen3.ClaraQwen3Model",
                "AutoModelForCausalLM": "modeling.modeling_clara_qwen3.ClaraQwen3ForCausalLM",
                "AutoProcessor": "processing.processing_clara_qwen3.ClaraQwen3Processor",
            },
            pipeline_tag="text-generation",
            tags=("qwen3", "clara", "retrieval", "rag", "document-compression"),
        ),
    )
}
