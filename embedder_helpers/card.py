"""The model card: what a stranger should know of a saved embedder, as the README.md of a hub.

Written from `embedder.json` and the results beside it, and from nothing else: what they do not
tell is said to be unknown. Sending it is left to `publish`.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from embedder_helpers import comparison
from embedder_helpers.config import make_experiment
from embedder_helpers.leaderboard import with_mtebs_draws
from embedder_helpers.presets import BUILTIN
from embedder_helpers.report import as_markdown, of_validation
from embedder_helpers.result import PLACES, Result
from embedder_helpers.saved import saved_result
from embedder_helpers.tasks import MTEB_TASKS, SAMPLES

REPOSITORY = "https://github.com/embedder-gemma-roberta/embedder-gemma-roberta"
BUILTIN_CARD = f"{REPOSITORY}/blob/main/embedder_helpers/builtin/README.md"
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
SHOWN_LABELS = 12  # a task may have hundreds
SAMPLE_WORDS = {
    "sample": "counterfactual (`1`) and factual (`0`) sentences",
    "sample_emotion": "sentences of six emotions",
}

# How to fetch the folder from each hub; `{name}` is `owner/model`.
FETCH = {
    "hf": ("huggingface_hub", 'huggingface_hub.snapshot_download("{name}")'),
    "kaggle": ("kagglehub", 'kagglehub.model_download("{name}/keras/default")'),
}
FUSIONS = {
    "replace": "in the place of its token embeddings",
    "add": "where they are added to its token embeddings",
    "prepend": "in front of its token embeddings",
}
POOLINGS = {
    "mean": "the mean over its token states",
    "max": "the maximum over its token states",
    "first": "its first token state",
    "last": "its last token state",
}


class Licence(NamedTuple):
    """A licence as each hub spells it.

    Attributes:
        hf: Hugging Face's identifier.
        kaggle: the name on Kaggle; None where its list of names has none.
    """

    hf: str
    kaggle: str | None


APACHE = Licence("apache-2.0", "Apache 2.0")
MIT = Licence("mit", "MIT")
GEMMA = Licence("gemma", None)
OTHER = Licence("other", None)


def licence(told: Mapping[str, Any]) -> Licence:
    """The licence of the whole: Gemma's, if it learned from Gemma; OTHER if a part's is not known.

    Args:
        told: by `embedder.json`.
    """
    parts = [_part_licence(role, one["name"]) for role, one in told["presets"].items()]
    return next(one for one in (GEMMA, OTHER, MIT, APACHE) if one in parts)


def _part_licence(role: str, name: str) -> Licence:
    if name in BUILTIN:
        return APACHE
    if role == "llm_preset":
        return GEMMA
    own = name.removeprefix("hf://").lower()
    known = own.startswith(("facebookai/", "roberta_base_en", "roberta_large_en", "xlm_roberta_"))
    return MIT if known else OTHER


def gemma_inside(told: Mapping[str, Any]) -> bool:
    """Whether the cut Gemma's weights are in the folder."""
    return any(name.startswith("gemma/") for name in told["files"])


def card(told: Mapping[str, Any], results: Sequence[Result], hub: str, name: str) -> str:
    """The card, in Markdown; with YAML in front of it for Hugging Face.

    Args:
        told: by `embedder.json`, free of private paths.
        results: to show the embedder's own among, likewise; those of other texts, draws, splits or
            hybrids are left out.
        hub: `hf` or `kaggle`.
        name: `owner/model` there.
    """
    own = saved_result(told)
    parts = [
        f"# {name.split('/')[1]}",
        _about(told, own),
        _use(told, hub, name),
        *(_scores(own, beside(own, results)) if own else ["## Scores", "None were kept with it."]),
        *(_data(own) if own else []),
        *(_training(own) if own else []),
        *_parts(told, own),
        "## Limits",
        "\n".join(f"* {_wrapped(one, '  ')}" for one in _limits(told, own)),
    ]
    text = "\n\n".join(part if "\n" in part else _wrapped(part) for part in parts) + "\n"
    return f"---\n{_front_matter(told, own, name)}---\n\n{text}" if hub == "hf" else text


def _wrapped(text: str, indent: str = "") -> str:
    if text.startswith("#"):
        return text
    options = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, 100, subsequent_indent=indent, **options)


def beside(own: Result, results: Sequence[Result]) -> list[Result]:
    """The results that the card shows: the embedder's own of any seed, and the others alone."""
    every = [one for one in results if one != own] + [own]
    group = next(group for group in comparison.groups(every).values() if own in group)
    others = [one for one in every if one not in group and comparison.comparable(own, one)]
    return [*others, *group]


