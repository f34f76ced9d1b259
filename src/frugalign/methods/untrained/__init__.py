"""Untrained baselines: the base itself, best-of-n, and reward-guided decoding."""
