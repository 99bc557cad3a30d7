"""`qwen-grafts inference`: a recursive model's answer as it is written, each token coloured by how long it took.

The depth of a token is that of the pass that chose it: the cycles that the position before it took, the last one of the
prompt for the first token. The last token is never read, so it has no other depth.

    from qwen_grafts.inference import infer, load

    model, tokenizer = load("outputs/recursive-0.6b")
    answer = infer(model, tokenizer, "Why is the sky blue?", num_cycles=6, halt_threshold=0.9)
    print(answer.text, [(token.text, token.cycles) for token in answer.tokens])

With `rollouts` several answers are sampled, and the one that the halting head is surest of is kept.

Shapes: N answers, S tokens of prompt and answer.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from .modeling import RecursiveCache, RecursiveQwenForCausalLM

# Shallow to deep, in colours that every terminal has.
COLOURS = ("blue", "cyan", "green", "yellow", "red")


@dataclass(frozen=True)
class ChosenToken:
    """A token and what it took to choose it.

    Attributes:
        id: in the vocabulary.
        text: what it adds; empty for a special token, and while a character is not whole: it comes with its last byte.
        cycles: of the position before it.
    """

    id: int
    text: str
    cycles: int


@dataclass(frozen=True)
class Answer:
    """What was generated, the stop token included.

    Attributes:
        tokens: in order.
        num_cycles: the most that a token could take.
        adaptive: whether tokens could halt earlier.
        layer_evaluations: that choosing the tokens took.
        fixed_layer_evaluations: that it would have taken had none halted.
        confidences: of each sampled answer, how sure the halting head is of a token in the mean; this answer's is the
            greatest. Empty where there was nothing to choose among.
    """

    tokens: list[ChosenToken]
    num_cycles: int
    adaptive: bool
    layer_evaluations: int
    fixed_layer_evaluations: int
    confidences: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The answer without special tokens."""
        return "".join(token.text for token in self.tokens)

    @property
    def mean_cycles(self) -> float:
        """Of the tokens."""
        return sum(token.cycles for token in self.tokens) / len(self.tokens)


