"""The entry point ``dfkd``. Nothing heavy is imported before a command is known to be well-formed."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from dfkd import __version__
from dfkd.allocator import keep_freed_memory
from dfkd.cli.commands import COMMANDS, Command
from dfkd.cli.stop import Stopped, stoppable
from dfkd.cli.streams import decode_word, print_anywhere
from dfkd.errors import UserError
from dfkd.visible import visible

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 a bug, 2 bad input, 130 or 143 stopped by a signal."""
    print_anywhere()
    words = [decode_word(word) for word in (sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with warnings.catch_warnings(), stoppable():
            warnings.showwarning = _warn
            return _dispatch(words)
    except UserError as error:
        if debug:
            raise
        print(f"error: {visible(str(error))}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped", file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else 130
    except BrokenPipeError:  # the reader of a pipe had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        return _report_fault(error)


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["help"] and len(words) == 2 and words[1] in COMMANDS:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        from dfkd.cli.help import main_help

        print(main_help(__version__))
        return 0
    if words[0] in ("--version", "-V"):
        print(f"dfkd {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        from dfkd.cli.parse import unknown

        raise unknown(words[0], COMMANDS, "dfkd", "command")
    if "-h" in words or "--help" in words:
        from dfkd.cli.help import command_help

        print(command_help(command))
        return 0
    return _run(command, words[1:])


def _run(command: Command, words: list[str]) -> int:
    from dfkd.cli.parse import fill, flags

    # Threads that wait by spinning make small networks many times slower on a busy machine; read when torch loads.
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "torch" not in sys.modules:
        keep_freed_memory()
    spellings = ("--print_config", "--print-config")
    show = bool(command.free) and any(word in spellings for word in words)
    tree = flags(
        [word for word in words if not (show and word in spellings)],
        command.settings,
        command.word,
        command.free,
        command.more,
    )
    module: Any = importlib.import_module(f"dfkd.cli.do_{command.name}")
    if command.free:
        return module.run(tree, show)
    return module.run(fill(command.settings, tree))


def _report_fault(error: Exception) -> int:
    """Something that no check foresaw."""
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
        print(
            "error: dfkd needs more memory than there is; lower the batch sizes or the memory of the method",
            file=sys.stderr,
        )
        return 2
    reason = (str(error).strip() or "no message").splitlines()[0]
    sentence = f"error: dfkd failed with {type(error).__name__}: {reason}; --debug shows where"
    print(visible(sentence), file=sys.stderr)
    return 1


def _warn(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Warnings of ours as one line; those of libraries are not for the user of a command."""
    if issubclass(category, UserWarning) and f"{os.sep}dfkd{os.sep}" in filename:
        print(f"warning: {visible(str(message))}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
