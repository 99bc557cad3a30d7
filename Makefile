# Each target makes what it needs: the first one on a bare machine creates .venv (a few minutes, 6 GB).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SERVE := .venv-serve
PARALLEL := --numprocesses logical --maxprocesses 4
SERVE_STAMP := $(SERVE)/.installed

.PHONY: demo demo-vision-bridge demo-qwen3-vl-sft demo-recursive demo-clara test test-slow style bench serve-check clean

demo: $(STAMP)
	$(BIN)/qwen-grafts demo

demo-vision-bridge: $(STAMP)
	$(BIN)/qwen-grafts demo vision-bridge

demo-qwen3-vl-sft: $(STAMP)
	$(BIN)/qwen-grafts demo qwen3-vl-sft

demo-recursive: $(STAMP)
	$(BIN)/qwen-grafts demo recursive

demo-clara: $(STAMP)
	$(BIN)/qwen-grafts demo clara

test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow $(PARALLEL)

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(STAMP)
	$(BIN)/python benchmarks/perceiver_against_llava.py
	$(BIN)/python benchmarks/surgery_against_whole_models.py
	$(BIN)/python benchmarks/packed_against_padded.py
	$(BIN)/python benchmarks/sft_against_trl.py
	$(BIN)/python benchmarks/recursive_against_peers.py
	$(BIN)/python benchmarks/recursive_conversion.py
	$(BIN)/python benchmarks/recursive_depth.py
	test -f demo/recursive/published/model.safetensors || $(BIN)/qwen-grafts demo recursive
	$(BIN)/python benchmarks/recursive_halting.py
	$(BIN)/python benchmarks/latent_index.py
	$(BIN)/python benchmarks/clara_against_reference.py
	$(BIN)/python benchmarks/clara_topics.py
	$(BIN)/python benchmarks/data_synthesis.py

serve-check: $(STAMP) $(SERVE_STAMP)
	$(BIN)/python -m pytest -m serve

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,style]'
	touch $@

# vLLM pins another torch and transformers, so it lives apart. Its torchvision, torchaudio and torchcodec wheels do not
# load beside a CPU torch.
$(SERVE_STAMP): constraints-serve.txt
	test -x $(SERVE)/bin/python || $(PYTHON) -m venv $(SERVE)
	$(SERVE)/bin/python -m pip install --quiet --requirement constraints-serve.txt
	$(SERVE)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf demo outputs build .pytest_cache .ruff_cache
