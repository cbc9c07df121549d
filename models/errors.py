"""The one exception for a fault in what the user gave: a file, a record, a setting."""


class InputError(ValueError):
    """Says in one line which file, record or option is at fault and what to do; the CLI prints it without a traceback."""
