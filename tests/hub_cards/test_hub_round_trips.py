"""What stands on other repositories goes to the Hub and comes back: graft-only repositories, adapters, trainers."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopback_hub import LoopbackHub, run_script

# What differs between the grafts; every script below starts with one of these.
VISION_GRAFTS = {
    "perceiver": """
PRESET, PART, BACKBONE = "perceiver-vlm-tiny", "connector", "Qwen3PerceiverModel"

def push_vision(config):
    from transformers import SiglipImageProcessor, SiglipVisionModel
    SiglipVisionModel(config.vision_config).push_to_hub("tester/vision")
    SiglipImageProcessor(size={"height": 32, "width": 32}).push_to_hub("tester/vision")

def graft(out):
    from qwen_grafts.hub_cards import graft_perceiver_vlm
    connector = '{"num_latents": 8, "num_heads": 2, "head_dim": 32}'
    graft_perceiver_vlm("tester/vision", "tester/language", out, connector=connector)

def inputs(config, rows):
    import torch
    ids = torch.arange(40)[None].repeat(rows, 1)
    ids[:, 5:13] = config.image_token_id
    return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
""",
    "vision-bridge": """
PRESET, PART, BACKBONE = "vision-bridge-tiny", "adapter", "Qwen3VisionBridgeModel"

def push_vision(config):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
    text = {"hidden_size": 192, "intermediate_size": 72, "num_hidden_layers": 1, "num_attention_heads": 6}
    text |= {"num_key_value_heads": 1, "vocab_size": 200, "rope_parameters": rope}
    config = Qwen2_5_VLConfig(vision_config=config.vision_config.to_dict(), text_config=text)
    Qwen2_5_VLForConditionalGeneration(config).push_to_hub("tester/vision", max_shard_size="500KB")
    Qwen2VLImageProcessor(patch_size=8).push_to_hub("tester/vision")

def graft(out):
    from qwen_grafts.hub_cards import graft_vision_bridge
    graft_vision_bridge("tester/vision", "tester/language", out)

