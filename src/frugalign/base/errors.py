"""The one exception whose message is written for the user, and a message that several packages need."""


class FrugalignError(Exception):
    """A user error. The command line prints the message and exits with status 2, without a traceback."""


def saved_by_another_version(what: str, lacking: str) -> FrugalignError:
    """The error for a file that lacks a field which this version always saves. Damage changes values, and removes no fields."""
    return FrugalignError(f"{what} was saved by another version of frugalign, without its {lacking}: train it again.")
