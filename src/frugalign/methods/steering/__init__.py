"""A steering vector: the difference of mean hidden states between good and bad answers, as a method."""