def inputs(config, rows):
    import torch
    ids = torch.arange(40)[None].repeat(rows, 1)
    ids[:, 5:11] = config.image_token_id
    pixels = torch.randn(rows * 24, 384, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": torch.tensor([[1, 4, 6]] * rows)}
""",
}

GRAFTS = VISION_GRAFTS | {
    "clara": """
PRESET, PART = "clara-tiny", "norm"

def inputs(config, rows):
    import torch
    passage = torch.cat([torch.arange(30), torch.tensor(config.memory_token_ids())])[None].repeat(rows, 1)
    ids = torch.arange(40)[None].repeat(rows, 1)
    ids[:, 5:13] = config.document_token_id
    return {"input_ids": ids, "document_input_ids": passage}
""",
    "recursive": """
PRESET, PART = "recursive-tiny", "recurrence"

def inputs(config, rows):
    import torch
    return {"input_ids": torch.arange(40)[None].repeat(rows, 1)}
""",
}

# Two base checkpoints on the Hub, as anyone would publish them.
PUSH_BASES = """
import torch
from transformers import Qwen3ForCausalLM
from qwen_grafts.configuration import preset_config
from qwen_grafts.processing import build_qwen_tokenizer
torch.manual_seed(3)
config = preset_config(PRESET)
push_vision(config)
Qwen3ForCausalLM(config.text_config).push_to_hub("tester/language")
build_qwen_tokenizer(486).push_to_hub("tester/language")
"""
GRAFT = """
from pathlib import Path
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
from qwen_grafts.hub_cards import export_folder, export_repository, push_repository
whole, small = Path("whole"), Path("graft")
graft(whole)
bases = AutoConfig.from_pretrained(whole).base_models
assert bases["vision"]["repo_id"] == "tester/vision" and bases["language"]["repo_id"] == "tester/language"
assert all(len(base["revision"]) == 40 for base in bases.values())
export_folder(whole, small, graft_only=True)
with safe_open(small / "model.safetensors", "pt") as file:
    assert all(name.startswith(f"model.{PART}.") for name in file.keys())
push_repository(small, "tester/graft-only")
model, processor = AutoModelForCausalLM.from_pretrained(whole), AutoProcessor.from_pretrained(whole)
model.model.language_model.norm.weight.data.mul_(2)
try:
    export_repository(model, processor, "changed", graft_only=True)
except ValueError as error:
    print(error)
assert not Path("changed").exists()
"""
# A later commit to a base must not change what was grafted onto the earlier one.
MOVE_BASE = """
from transformers import Qwen3ForCausalLM
model = Qwen3ForCausalLM.from_pretrained("tester/language")
model.model.norm.weight.data.mul_(3)
model.push_to_hub("tester/language")
"""
COMPARE = """
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
assert "qwen_grafts" not in sys.modules
whole = AutoModelForCausalLM.from_pretrained("whole", trust_remote_code=True)
small = AutoModelForCausalLM.from_pretrained("tester/graft-only", trust_remote_code=True)
AutoProcessor.from_pretrained("tester/graft-only", trust_remote_code=True)
batch = inputs(whole.config, 2)
assert torch.equal(whole(**batch).logits, small(**batch).logits)
eos = small.generation_config.eos_token_id, whole.generation_config.eos_token_id
assert eos == ([488, 486], [488, 486]), eos
eager = AutoModelForCausalLM.from_pretrained("tester/graft-only", trust_remote_code=True, attn_implementation="eager")
assert eager.model.language_model.config._attn_implementation == "eager"
assert eager.model.vision_tower.config._attn_implementation == "eager"
backbone = AutoModel.from_pretrained("tester/graft-only", trust_remote_code=True)
assert type(backbone).__name__ == BACKBONE
small.save_pretrained("again")
again = AutoModelForCausalLM.from_pretrained("again", trust_remote_code=True)
assert torch.equal(again(**batch).logits, small(**batch).logits)
try:
    AutoModelForCausalLM.from_pretrained("tester/graft-only", trust_remote_code=True, device_map="cpu")
except ValueError as error:
    print(error)
"""
OTHER_BASE = """
import json
from pathlib import Path
from transformers import AutoModelForCausalLM, Qwen3ForCausalLM
from qwen_grafts.configuration.presets import tiny_qwen3_text_config
Qwen3ForCausalLM(tiny_qwen3_text_config(hidden_size=192)).push_to_hub("tester/wider")
config = json.loads(Path("graft/config.json").read_text())
config["base_models"]["language"] = {"repo_id": "tester/wider", "revision": "main"}
Path("graft/config.json").write_text(json.dumps(config))
try:
    AutoModelForCausalLM.from_pretrained("graft", trust_remote_code=True)
except ValueError as error:
    print(error)
"""
ADAPTER = """
import torch
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from qwen_grafts.hub_cards import export_preset, push_repository, set_adapter_base, write_card
base = export_preset(PRESET, "base")
push_repository(base, "tester/base", verify_first=False)
torch.manual_seed(1)
model = get_peft_model(
    AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True),
    LoraConfig(
        target_modules=r".*(language_model|layers).*(q_proj|v_proj)", modules_to_save=[PART], task_type="CAUSAL_LM"
    ),
)
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.05)
model.save_pretrained("adapter")
torch.save(model.eval()(**inputs(model.config, 1)).logits.detach(), "logits.pt")
try:
    write_card(Path("adapter"), repo_id="tester/adapter")
except ValueError as error:
    print(error)
set_adapter_base(Path("adapter"), "tester/base")
write_card(Path("adapter"), repo_id="tester/adapter")
push_repository("adapter", "tester/adapter")
"""
LOAD_ADAPTER = """
import sys
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM
assert "qwen_grafts" not in sys.modules
wanted = torch.load("logits.pt")
for auto_class in (AutoPeftModelForCausalLM, AutoModelForCausalLM):
    model = auto_class.from_pretrained("tester/adapter", trust_remote_code=True).eval()
    torch.testing.assert_close(model(**inputs(model.config, 1)).logits, wanted)
merged = AutoPeftModelForCausalLM.from_pretrained("tester/adapter", trust_remote_code=True).merge_and_unload()
merged.push_to_hub("tester/merged")
merged = AutoModelForCausalLM.from_pretrained("tester/merged", trust_remote_code=True).eval()
torch.testing.assert_close(merged(**inputs(merged.config, 1)).logits, wanted, atol=1e-5, rtol=0)
"""
# transformers' own `push_to_hub`, from the package's classes and again from remote ones.
PUSH_PLAIN = """
from qwen_grafts.hub_cards import export_preset
from transformers import AutoModelForCausalLM, AutoProcessor
export_preset(PRESET, "tiny")
AutoModelForCausalLM.from_pretrained("tiny").push_to_hub("tester/plain")
AutoProcessor.from_pretrained("tiny").push_to_hub("tester/plain")
"""
PUSH_AGAIN = """
import sys
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor
assert "qwen_grafts" not in sys.modules
ids = torch.arange(40)[None]
first, source = None, "tester/plain"
for round in range(3):
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    AutoModel.from_pretrained(source, trust_remote_code=True)
    logits = model(input_ids=ids).logits
    first = logits if first is None else first
    assert torch.equal(logits, first)
    assert type(model).__module__.startswith("transformers_modules.tester."), type(model).__module__
    source = f"tester/round{round}"
    model.push_to_hub(source)
    processor.push_to_hub(source)
