"""Recipes of SFT for stock Qwen3-VL."""
