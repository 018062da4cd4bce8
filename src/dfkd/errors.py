"""The one error a user can cause. The command line prints it as one sentence and exits with code 2."""


class UserError(ValueError):
    """Bad input: one sentence, ``<who> needs <what>, got <value>; <what to do>``.

    On one line, also where a part of it came from a file or from another library's message.
    """

    def __init__(self, sentence: str) -> None:
        super().__init__(" ".join(sentence.splitlines()))
