"""The vision bridge's runs, one YAML each."""
