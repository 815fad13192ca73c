"""Supervised fine-tuning: data sets of conversations, evaluators and the loop."""
