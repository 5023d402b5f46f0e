"""The command line: `python -m embedder_helpers run CONFIG… [--set key=value …] [--out DIR]`.

Does without a notebook what the notebook does. Mistakes end in one sentence and exit status 2.
"""

import argparse
import sys

from embedder_helpers.config import (
    InputError,
    find_config,
    make_experiment,
    parse_override,
    read_config,
)


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; gives the exit status."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished results are kept", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedder_helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run experiments and print their table")
    run.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="a YAML file, or a name in configs/"
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="settings",
        help="override a key of every config; may be given often",
    )  # fmt: skip
    run.add_argument("--out", default="results", metavar="DIR", help="where results go (results)")
    run.add_argument(
        "--baselines", action="store_true", help="beside each hybrid, RoBERTa alone and Gemma alone"
    )
    run.set_defaults(command=_run)
    table = commands.add_parser("table", help="print the table of a folder's results; draw them")
    table.add_argument("folder", metavar="DIR")
    table.set_defaults(command=_table)
    return parser


def _run(options: argparse.Namespace) -> None:
    overrides = dict(parse_override(setting) for setting in options.settings)
    experiments = [
        make_experiment({**read_config(find_config(config)), **overrides}, where=config)
        for config in options.configs
    ]
    from embedder_helpers import report
    from embedder_helpers.run import run_all, with_baselines

    if options.baselines:
        experiments = [one for experiment in experiments for one in with_baselines(experiment)]
    results = run_all(experiments, options.out)
    print()
    report.publish(results, options.out)


def _table(options: argparse.Namespace) -> None:
    from embedder_helpers import report

    report.publish(report.load_results(options.folder), options.folder)


if __name__ == "__main__":
    sys.exit(main())
