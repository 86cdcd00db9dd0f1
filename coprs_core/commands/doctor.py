"""`doctor`: this machine, one model, and the first thing to do."""

from argparse import ArgumentParser, Namespace

from coprs_core.commands.options import add_model_options, parse_load_options

SUMMARY = "look at this machine and one model; say what to do first"
DESCRIPTION = """\
Look at this machine and at one model: versions, devices, caches, every file, the
special tokens, quantization. The last line says "ready" or the first thing to do.
Loads no weights and does not use the network.

example:
  coprs doctor --model qwen2.5-vl-3b --quantize nf4

exit codes:
  0 ready · 1 something is to be done first
"""


def add_options(parser: ArgumentParser) -> None:
    add_model_options(parser)


def run(options: Namespace) -> int:
    from coprs_core.checkpoints.doctor import format_checks, run_checks, verdict

    checks = run_checks(options.model, parse_load_options(options))
    print(format_checks(checks))
    return 0 if verdict(checks) == "ready" else 1