class DepthStreamer(BaseStreamer):
    """Collects the tokens that `generate` writes, one row of them, each with the depth at which it was chosen.

    Args:
        tokenizer: of the model.
        cache: the one that `generate` is given.
        num_cycles: depth of tokens that cannot halt.
        on_token: called with each token, and once more with the last if it left a character unfinished.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        cache: RecursiveCache,
        num_cycles: int,
        on_token: Callable[[ChosenToken], None],
    ) -> None:
        self.tokenizer, self.cache, self.num_cycles, self.on_token = tokenizer, cache, num_cycles, on_token
        self.tokens: list[ChosenToken] = []
        self.waiting: list[int] = []
        self.prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """The prompt at first, then a token a call."""
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        for token in value.flatten().tolist():
            self._add(token, self._cycles(0, -1))

    def replay(self, row: int, start: int, tokens: list[int]) -> None:
        """All tokens of one answer, after `generate` wrote several.

        Args:
            row: of the cache.
            start: position of the first token.
            tokens: the answer.
        """
        for position, token in enumerate(tokens, start=start):
            self._add(token, self._cycles(row, position - 1))
        self.end()

    def end(self) -> None:
        """What is left of a character that never became whole belongs to the last token."""
        if self.waiting and self.tokens:
            last = self.tokens.pop()
            self._take(ChosenToken(last.id, self._decode(), last.cycles))

    def _cycles(self, row: int, position: int) -> int:
        used = self.cache.cycles_used
        return self.num_cycles if used is None else int(used[row, position])

    def _add(self, token: int, cycles: int) -> None:
        self.waiting.append(token)
        text = self._decode()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            text = ""  # some bytes of a character are still to come
        else:
            self.waiting = []
        self._take(ChosenToken(token, text, cycles))

    def _decode(self) -> str:
        return self.tokenizer.decode(self.waiting, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _take(self, token: ChosenToken) -> None:
        self.tokens.append(token)
        self.on_token(token)


def load(repository: str) -> tuple[RecursiveQwenForCausalLM, PreTrainedTokenizerBase]:
    """A recursive model and its tokenizer, on a GPU if there is one.

    Args:
        repository: id or folder.

    Raises:
        ValueError: another kind of model.
    """
    config = AutoConfig.from_pretrained(repository, trust_remote_code=True)
    if config.model_type != RecursiveQwenForCausalLM.config_class.model_type:
        raise ValueError(
            f"{repository!r} holds a {config.model_type!r} model, whose tokens all take the same depth. Make a "
            "recursive one of a Qwen with `qwen-grafts graft recursive`; vision grafts answer to `qwen-grafts ask`."
        )
    model = RecursiveQwenForCausalLM.from_pretrained(repository, dtype="auto")
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), AutoTokenizer.from_pretrained(repository)


def infer(
    model: RecursiveQwenForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int = 256,
    num_cycles: int | None = None,
    L_cycles: int | None = None,
    halt_threshold: float | None = None,
    temperature: float = 0.0,
    rollouts: int = 1,
    raw: bool = False,
    on_token: Callable[[ChosenToken], None] = lambda token: None,
) -> Answer:
    """Generate, and say of each token how deep it was thought about.

    Args:
        prompt: a user's turn; with `raw`, or without a chat template, a text to go on with.
        max_new_tokens: most tokens.
        num_cycles, L_cycles, halt_threshold: depth, in place of the generation configuration's or the configuration's.
        temperature: of sampling; 0 takes the likeliest token.
        rollouts: how many answers are sampled, side by side; the one that the halting head is surest of is kept.
        on_token: called with each token as soon as it is chosen; see `DepthStreamer`. Of several answers, with the
            tokens of the one that is kept.

    Raises:
        ValueError: an empty prompt, a depth or threshold out of range, a negative temperature, fewer rollouts than one,
            or several without a temperature.
    """
    if rollouts < 1:
        raise ValueError(f"`rollouts` is {rollouts}; it is the number of answers to choose among, 1 or more.")
    if rollouts > 1 and not temperature:
        raise ValueError(
            f"`rollouts` is {rollouts}, and at temperature 0 all of the answers are the same. Give a `temperature` "
            "above 0, or leave `rollouts` out."
        )
    depth = {"num_cycles": num_cycles, "L_cycles": L_cycles, "halt_threshold": halt_threshold}
    given = {name: value for name, value in depth.items() if value is not None}
    most_cycles, steps = (_settled(model, name, depth[name]) for name in ("num_cycles", "L_cycles"))
    if not raw and tokenizer.chat_template:
        turn = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    if inputs["input_ids"].shape[1] == 0:
        raise ValueError("The prompt is empty; a text to go on with has at least one token.")
    cache = RecursiveCache()
    streamer = DepthStreamer(tokenizer, cache, most_cycles, on_token)
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    sequences_NS = model.generate(
        **inputs,
        **given,
        **sampling,
        max_new_tokens=max_new_tokens,
        num_return_sequences=rollouts,
        past_key_values=cache,
        streamer=streamer if rollouts == 1 else None,
    )
    confidences: list[float] = []
    if rollouts > 1:
        start = inputs["input_ids"].shape[1]
        stops = model.generation_config.eos_token_id
        answers = [_without_padding(row, stops) for row in sequences_NS[:, start:].tolist()]
        confidences = _confidences(model.at_depth(most_cycles, steps), sequences_NS, start, answers)
        kept = confidences.index(max(confidences))
        streamer.replay(kept, start, answers[kept])
    evaluations = [_layer_evaluations(model.config, token.cycles, most_cycles, steps) for token in streamer.tokens]
    most = model.config.layer_evaluations(most_cycles, steps)
    return Answer(
        tokens=streamer.tokens,
        num_cycles=most_cycles,
        adaptive=cache.cycles_used is not None,
        layer_evaluations=sum(evaluations),
        fixed_layer_evaluations=most * len(evaluations),
        confidences=confidences,
    )


def _settled(model: RecursiveQwenForCausalLM, name: str, given: int | None) -> int:
    """A depth as `generate` settles it: that of the call, else the generation configuration's, else the model's."""
    if given is not None:
        return given
    return getattr(model.generation_config, name, None) or getattr(model.config, name)


def _without_padding(tokens: list[int], eos_token_id: int | list[int] | None) -> list[int]:
    """An answer up to its stop token, behind which `generate` pads the shorter of several."""
    stops = {eos_token_id} if isinstance(eos_token_id, int) else set(eos_token_id or ())
    end = next((place for place, token in enumerate(tokens, start=1) if token in stops), len(tokens))
    return tokens[:end]


def _confidences(
    model: RecursiveQwenForCausalLM, sequences_NS: torch.Tensor, start: int, answers: list[list[int]]
) -> list[float]:
    """How sure the halting head is of a token of each answer, in the mean; `start` is where the answers begin."""
    sure_NS = model.confidence(sequences_NS)[:, start - 1 :]  # at each token, of the one that follows
    return [row[: len(answer)].mean().item() for row, answer in zip(sure_NS, answers, strict=True)]


def _layer_evaluations(config: Any, cycles: int, num_cycles: int, L_cycles: int) -> int:
    """Layers that a token passed which halted after some of its cycles."""
    runs = cycles * config.core_runs(num_cycles, L_cycles) // num_cycles
    return config.num_hidden_layers + (runs - 1) * config.L_layers


def colour(cycles: int, num_cycles: int) -> str:
    """The colour of a depth, from `COLOURS`."""
    return COLOURS[round((cycles - 1) / max(1, num_cycles - 1) * (len(COLOURS) - 1))]


def show_legend(answer: Answer, console: Console) -> None:
    """Print which colour is which depth, what halting saved and, of several answers, how sure the model is of each."""
    counts = sorted(Counter(token.cycles for token in answer.tokens).items())
    shares = [Text(f"{cycles}: {count:,}", style=colour(cycles, answer.num_cycles)) for cycles, count in counts]
    console.print(Text("Tokens by cycles  ").append_text(Text(", ").join(shares)), soft_wrap=True)
    evaluations, fixed = answer.layer_evaluations, answer.fixed_layer_evaluations
    cost = f"{evaluations:,} layer evaluations, all tokens at fixed depth"
    if answer.adaptive:
        cost = f"{evaluations:,} layer evaluations, {1 - evaluations / fixed:.0%} fewer than {fixed:,} at fixed depth"
    mean = f"mean cycles {answer.mean_cycles:.2f} of {answer.num_cycles}"
    console.print(f"{mean}; {cost}.", highlight=False, soft_wrap=True)
    if answer.confidences:
        sure = [f"{share:.3f}" for share in answer.confidences]
        sure[answer.confidences.index(max(answer.confidences))] += " (this one)"
        console.print(f"Confidence of {len(sure)} answers  {', '.join(sure)}", highlight=False, soft_wrap=True)


def inference(repository: str, prompt: str, *, console: Console, **options: Any) -> Answer:
    """Load, answer, print; returns the answer.

    Args:
        repository: id or folder of a recursive model.
        prompt: see `infer`, also for `options`.

    Raises:
        ValueError: another kind of model, or what `infer` refuses.
    """
    model, tokenizer = load(repository)
    most = _settled(model, "num_cycles", options.get("num_cycles"))

    def show(token: ChosenToken) -> None:
        console.print(Text(token.text, style=colour(token.cycles, most)), end="", soft_wrap=True)

    answer = infer(model, tokenizer, prompt, on_token=show, **options)
    console.print("\n")
    show_legend(answer, console)
    return answer
