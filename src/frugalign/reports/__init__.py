"""Pages for people: a run's, a round's, a reward's and a study's, drawn from plain values."""
