"""A token budget for thoughts: when it is spent, the thought is closed and the answer begins.

The rule reads nothing but the tokens so far, so it holds for greedy search, sampling and beams, for batches padded on
the left, with a cache and without. In each row, after the last `<|im_start|>`:

- Inside an open thought of N tokens or more, the next tokens are a line break, unless there is one, and `</think>`.
- After such a `</think>` comes the blank line that Qwen3 writes there. Then the model is on its own again.

A model that closes its thought in time never notices.

Legend: B rows of the batch, S tokens so far, V vocabulary.
"""

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

_CLOSING = "\n</think>\n\n"


class ThinkingBudget(LogitsProcessor):
    """Closes thoughts that grow past a number of tokens.

        model.generate(**inputs, logits_processor=[ThinkingBudget.from_tokenizer(tokenizer, 256)])

    Tokens count from `<think>` on, those that the prompt wrote included. A new thought in the same turn has the whole
    budget again.

    Args:
        max_thinking_tokens: tokens a thought may have; 0 closes it at once.
        turn_id: id of `<|im_start|>`.
        open_id: id of `<think>`.
        close_id: id of `</think>`.
        break_id: id of the line break before `</think>`.
        blank_ids: ids of the blank line after it.

    Raises:
        ValueError: a negative budget.
    """

    def __init__(
        self,
        max_thinking_tokens: int,
        *,
        turn_id: int,
        open_id: int,
        close_id: int,
        break_id: int,
        blank_ids: list[int],
    ) -> None:
        if max_thinking_tokens < 0:
            raise ValueError(
                f"`max_thinking_tokens` must be at least 0, got {max_thinking_tokens}. 0 closes a thought at once; "
                "without a budget a thought is as long as `max_new_tokens` lets it be."
            )
        self.max_thinking_tokens = max_thinking_tokens
        self.turn_id, self.open_id, self.close_id = turn_id, open_id, close_id
        self.break_id, self.blank_ids = break_id, blank_ids

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, max_thinking_tokens: int) -> "ThinkingBudget":
        """A budget with the ids of a Qwen3 tokenizer.

        Raises:
            ValueError: a negative budget, or a tokenizer that lacks `<|im_start|>`, `<think>` or `</think>` as one
                token each.
        """
        ids = {}
        for token in ("<|im_start|>", "<think>", "</think>"):
            pieces = tokenizer.encode(token, add_special_tokens=False)
            if len(pieces) != 1:
                raise ValueError(
                    f"The tokenizer splits {token!r} into {len(pieces)} tokens; a thinking budget needs it as one. Use "
                    "the tokenizer of a Qwen3 model that thinks."
                )
            ids[token] = pieces[0]
        break_id, close_id, *blank_ids = tokenizer.encode(_CLOSING, add_special_tokens=False)
        assert close_id == ids["</think>"], "a line break is one token of a byte-level tokenizer"
        return cls(
            max_thinking_tokens,
            turn_id=ids["<|im_start|>"],
            open_id=ids["<think>"],
            close_id=close_id,
            break_id=break_id,
            blank_ids=blank_ids,
        )

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leave one token to the rows that have to write it: (B, S), (B, V) to (B, V)."""
        spent_B = self._thought_length(input_ids) >= self.max_thinking_tokens
        closes_B = _ends_with(input_ids, [self.break_id]) | (scores.argmax(-1) == self.close_id)
        forced_B = torch.where(closes_B, self.close_id, self.break_id).masked_fill(~spent_B, -1)
        for written, token_id in enumerate(self.blank_ids):
            closing = [self.break_id, self.close_id, *self.blank_ids[:written]]
            before_BS = input_ids[:, : max(input_ids.shape[1] - written - 1, 0)]
            due_B = _ends_with(input_ids, closing) & (self._thought_length(before_BS) >= self.max_thinking_tokens)
            forced_B = forced_B.masked_fill(due_B, token_id)
        only_BV = torch.full_like(scores, -float("inf")).scatter(1, forced_B.clamp(min=0)[:, None], 0.0)
        return torch.where((forced_B >= 0)[:, None], only_BV, scores)

    def _thought_length(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """(B,): tokens in the thought that is open at the end of each row, -1 where none is."""
        # After the last `</think>` or the start of the turn, the first `<think>` opens; more of them open nothing.
        bounds_BS = (ids_BS == self.turn_id) | (ids_BS == self.close_id)
        since_BS = bounds_BS.flip(-1).cumsum(-1).flip(-1) == 0
        opened_BS = ((ids_BS == self.open_id) & since_BS).cumsum(-1) > 0
        return opened_BS.sum(-1) - 1


def _ends_with(ids_BS: torch.Tensor, ending: list[int]) -> torch.Tensor:
    """(B,): whether the row ends in these ids."""
    if ids_BS.shape[1] < len(ending):
        return torch.zeros(len(ids_BS), dtype=torch.bool, device=ids_BS.device)
    return (ids_BS[:, -len(ending) :] == ids_BS.new_tensor(ending)).all(-1)


__all__ = ["ThinkingBudget"]
