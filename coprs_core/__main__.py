"""`coprs`, also `python -m coprs_core`: runs a command and prints errors as one sentence."""

import argparse
import io
import os
import re
import sys
from typing import NoReturn

from coprs_core.commands import COMMANDS, load_command
from coprs_core.errors import CoPRSError, did_you_mean, from_os_error

DESCRIPTION = "CoPRS: interpretable reasoning segmentation."
EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141  # 128 + signal, as shells say


class _Parser(argparse.ArgumentParser):
    """A parser that suggests the command that was meant."""

    def error(self, message: str) -> NoReturn:
        if wrong := re.search(r"argument COMMAND: invalid choice: '(.*?)'", message):
            message = (
                f"there is no command {wrong[1]!r}{did_you_mean(wrong[1], COMMANDS)}: see --help"
            )
        super().error(message)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; no library is loaded for it."""
    main_parser = _Parser("coprs", description=DESCRIPTION)
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        module = load_command(name)
        command_parser = commands.add_parser(
            name,
            help=module.SUMMARY,
            description=module.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_options(command_parser)
    return main_parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal that lacks a character shows its number instead
            stream.reconfigure(errors="backslashreplace")
    try:
        return load_command(options.command).run(options)
    except CoPRSError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would print this error itself
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as problem:  # a disk or a folder that cannot be used
        print(f"error: {from_os_error(problem)}", file=sys.stderr)
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
