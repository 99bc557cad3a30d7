"""Recipes of CLaRa."""
