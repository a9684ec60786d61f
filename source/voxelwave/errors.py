"""Errors that a user can mend; the command line prints them as one line."""


class InputError(ValueError):
    """What a user gave cannot be used: the message says what, where, and what to do, in one line."""


class DivergedError(RuntimeError):
    """A loss or its gradient is not finite; the message names the step and the batch's files."""
