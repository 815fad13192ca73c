"""Evaluation with Inspect: our models, local tasks, and the programs that run them."""
