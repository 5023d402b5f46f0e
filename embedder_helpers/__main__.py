"""The command line: `python -m embedder_helpers COMMAND …`, each command beside its options.

Commands print what was asked for to standard output; log lines, bars and errors go to standard
error. Exit status: 0; 1 if some experiments were not finished; 2 for invalid input; 130 if it was
interrupted; 141 if nobody reads its output any more, as behind `| head`.
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from embedder_helpers.config import Experiment, with_baselines
from embedder_helpers.config_files import load_experiments, parse_overrides
from embedder_helpers.errors import MAX_MESSAGE, MAX_VALUE, InputError, redact, shorten, show
from embedder_helpers.utils import environment, keras_state, progress
from embedder_helpers.utils.files import as_path, writable_file, writable_folder

logger = logging.getLogger("embedder_helpers")  # not `__main__`, which is what this module is

Options = argparse.Namespace


class Parser(argparse.ArgumentParser):
    """A parser whose messages are bounded."""

    def error(self, message: str) -> NoReturn:
        """End with a message."""
        super().error(shorten(message, MAX_MESSAGE))


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    if hasattr(sys.stdout, "reconfigure"):  # a code page may lack letters; None if it is closed
        sys.stdout.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    progress.show_log()
    try:
        status = options.run(options) or 0
        if sys.stdout:
            sys.stdout.flush()
        return status
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished results are kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 141
    except OSError as error:  # of a disk or a network, which no check foresaw
        reason = redact(f"{type(error).__name__}: {error}")
        print(f"error: {shorten(reason, 3 * MAX_VALUE)}", file=sys.stderr)
        return 2
    finally:
        _discard_unwritable_output()


def _discard_unwritable_output() -> None:
    """Leave nothing to write when Python ends, if standard output is closed or its disk full."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # has no file of the system
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


COMMANDS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Options], int | None]]] = {}


def command(summary: str, add_options: Callable[[Parser], None]) -> Callable:
    """Register a function as the command of its name."""

    def register(run: Callable[[Options], int | None]) -> Callable:
        COMMANDS[run.__name__] = (summary, add_options, run)
        return run

    return register


def _parser() -> Parser:
    parser = Parser(
        prog="python -m embedder_helpers",
        description="Join a frozen, truncated Gemma to RoBERTa, and score it as MTEB does.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (summary, add_options, run) in COMMANDS.items():
        aliases = ["run"] if name == "sweep" else []
        subparser = commands.add_parser(name, aliases=aliases, help=summary, description=summary)
        add_options(subparser)
        subparser.set_defaults(run=run)
    return parser


# === Experiments ===


def _config_options(parser: Parser) -> None:
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="path of a YAML file, or a name in configs/"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SETTING=VALUE", dest="settings",
        help="set a setting in every experiment; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", action="store_true", help="add RoBERTa alone and Gemma alone to each hybrid"
    )


def _experiments(options: Options) -> list[Experiment]:
    overrides = parse_overrides(options.settings)
    experiments: list[Experiment] = []
    for path in options.configs:
        experiments += load_experiments(path, overrides)
    return with_baselines(experiments) if options.baselines else experiments


def _sweep_options(parser: Parser) -> None:
    _run_options(parser, "results")
    parser.set_defaults(out="results")


def _run_options(parser: Parser, out: str) -> None:
    _config_options(parser)
    parser.add_argument("--out", metavar="DIR", help=f"folder for results (default: {out})")
    parser.add_argument(
        "--hours", type=float, metavar="H",
        help="time limit in hours; experiments that would exceed it are not started "
        "(default: none; on Kaggle, the session's limit)",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", metavar="ADDRESS",
        help="a Ray cluster to run on, or `local` for several processes on this machine "
        "(default: RAY_ADDRESS, or all GPUs of this machine)",
    )  # fmt: skip
    parser.add_argument(
        "--cpus-per-worker", type=int, metavar="N",
        help="CPUs of each process on machines without GPUs, which rest unless this is given or no "
        "machine has a GPU (default: a machine's)",
    )  # fmt: skip


@command("run the experiments of configs and print their table", _sweep_options)
def sweep(options: Options) -> int:
    """Run experiments; finished results are kept and not computed again."""
    from embedder_helpers.experiments import sweep as sweeps
    from embedder_helpers.results.report import summarize

    workers = options.cluster, options.cpus_per_worker
    results, failed = sweeps.run_experiments(
        _experiments(options), options.out, options.hours, *workers
    )
    try:
        summarize(results, options.out)
    finally:
        for name, reason in failed.items():
            print(f"not finished: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _verdict_options(parser: Parser) -> None:
    _run_options(parser, "results/verdict_TASK")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="N",
        help="seeds of the trainings (default: those of the config, or 33 34 35 if it has one)",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", nargs="*", type=int, metavar="N",
        help="training texts per label of the learning curve, besides all (default: 8 32 128 512)",
    )  # fmt: skip
    parser.add_argument(
        "--encoder", metavar="NAME", help="a ready text encoder to compare with, as encoder_preset"
    )


