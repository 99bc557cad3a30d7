"""Loading that never invents and never drops a weight without a word."""

from collections.abc import Mapping
from typing import Any

_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


def hub_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Of the arguments of `from_pretrained`, those that say where a configuration or another file is to be found."""
    return {name: arguments[name] for name in _HUB_ARGUMENTS if arguments.get(name) is not None}


class StrictLoadingMixin:
    """Put before `PreTrainedModel`: `from_pretrained` raises where stock transformers warns.

    A checkpoint that lacks a tensor would otherwise come up with random numbers in its place, one with a tensor too
    many would lose it, and of a tensor of another shape the error would not tell the name.
    `ignore_mismatched_sizes=True` asks for new tensors on purpose and switches the check off.
    """

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: Any,
        *model_args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: tensors are missing from the checkpoint or have another shape, or the checkpoint holds tensors
                with no place to go.
        """
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *model_args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
        if not ignore_mismatched_sizes:
            # The backbone of a checkpoint with a head leaves the head aside: that is what was asked for.
            unexpected = [key for key in info["unexpected_keys"] if model.can_generate() or "lm_head" not in key]
            mismatched = [
                f"{key} {list(theirs)} (the model has {list(ours)})" for key, theirs, ours in info["mismatched_keys"]
            ]
            problems = [
                f"{len(keys)} {what}: {', '.join(sorted(keys)[:5])}{', …' if len(keys) > 5 else ''}"
                for what, keys in (
                    ("missing", info["missing_keys"]),
                    ("unexpected", unexpected),
                    ("of another shape", mismatched),
                )
                if keys
            ]
            if problems:
                raise ValueError(
                    f"The weights at {pretrained_model_name_or_path!r} do not fit {cls.__name__}: "
                    f"{'; '.join(problems)}. Nothing was loaded. Download or save the checkpoint again, or pass "
                    "`ignore_mismatched_sizes=True` to start the missing tensors from random values."
                )
        return (model, info) if output_loading_info else model


__all__ = ["StrictLoadingMixin", "hub_arguments"]
