"""Distillation: train a student on the probabilities or samples of a teacher."""