@command(
    "say whether Gemma helps on the task of a config, where, and at what cost", _verdict_options
)
def verdict(options: Options) -> None:
    """Run what a verdict needs and is not finished, and print it."""
    from embedder_helpers.experiments import verdict as verdicts
    from embedder_helpers.results.tables import to_markdown

    hybrids = [one for one in _experiments(options) if one.kind == "hybrid"]
    if not hybrids:
        raise InputError("a verdict is on a hybrid, but the config has none: set kind: hybrid")
    same = {"seed": hybrids[0].seed, "llm_layers": hybrids[0].llm_layers}
    if any(replace(one, **same) != hybrids[0] for one in hybrids):
        logger.warning("the config has several hybrids: the verdict is on the first one's settings")
    seeds = list(dict.fromkeys(one.seed for one in hybrids))
    out = options.out or verdicts.default_folder(hybrids[0])
    found = verdicts.verdict(
        hybrids[0],
        out,
        seeds=options.seeds or (seeds if len(seeds) > 1 else verdicts.SEEDS),
        sizes=verdicts.SIZES if options.sizes is None else options.sizes,
        encoder=options.encoder,
        hours=options.hours,
        cluster=options.cluster,
        cpus_per_worker=options.cpus_per_worker,
    )
    print(found.sentence, *found.notes, to_markdown(found.table()), sep="\n\n")
    print(f"page, figures and tables: {out}")


def _estimate_options(parser: Parser) -> None:
    _config_options(parser)
    parser.add_argument(
        "--on",
        default="T4",
        metavar="DEVICE",
        help="device to estimate for: T4, L4, A100, or `here` for this machine's "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", default=[],
        help="also estimate hours on so many processes of a cluster, each with such a device",
    )  # fmt: skip


@command("estimate memory, disk and hours of a sweep without running it", _estimate_options)
def estimate(options: Options) -> None:
    """Estimate the cost of a sweep from the shapes of its models."""
    from embedder_helpers.experiments import estimate as costs
    from embedder_helpers.results.tables import to_markdown

    if options.on not in (*costs.GPUS, "here"):
        known = ", ".join(costs.GPUS)
        raise InputError(f"--on is {show(options.on)}, but must be one of {known}, here")
    experiments = _experiments(options)
    keras_state.backend()
    device = costs.measure_device() if options.on == "here" else costs.GPUS[options.on]
    print(to_markdown(costs.estimate_cost(experiments, device)))
    print(f"{options.on}: {costs.describe_device(device)}")
    if options.workers:
        from embedder_helpers.experiments.scaling import estimate_workers

        if min(options.workers) < 1:
            raise InputError(f"--workers is {min(options.workers)}, but must be 1 or more")
        print("\n" + to_markdown(estimate_workers(experiments, device, options.workers).round(3)))
    for sentence in costs.memory_advice(experiments, device):
        print(sentence)


# === Results ===


@command(
    "print the table of a folder's results, and draw its figures",
    lambda parser: parser.add_argument("folder", metavar="DIR", help="folder of results"),
)
def table(options: Options) -> None:
    """Print and draw the results of a folder."""
    from embedder_helpers.results.report import summarize
    from embedder_helpers.results.tables import load_results

    summarize(load_results(options.folder), options.folder)


def _report_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of results, or of folders of results")
    parser.add_argument(
        "--out", metavar="OUT", help="folder for the report (default: `report` in DIR)"
    )


@command(
    "write a report that compares results with MTEB's leaderboard: Markdown, HTML, CSV",
    _report_options,
)
def report(options: Options) -> None:
    """Write a report and print its files."""
    from embedder_helpers.results.report import write_report
    from embedder_helpers.results.tables import load_results

    out = options.out or Path(options.folder) / "report"
    for path in write_report(load_results(options.folder), out).files:
        print(path)


@command("describe the leaderboard figures that reports use", lambda parser: None)
def leaderboard(options: Options) -> None:
    """Print where the leaderboard figures come from."""
    from embedder_helpers.results.leaderboard import describe_leaderboard

    print(describe_leaderboard())


def _mteb_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of results")
    parser.add_argument(
        "--org", required=True, help="prefix of the models' names, such as a hub account"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR",
        help="folder for the files, such as `results` in an mteb cache",
    )  # fmt: skip


@command("write results in MTEB's own format, which mteb.ResultCache reads", _mteb_options)
def mteb(options: Options) -> None:
    """Write results for `mteb` and print the files."""
    from embedder_helpers.results.tables import find_results
    from embedder_helpers.sharing.mteb_results import write_mteb_results

    for path in write_mteb_results(find_results(options.folder), options.out, options.org):
        print(path)


# === Saved embedders ===

SAVED_EMBEDDER = "folder of a saved embedder, as `save_embedder: true` writes it"


