"""Reinforcement learning: environments, rollouts, advantages and the one loop. See train.py."""
