"""Reinforcement learning on problems whose answers can be checked: sums, GSM8K, MATH and more."""
