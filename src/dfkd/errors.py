"""The one error a user can cause. The command line prints it as one sentence and exits with code 2."""


class UserError(ValueError):
    """Bad input: one sentence, ``<who> needs <what>, got <value>; <what to do>``."""