def _front_matter(told: Mapping[str, Any], own: Result | None, name: str) -> str:
    """The metadata that Hugging Face reads.

    The library is this package, for the hub would tell Keras's own `load_model`, which cannot read
    the folder; and a base model can be told only where its address there is known.
    """
    found = licence(told)
    places = [told["experiment"][role] for role in told["presets"]]
    bases = [one.removeprefix("hf://") for one in places if one.startswith("hf://")]
    source = MTEB_TASKS.get(own.task["name"]) if own else None
    fields = {
        "license": found.hf,
        "license_name": "see-the-card" if found is OTHER else None,
        "language": ["en"] if _english(own) else None,
        "library_name": "embedder_helpers",
        "tags": ["keras", "keras-hub", "sentence-embedding", "text-classification"],
        "base_model": bases,
        "base_model_relation": "finetune" if bases else None,  # of two, a merge would be guessed
        "datasets": [source.path] if source else None,
        "model-index": _model_index(own, name) if source and with_mtebs_draws(own) else None,
    }
    fields = {key: value for key, value in fields.items() if value}
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _model_index(own: Result, name: str) -> list[dict[str, Any]]:
    """The scores of these weights, in hundredths as MTEB tells them."""
    source = MTEB_TASKS[own.task["name"]]
    dataset = {
        "type": source.path,
        "name": f"MTEB {own.task['name']}",
        "config": source.subset or "default",
        "split": _split(own),
    }
    if not own.experiment["task_data"]:  # nobody can vouch for local files
        dataset["revision"] = source.revision
    metrics = [
        {"type": metric, "value": round(100 * own.scores[metric], 3)}
        for metric in ("accuracy", "f1")
    ]
    one = {"task": {"type": "Classification"}, "dataset": dataset, "metrics": metrics}
    return [{"name": name.split("/")[1], "results": [one]}]


def _split(own: Result) -> str:
    return "validation" if of_validation(own) else "test"


def _english(own: Result | None) -> bool:
    return own is not None and own.task["name"] in (*MTEB_TASKS, *SAMPLES)


def _about(told: Mapping[str, Any], own: Result | None) -> str:
    keys, width = told["experiment"], told["width"]
    an_embedder = f"An embedder of {'English ' if _english(own) else ''}texts"
    pooled = f"{POOLINGS[keys['pooling']]} is the embedding, {width} numbers"
    if keys["kind"] == "roberta_only":
        what = f"{an_embedder}: RoBERTa ({_name(told, 'slm_preset')}) encodes a text"
        what += f", and {pooled}."
    elif keys["kind"] == "gemma_only":
        what = f"{an_embedder}: {_gemma(told, own)} reads a text, and {pooled}."
    else:
        what = (
            f"{an_embedder}: {_gemma(told, own)} reads a text; a projection carries "
            f"its token states into RoBERTa ({_name(told, 'slm_preset')}), "
            f"{FUSIONS[keys['fusion']]}; RoBERTa encodes what comes of it, and {pooled}."
        )
    return f"{what} {_learned(told, own)}"


def _gemma(told: Mapping[str, Any], own: Result | None) -> str:
    found = told["experiment"]["llm_layers"]
    cutoffs = found if isinstance(found, list) else [found]
    whole = f" of {own.blocks}" if own else ""
    kept = f"cut behind block {max(cutoffs)}{whole}, frozen"
    if len(cutoffs) > 1:
        kept += f", read behind blocks {', '.join(map(str, cutoffs))}"
    return f"Gemma ({_name(told, 'llm_preset')}, {kept})"


def _name(told: Mapping[str, Any], role: str) -> str:
    return f"`{told['presets'][role]['name']}`"


def _learned(told: Mapping[str, Any], own: Result | None) -> str:
    """What was trained, and what labels there are."""
    classes, kind = told["classes"], told["experiment"]["kind"]
    if own is None:
        return "What it was trained on was not kept with it."
    if not own.history:
        what = "Nothing in it was trained"
    else:
        layers = "Projection, RoBERTa" if kind == "hybrid" else "RoBERTa"
        what = f"{layers} and a classification head were trained on {own.task['name']}"
    if not classes:
        return f"{what}."
    shown = ", ".join(f"`{one}`" for one in classes[:SHOWN_LABELS])
    more = ", …" if len(classes) > SHOWN_LABELS else ""
    if not own.history:
        what += f", but a logistic regression on its embeddings, on {own.task['name']}"
    return f"{what}; it labels texts as one of {len(classes)} classes: {shown}{more}."


