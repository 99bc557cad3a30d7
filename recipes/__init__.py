"""Data, training scripts and their YAMLs, evaluation. Imports configuration, processing and modeling."""
