"""The pages of runs, rounds, rewards and studies, drawn from plain values."""