"""
TRAIN_AND_PUSH = """
from qwen_grafts.recipes.graft_sft import main, parse
from pathlib import Path
import qwen_grafts.recipes.perceiver_vlm as recipes
words = {
    "config": Path(recipes.__file__).with_name("tiny.yaml"), "trainable": PART,
    "model_name_or_path": "tiny", "output_dir": "run",
    "task": "shapes", "task_shapes": 4, "max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "no",
    "generative_eval_rows": 0, "push_to_hub": True, "hub_model_id": "tester/trained",
}
main(*parse([word for name, value in words.items() for word in (f"--{name}", str(value))]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("graft", VISION_GRAFTS.values(), ids=VISION_GRAFTS)
def test_graft_only_is_assembled_from_the_commits_it_was_grafted_onto(
    graft: str, hub: LoopbackHub, tmp_path: Path
) -> None:
    message = run_script(graft + PUSH_BASES + GRAFT, hub, tmp_path)
    assert "1 tensors outside the graft are not those of its bases: model.language_model.norm.weight" in message
    run_script(MOVE_BASE, hub, tmp_path)
    assert "cannot take device_map" in run_script(graft + COMPARE, hub, tmp_path, home="stranger")
    stored = hub.files("tester/graft-only")["model.safetensors"]
    whole = (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert (len(stored) if isinstance(stored, bytes) else stored) < 0.3 * whole
    message = run_script(OTHER_BASE, hub, tmp_path)
    assert "'graft'" in message
    assert "'tester/wider'" in message
    assert "hidden_size is 128 in the graft's configuration and 192 in the base" in message


@pytest.mark.slow
@pytest.mark.parametrize("graft", GRAFTS.values(), ids=GRAFTS)
def test_adapter_names_its_base_and_loads_by_name(graft: str, hub: LoopbackHub, tmp_path: Path) -> None:
    message = run_script(graft + ADAPTER, hub, tmp_path)
    assert "base_model_name_or_path" in message
    card = hub.read("tester/adapter", "README.md").decode()
    assert f"pipeline_tag: {'image-text-to-text' if graft in VISION_GRAFTS.values() else 'text-generation'}" in card
    assert "base_model:\n- tester/base" in card
    assert "base_model_relation: adapter" in card
    run_script(graft + LOAD_ADAPTER, hub, tmp_path, home="stranger")


@pytest.mark.slow
@pytest.mark.parametrize("graft", GRAFTS.values(), ids=GRAFTS)
def test_push_to_hub_carries_code_whoever_calls_it(graft: str, hub: LoopbackHub, tmp_path: Path) -> None:
    run_script(graft + PUSH_PLAIN, hub, tmp_path)
    run_script(PUSH_AGAIN, hub, tmp_path, home="stranger")
    pushed, sees = ["plain", "round0", "round1", "round2"], graft in VISION_GRAFTS.values()
    code = {"checkpoint_tensors.py", "strict_loading.py"}
    if sees:
        run_script(graft + TRAIN_AND_PUSH, hub, tmp_path)
        pushed.append("trained")
        code |= {"vision_language.py", "vision_language_processing.py", "soft_tokens.py"}
    elif graft == GRAFTS["clara"]:
        code |= {"clara_api.py", "role_lora.py", "memory_tokens.py"}
    else:
        code |= {"recursive_cache.py", "loop_lora.py"}
    has_processor = graft != GRAFTS["recursive"]
    for repository in pushed:
        files = hub.files(f"tester/{repository}")
        assert code <= set(files)
        assert sum(name.startswith(("modeling_", "processing_")) for name in files) == 1 + has_processor
        # "owner/name--module" would lean on another repository
        for name in ("config.json", *(["processor_config.json"] if has_processor else ["tokenizer_config.json"])):
            assert "--" not in hub.read(f"tester/{repository}", name).decode(), f"{repository}/{name}"
    if not sees:
        return
    card = hub.read("tester/trained", "README.md").decode()
    assert "license: apache-2.0" in card
    assert "trust_remote_code=True" in card
