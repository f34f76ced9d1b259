"""The one exception that carries a sentence for the user."""


class FrugalignError(Exception):
    """Something the user can mend. The command line prints the sentence and exits with status 2, without a traceback."""