def _predict_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help=SAVED_EMBEDDER)
    parser.add_argument(
        "--llm", metavar="PRESET", help="name, handle or folder of its Gemma, if it has moved"
    )
    parser.add_argument(
        "--cascade", type=float, metavar="P",
        help="let RoBERTa alone answer where it is sure of its label with this probability, and "
        "the hybrid elsewhere; needs a hybrid with a cheap classifier, as `verdict` saves it",
    )  # fmt: skip
    texts = parser.add_mutually_exclusive_group(required=True)
    texts.add_argument(
        "--text", action="append", metavar="TEXT", help="text to classify; may be repeated"
    )
    texts.add_argument("--file", metavar="FILE", help="file of texts: .csv, .jsonl or .parquet")
    parser.add_argument(
        "--text-column", default="text", metavar="NAME",
        help="name of the text column of --file (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="CSV",
        help="file to write the table to, after the columns of --file (default: print it)",
    )  # fmt: skip


@command("classify texts with a saved embedder, and show what Gemma changed", _predict_options)
def predict(options: Options) -> None:
    """Classify texts; invalid input is reported before the model is loaded."""
    import pandas as pd

    from embedder_helpers.data.files import read_table, validate_texts
    from embedder_helpers.models.cascade import check_threshold

    if options.cascade is not None:
        check_threshold(options.cascade)
    out = writable_file(options.out, ".csv", "--out") if options.out else None
    if options.text:
        validate_texts(options.text, "--text")
        texts, others = options.text, None
    else:
        file = as_path(options.file)
        others = read_table(file, options.text_column)
        if out and out.exists() and out.samefile(file):
            raise InputError("--out is the same file as --file: give the name of another")
        texts = others[options.text_column].tolist()
    keras_state.backend()
    from embedder_helpers.models.architectures import load_embedder
    from embedder_helpers.results.formats import to_markdown, to_raw_csv

    predictions = load_embedder(options.folder, options.llm).predict(texts, options.cascade)
    if out is None:
        print(to_markdown(predictions))
        return
    if others is not None:
        predictions = predictions.drop(columns="text")  # they are among the file's columns
        for name in predictions.columns.intersection(others.columns):
            kept = f"{name} (file)"
            while kept in others:
                kept += " (file)"
            others = others.rename(columns={name: kept})
        predictions = pd.concat([others, predictions], axis=1)
    to_raw_csv(predictions, out)
    logger.info("labels in %s (texts: %d)", out, len(predictions))


def _publish_options(parser: Parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help=SAVED_EMBEDDER)
    parser.add_argument(
        "--to", required=True, metavar="ADDRESS",
        help="address to upload to: hf:owner/model or kaggle:owner/model",
    )  # fmt: skip
    parser.add_argument(
        "--results", metavar="DIR",
        help="folder of results to show beside its own (default: the parent of FOLDER)",
    )  # fmt: skip
    parser.add_argument(
        "--llm", metavar="HANDLE",
        help="name or handle by which others find its Gemma, if it was a local folder",
    )  # fmt: skip
    parser.add_argument(
        "--public", action="store_true",
        help="make a new repository public (Hugging Face only; default: private)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be uploaded, and upload nothing"
    )


@command("upload a saved embedder with a model card to Hugging Face or Kaggle", _publish_options)
def publish(options: Options) -> None:
    """Upload a saved embedder, or show what would be uploaded."""
    from embedder_helpers.sharing.publish import prepare_upload, upload

    arguments = {name: getattr(options, name) for name in ("results", "llm", "public")}
    with prepare_upload(options.folder, options.to, **arguments) as prepared:
        print(prepared.describe())
        if options.dry_run:
            card = (prepared.folder / "README.md").read_text(encoding="utf-8")
            print(f"\nREADME.md:\n\n{card}")
        else:
            print(f"published: {upload(prepared)}")


# === The cache of hidden states ===


def _states_options(parser: Parser) -> None:
    parser.add_argument(
        "--dir", metavar="DIR", help="folder of the cache (default: that of `states_dir: null`)"
    )
    parser.add_argument(
        "--clear", nargs="?", const="", metavar="MODEL",
        help="delete the hidden states of MODEL, or of all models without a name",
    )  # fmt: skip


@command("list the hidden states on disk, or delete them", _states_options)
def states(options: Options) -> None:
    """List or clear the hidden-state cache."""
    keras_state.backend()
    from embedder_helpers.models import cache_folder

    folder = as_path(options.dir) if options.dir else environment.states_folder()
    if options.dir and not folder.is_dir():
        raise InputError(f"--dir: there is no folder {show(options.dir)}")
    folder = writable_folder(folder, "states_dir")
    cache_folder.log_old_files(folder)
    if options.clear is not None:
        freed = cache_folder.clear(folder, options.clear or None)
        print(f"{freed / 1e9:.2f} GB freed in {folder}")
        return
    summary = cache_folder.summary(folder)
    print(summary.to_string(index=False) if len(summary) else f"no hidden states in {folder}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # also cleans up, as Ctrl-C does
    sys.exit(main())