def _use(told: Mapping[str, Any], hub: str, name: str) -> str:
    module, fetch = FETCH[hub]
    lines = [
        "## Use",
        "",
        "With Python 3.11 to 3.13:",
        "",
        f"    pip install git+{REPOSITORY}",
        "",
        "```python",
        f"import {module}",
        "from embedder_helpers.saved import load",
        "",
        f"folder = {fetch.format(name=name)}",
        "embedder = load(folder)",
        'embeddings = embedder.encode(["One text.", "Another one."])  '
        f"# float32, (texts, {told['width']})",
        "```",
        "",
    ]
    if told["classes"]:
        lines += [
            "Its labels, with the probability of each; `FOLDER` is what `folder` holds:",
            "",
            '    python -m embedder_helpers predict FOLDER --text "One text."',
            "",
        ]
    return "\n".join([*lines, _wrapped(_gemma_needed(told, hub))]).strip()


def _gemma_needed(told: Mapping[str, Any], hub: str) -> str:
    if "llm_preset" not in told["presets"]:
        return "It needs no other model."
    name = told["experiment"]["llm_preset"]
    if gemma_inside(told):
        return "The cut Gemma is in the folder; who uses it agrees to Gemma's terms (below)."
    if name in BUILTIN:
        return f"`{name}` comes with the package: nothing else is fetched."
    return (
        f"Gemma's weights are not in the folder: `load` fetches `{name}`, for which your account "
        "must have accepted Gemma's terms; or give a folder that has them, `load(folder, "
        "llm_preset=…)`."
    )


def _scores(own: Result, results: Sequence[Result]) -> Iterator[str]:
    split, draws = _split(own), own.task.get("samples_per_label")
    yield "## Scores"
    yield (
        f"`accuracy` and `F1` (macro) are of the embeddings, on the {split} split of "
        f"{own.task['name']}, by MTEB's protocol: means of {len(own.experiments)} logistic "
        f"regressions, each fitted to a draw of {draws} training texts of each label."
        f"{_head_words(results)} Brackets hold 95 % intervals."
    )
    yield _table(comparison.comparison(results), "task")
    leads = comparison.differences(results)
    if len(leads):
        yield (
            "By how much the hybrid lies above the others, paired over seeds and draws (a whole "
            "interval above zero means that it is better, one below that it is worse):"
        )
        yield _table(leads, "task", "hybrid")
    yield " ".join(_read_with(own, results))


def _head_words(results: Sequence[Result]) -> str:
    """What the head's columns are of; nothing where there are none."""
    heads = [one.experiment["kind"] for one in results if one.head]
    kinds = [
        "for Gemma alone of a logistic regression on all training texts"
        if "gemma_only" in heads
        else "",
        "of the classifier that was trained with it" if set(heads) - {"gemma_only"} else "",
    ]
    told = ", ".join(filter(None, reversed(kinds)))
    return f" `head accuracy` and `head F1` are {told}." if told else ""


def _table(frame: pd.DataFrame, *left_out: str) -> str:
    frame = frame.drop(columns=[*left_out])
    empty = [name for name in frame if name in comparison.COLUMNS and (frame[name] == "-").all()]
    return as_markdown(frame.drop(columns=empty)).strip()


def _read_with(own: Result, results: Sequence[Result]) -> Iterator[str]:
    """What a reader of the scores should know, a sentence each."""
    floor = own.floor
    yield (
        f"Always answering the commonest label has accuracy {floor['accuracy']:.3f} and F1 "
        f"{floor['f1']:.3f}."
    )
    if _seeded(own):
        yield (
            f"The weights here are of seed {own.experiment['seed']} alone, which has "
            f"{_both(own.scores)}{_of_head(own.head)}."
        )
    yield "Intervals are of seeds and draws; what other test texts would change is not in them."
    if any(_seeded(one) and _alone(one, results) for one in results):
        yield "What was trained with one seed has no interval: another could differ by points."
    if not any(one.experiment["kind"] != own.experiment["kind"] for one in results):
        yield "No embedder of another kind stands in this table."
    if of_validation(own):
        yield (
            "These texts also decided settings such as a chosen cutoff: good for choosing, too "
            "good to quote."
        )
    yield from _repeated(own)


def _seeded(one: Result) -> bool:
    return "seed" in make_experiment(one.experiment).determining()


def _alone(one: Result, results: Sequence[Result]) -> bool:
    return any(len(group) == 1 and one in group for group in comparison.groups(results).values())


def _both(scores: Mapping[str, float]) -> str:
    return f"accuracy {scores['accuracy']:.3f} and F1 {scores['f1']:.3f}"


def _of_head(head: Mapping[str, float] | None) -> str:
    return f" (head: {_both(head)})" if head else ""


def _repeated(own: Result) -> Iterator[str]:
    if not own.unrepeated:
        return
    texts = f"{own.unrepeated['texts']} of the {own.task['texts']['scored']} scored texts stand in"
    found = own.unrepeated.get("scores")
    without = f"; without them these weights have {_both(found)}" if found else ""
    yield f"{texts} the train split too{without}{_of_head(own.unrepeated.get('head'))}."


