"""Errors that a user can mend; the command line prints them as one line."""


class InputError(ValueError):
    """What a user gave cannot be used: the message says what, where, and what to do, in one line."""


class ProcessFault(InputError):
    """A process that a job needs was killed, or hangs; the message names it."""


class DivergedError(RuntimeError):
    """A loss or its gradient is not finite; the message names the step and the batch's files."""


class UnusableVolume(ValueError):
    """A file cannot serve as a volume; the message is the short reason, without the path."""


class DamagedVolume(UnusableVolume):
    """A file cannot be read at all: cut off, corrupt, or no volume in the first place."""
