"""A console for output that another command reads."""

from rich.console import Console

__all__ = ["PipeConsole"]


class PipeConsole(Console):
    """Rich's console, which ends the program with code 1 when the reader of a pipe closes it; this one does not."""

    def on_broken_pipe(self) -> None:
        """Raise what ``print`` raises; the entry point answers it with code 0.

        Raises:
            BrokenPipeError: always.
        """
        raise BrokenPipeError