def _data(own: Result) -> Iterator[str]:
    source, name = MTEB_TASKS.get(own.task["name"]), own.task["name"]
    texts, local = own.task["texts"], own.experiment["task_data"]
    yield "## Data"
    if source and not local:
        what = f"MTEB's {name}, [{source.path}](https://huggingface.co/datasets/{source.path}) at "
        what += f"revision `{source.revision}`"
    elif name in SAMPLES:
        what = f"`{name}`, a small data set of {SAMPLE_WORDS[name]} that the package carries"
    else:
        whose = f" that were given as MTEB's {name}" if source else f", `{name}`"
        what = f"Local files{whose}; SHA-256 of their content `{own.inputs['task']}`"
    used = f"{texts['scored']} texts were scored"
    if "fit" in texts:
        used = (
            f"{texts['fit']} texts were learned from, {texts['watched']} held out for validation, "
            f"and {used}"
        )
    yield ". ".join([what, used, *own.task["notes"], ""]).strip()


def _training(own: Result) -> Iterator[str]:
    yield "## Settings"
    experiment = make_experiment(own.experiment)
    keys = {key: value for key, value in experiment.determining().items() if key not in PLACES}
    keys = {key: list(one) if isinstance(one, tuple) else one for key, one in keys.items()}
    keys["samples_per_label"] = own.task.get("samples_per_label")  # where it is the task's own
    yield "```yaml\n" + yaml.safe_dump(keys, sort_keys=False) + "```"
    chosen = f" The cutoff was chosen: {own.cutoffs[0]}." if experiment.chooses() else ""
    versions = ", ".join(f"{name} {version}" for name, version in own.versions.items())
    told = f"Computed on {', '.join(own.device)}, in {own.seconds['total']:.0f} s"
    yield f"{told}.{chosen} Versions: {versions}."


def _parts(told: Mapping[str, Any], own: Result | None) -> Iterator[str]:
    yield "## Parts and their licences"
    rows = [_part_row(told, role) for role in told["presets"]]
    if own:
        carried = own.task["name"] in SAMPLES
        data = {"part": "data set", "what": f"{own.task['name']}, not inside"}
        rows.append(
            data | {"licence": "Apache-2.0" if carried else "its own: see where it is from"}
        )
    rows.append({"part": "code", "what": f"{REPOSITORY}, not inside", "licence": "Apache-2.0"})
    yield as_markdown(pd.DataFrame(rows)).strip()
    if licence(told) is GEMMA:
        yield (
            "Gemma is provided under and subject to the Gemma Terms of Use found at "
            f"{GEMMA_TERMS}. This embedder computes with Gemma, and what was trained here learned "
            "from Gemma's states: whoever uses it must have accepted these terms."
        )


def _part_row(told: Mapping[str, Any], role: str) -> dict[str, str]:
    name, mark = told["presets"][role]["name"], told["presets"][role]["fingerprint"]
    gemma = role == "llm_preset"
    inside = gemma_inside(told) if gemma else True
    words = {
        APACHE: f"[Apache-2.0, with a notice]({BUILTIN_CARD})",
        MIT: "MIT",
        GEMMA: f"[Gemma Terms of Use]({GEMMA_TERMS})",
        OTHER: "its publisher's; of Meta's own RoBERTa, MIT",
    }
    mark = mark if "@" in mark else f"SHA-256 {mark[:16]}…"
    place = "inside" if inside else "not inside"
    where = told["experiment"]["llm_preset"] if gemma and not inside else name
    if where != name:  # told by whoever publishes it
        place += f", to be read from {where}, which was not compared"
    return {
        "part": "Gemma" if gemma else "RoBERTa",
        "what": f"{name} ({mark}), {place}",
        "licence": words[_part_licence(role, name)],
    }


def _limits(told: Mapping[str, Any], own: Result | None) -> Iterator[str]:
    names = [one["name"] for one in told["presets"].values()]
    most = told["experiment"]["max_tokens"]
    if set(names) & set(BUILTIN):
        yield (
            "`tiny_gemma` and `tiny_roberta` are this project's own: tiny, with four million words "
            "read. They know little, and show how the method behaves, not how good it is."
        )
    cut = f"; {own.truncated or 'none'} of the data's texts had more" if own else ""
    yield f"Of a text, {most} tokens are read{cut}."
    yield "Nothing but the scores above was measured: no other task, language, speed or bias."
    if own and own.history:
        yield (
            f"It was trained on {own.task['name']}, the task that it is scored on: compare it with "
            "models that were too, and expect less elsewhere."
        )
    if own:
        yield "How often settings were changed after a look at these scores is not recorded here."
    if told["classes"]:
        yield "The head's probabilities are not calibrated."
