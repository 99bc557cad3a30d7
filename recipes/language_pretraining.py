"""Stage 0: a small Qwen3 that learns to answer questions about a scene from its description in words.

It replaces the pretrained Qwen3 checkpoint where none can be downloaded. Afterwards it is frozen: what is grafted on
must make the image read like the description.
"""

import random
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed
from trl import SFTConfig

from ..processing import load_chat_template
from .graft_trainer import GraftSFTTrainer
from .thinking_data import TEMPLATE_COLUMN

MOST_REPEATED_WORDS = 6


def described(dataset: Dataset) -> Dataset:
    """The rows with the image's place taken by its description: what stage 0 reads."""
    return Dataset.from_dict(
        {
            "prompt": [
                _about(description, prompt)
                for description, prompt in zip(dataset["description"], dataset["prompt"], strict=True)
            ],
            "completion": list(dataset["completion"]),
        }
    )


def described_for_thinking(dataset: Dataset, seed: int) -> Dataset:
    """The same for a hybrid model: thinking is switched on for one half of the rows and off for the other.

    The words of a description stand in any order and some of them more than once, so that the model learns to look for
    a colour or a shape and not for the word that follows another. Soft tokens have no word order, and there are as many
    as an image has patches: a model that thinks by copying word after word could not think about them.

    Args:
        dataset: rows whose answers begin with a thought.
        seed: of the halves and of the order of words.
    """
    rng = random.Random(seed)
    prompts = []
    for description, prompt in zip(dataset["description"], dataset["prompt"], strict=True):
        words = description.split()
        words += rng.choices(words, k=rng.randint(0, MOST_REPEATED_WORDS))
        rng.shuffle(words)
        prompts.append(_about(" ".join(words), prompt))
    return Dataset.from_dict(
        {
            "prompt": prompts,
            "completion": list(dataset["completion"]),
            TEMPLATE_COLUMN: [{"enable_thinking": rng.random() < 0.5} for _ in prompts],
        }
    )


def _about(description: str, prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"<|vision_start|>{description}<|vision_end|>{prompt[0]['content']}"}]


def pretraining_config(output_dir: Path, **settings: Any) -> SFTConfig:
    """How stage 0 trains a small model from nothing on a CPU."""
    return SFTConfig(
        output_dir=str(output_dir),
        lr_scheduler_type="cosine",
        logging_steps=20,
        save_strategy="no",
        report_to=[],
        bf16=False,
        gradient_checkpointing=False,
        **settings,
    )


def pretrain_language_model(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerFast,
    config: Qwen3Config,
    output_dir: Path,
    *,
    epochs: float = 1.0,
    learning_rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> Qwen3ForCausalLM:
    """Train a Qwen3 from nothing on described scenes; saves model and tokenizer to `output_dir`.

    Args:
        dataset: described rows of `recipes.visual_tasks`.
        config: of the language model; its vocabulary must hold the tokenizer's ids.
    """
    set_seed(seed)
    model = Qwen3ForCausalLM(config)
    tokenizer.chat_template = load_chat_template()
    stop_ids = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=stop_ids, pad_token_id=tokenizer.pad_token_id)
    trainer = GraftSFTTrainer(
        model=model,
        args=pretraining_config(
            output_dir,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=20,
            seed=seed,
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return model.eval()
