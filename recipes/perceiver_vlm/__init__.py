"""The Perceiver VLM's runs, one YAML each."""
