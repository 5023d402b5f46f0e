"""The command line: `python -m embedder_helpers sweep CONFIG… [--set key=value …] [--out DIR]`.

Does without a notebook what the notebooks do. Mistakes end in one sentence and exit status 2; a
sweep of which some experiments failed, or were left for want of time, ends in 1.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from embedder_helpers.config import Experiment, InputError, parse_override


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; gives the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; finished results are kept", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m embedder_helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_of_experiments, _add_of_results, _add_of_embedders, _add_of_states):
        add(commands)
    return parser


def _add_of_experiments(commands: Any) -> None:
    run = commands.add_parser(
        "sweep", aliases=["run"], help="run the experiments of configs and print their table"
    )
    _add_configs(run)
    run.add_argument("--out", default="results", metavar="DIR", help="where results go (results)")
    run.add_argument(
        "--hours", type=float, metavar="H",
        help="begin nothing that would not be finished by then (Kaggle: the session's)",
    )  # fmt: skip
    run.set_defaults(command=_sweep)
    reckon = commands.add_parser(
        "estimate", help="reckon memory, disk and hours of a sweep without running it"
    )
    _add_configs(reckon)
    reckon.add_argument(
        "--on", default="T4", metavar="GPU", help="P100, T4, L4, A100, or `here`: this CPU (T4)"
    )
    reckon.set_defaults(command=_estimate)


def _add_of_results(commands: Any) -> None:
    table = commands.add_parser("table", help="print the table of a folder's results; draw them")
    table.add_argument("folder", metavar="DIR")
    table.set_defaults(command=_table)
    document = commands.add_parser(
        "report", help="write results as a report, beside the leaderboard: Markdown, HTML, CSV"
    )
    document.add_argument("folder", metavar="DIR", help="of results, or of folders of results")
    document.add_argument("--out", metavar="DIR", help="where it goes (`report` in the folder)")
    document.set_defaults(command=_report)
    board = commands.add_parser(
        "leaderboard", help="say what the leaderboard's figures are from, or read them anew"
    )
    board.add_argument("--refresh", action="store_true", help="read them anew, with git")
    board.add_argument(
        "--from", metavar="URL", dest="url", help="of a mirror or a clone of the repository"
    )
    board.add_argument(
        "--out", metavar="FILE", help="where they go (the package's own file, which it reads)"
    )
    board.set_defaults(command=_leaderboard)
    mteb = commands.add_parser(
        "mteb", help="write results as MTEB keeps its own, readable by mteb.ResultCache"
    )
    mteb.add_argument("folder", metavar="DIR", help="of results")
    mteb.add_argument("--org", required=True, help="before the models' names: a hub's account")
    mteb.add_argument("--out", required=True, metavar="DIR", help="`results` in an mteb cache")
    mteb.set_defaults(command=_mteb)


def _add_of_embedders(commands: Any) -> None:
    predict = commands.add_parser(
        "predict", help="label texts with a saved embedder, and tell what Gemma changed"
    )
    predict.add_argument("folder", metavar="FOLDER", help="that `save_embedder: true` left")
    predict.add_argument("--llm", metavar="PRESET", help="the embedder's Gemma, if it has moved")
    given = predict.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", action="append", metavar="TEXT", help="may be given often")
    given.add_argument("--file", metavar="FILE", help="of texts: .csv, .jsonl or .parquet")
    predict.add_argument("--text-column", default="text", metavar="NAME", help="of --file (text)")
    predict.add_argument("--out", metavar="CSV", help="where the table goes, if not printed")
    predict.set_defaults(command=_predict)
    publish = commands.add_parser(
        "publish", help="send a saved embedder, with its model card, to Hugging Face or Kaggle"
    )
    publish.add_argument("folder", metavar="FOLDER", help="that `save_embedder: true` left")
    publish.add_argument(
        "--to", required=True, metavar="ADDRESS", help="hf:owner/model or kaggle:owner/model"
    )
    publish.add_argument(
        "--results", metavar="DIR", help="of results to tell beside its own (beside FOLDER)"
    )
    publish.add_argument(
        "--llm", metavar="HANDLE", help="where others find its Gemma, if it was a folder's here"
    )
    publish.add_argument("--public", action="store_true", help="for all to see (hf; else private)")
    publish.add_argument(
        "--dry-run", action="store_true", help="show all that would be sent, and send nothing"
    )
    publish.set_defaults(command=_publish)


def _add_of_states(commands: Any) -> None:
    states = commands.add_parser("states", help="list Gemma's states on disk, or delete them")
    states.add_argument("--dir", metavar="DIR", help="the states_dir (the default one)")
    states.add_argument(
        "--clear", nargs="?", const="", metavar="MODEL", help="delete a model's states, or all"
    )
    states.set_defaults(command=_states)


def _add_configs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "configs", nargs="+", metavar="CONFIG", help="a YAML file, or a name in configs/"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="key=value", dest="settings",
        help="override a key of every experiment; may be given often",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", action="store_true", help="beside each hybrid, RoBERTa alone and Gemma alone"
    )


def _experiments(options: argparse.Namespace) -> list[Experiment]:
    from embedder_helpers.plan import with_baselines
    from embedder_helpers.sweep import load_sweep

    overrides = dict(parse_override(setting) for setting in options.settings)
    experiments = [one for config in options.configs for one in load_sweep(config, overrides)]
    if options.baselines:
        experiments = [one for experiment in experiments for one in with_baselines(experiment)]
    return experiments


def _sweep(options: argparse.Namespace) -> int:
    from embedder_helpers.summary import summarise
    from embedder_helpers.sweep import sweep

    results, failed = sweep(_experiments(options), options.out, options.hours)
    print()
    summarise(results, options.out)
    for name, reason in failed.items():
        print(f"not finished: {name}: {reason}", file=sys.stderr)
    return 1 if failed else 0


def _estimate(options: argparse.Namespace) -> int:
    from embedder_helpers import estimate
    from embedder_helpers.report import as_markdown

    if options.on not in (*estimate.GPUS, "here"):
        known = ", ".join(estimate.GPUS)
        raise InputError(f"--on is {options.on!r}, but must be one of {known}, here")
    device = estimate.here() if options.on == "here" else estimate.GPUS[options.on]
    found = estimate.estimate(_experiments(options), device)
    print(as_markdown(found))
    share = estimate.HALF_SHARE if device.float16 else estimate.SHARE
    pace = f"{device.memory / 1e9:.0f} GB of memory, {device.float32 / 1e12:.2g} TFLOP/s in float32"
    print(
        f"{options.on}: {pace}; Gemma is reckoned at {estimate.SHARE:.0%} of that, "
        f"training at {share:.0%} of {'the tensor cores' if device.float16 else 'it'}"
    )
    return 0


def _table(options: argparse.Namespace) -> int:
    from embedder_helpers.report import load_results
    from embedder_helpers.summary import summarise

    summarise(load_results(options.folder), options.folder)
    return 0


def _report(options: argparse.Namespace) -> int:
    from embedder_helpers.document import sections, write_document
    from embedder_helpers.report import load_results

    out = options.out or Path(options.folder) / "report"
    for path in write_document(sections(load_results(options.folder)), out):
        print(path)
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from embedder_helpers.leaderboard import FIGURES, told
    from embedder_helpers.refresh import URL, refresh

    if options.refresh:
        print(told(refresh(options.url or URL, options.out or FIGURES)))
    elif options.url or options.out:
        raise InputError("--from and --out go with --refresh, which reads the figures anew")
    else:
        print(told(FIGURES))
    return 0


def _mteb(options: argparse.Namespace) -> int:
    from embedder_helpers.mteb_files import write_mteb
    from embedder_helpers.report import results_in

    for path in write_mteb(results_in(options.folder), options.out, options.org):
        print(path)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from embedder_helpers import platform
    from embedder_helpers.local import check_texts, read_texts

    out = Path(options.out) if options.out else None
    if out:  # mistakes first, the model after them
        platform.writable_folder(out.parent, "--out")
        if out.is_dir():
            raise InputError(f"--out {out} is a folder: give the name of a CSV file")
    if options.text:
        check_texts(options.text, "--text")
    texts = options.text or read_texts(Path(options.file), options.text_column)
    from embedder_helpers.classify import classify
    from embedder_helpers.report import as_markdown
    from embedder_helpers.saved import load

    found = classify(load(options.folder, options.llm), texts)
    if out:
        platform.write_whole(out, lambda part: found.to_csv(part, index=False))
        print(f"{len(found)} texts labelled in {out}")
    else:
        print(as_markdown(found))
    return 0


def _publish(options: argparse.Namespace) -> int:
    from embedder_helpers.publish import send, staged

    keys = {name: getattr(options, name) for name in ("results", "llm", "public")}
    with staged(options.folder, options.to, **keys) as one:
        print(one.told())
        if options.dry_run:
            print(f"\nREADME.md:\n\n{(one.folder / 'README.md').read_text(encoding='utf-8')}")
        else:
            print(f"published: {send(one)}")
    return 0


def _states(options: argparse.Namespace) -> int:
    from embedder_helpers import platform
    from embedder_helpers.states import Store

    if options.dir and not Path(options.dir).is_dir():
        raise InputError(f"--dir: there is no folder {options.dir!r}")
    store = Store(options.dir or platform.states_folder())
    if options.clear is not None:
        print(f"{store.clear(options.clear or None) / 1e9:.2f} GB freed in {store.folder}")
    else:
        found = store.listing()
        print(found.to_string(index=False) if len(found) else f"no states in {store.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
