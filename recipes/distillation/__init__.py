"""Recipes of distillation."""
