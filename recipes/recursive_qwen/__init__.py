"""The recursive Qwen's runs, one YAML each."""
