"""From a model in memory to a published repository: export, clean-room check, model card, push.

    from qwen_grafts.hub_cards import export_preset, push_repository, verify

Names are resolved on first use, so that the command line can show its help without importing torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "CleanRoomError": "clean_room",
    "CleanRoomReport": "clean_room",
    "PublishError": "publishing",
    "build_adapter_card": "cards",
    "build_card": "cards",
    "export_preset": "exporter",
    "export_repository": "exporter",
    "loss_curve_figure": "cards",
    "parameter_table": "graft_parts",
    "push_repository": "publishing",
    "verify": "clean_room",
    "write_card": "workflows",
    "set_adapter_base": "workflows",
    "export_role": "role_adapters",
    "graft_clara": "workflows",
    "graft_perceiver_vlm": "workflows",
    "graft_recursive": "workflows",
    "graft_vision_bridge": "workflows",
    "load_role": "role_adapters",
    "finish_run": "workflows",
    "export_folder": "workflows",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
