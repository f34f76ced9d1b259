"""The one exception whose message is written for the user."""


class FrugalignError(Exception):
    """A user error. The command line prints the message and exits with status 2, without a traceback."""
