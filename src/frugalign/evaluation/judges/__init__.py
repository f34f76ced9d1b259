"""Judges of pairs of answers: a reward, a model on this machine, a model behind a server."""
