"""Baselines that train nothing: the base itself, best-of-n, and decoding guided by the reward."""
