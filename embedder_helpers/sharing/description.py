"""What a saved embedder computes and what it was trained on, in sentences for its model card."""

from pathlib import Path

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.data.files import FORMATS
from embedder_helpers.data.tasks import LOCAL_SUFFIX
from embedder_helpers.models.saving import Manifest
from embedder_helpers.results.data_sets import data_source, is_english, mteb_task
from embedder_helpers.results.formats import escape_markdown, markdown_code
from embedder_helpers.results.naming import relevant_settings
from embedder_helpers.results.result import Result

MAX_LABELS = 12  # listed in the card; a task may have hundreds
MAX_LABEL = 60  # letters

DESCRIPTIONS = {
    "roberta_only": "{roberta} encodes a text",
    "gemma_only": "{gemma} reads a text",
    "hybrid": "{gemma} reads a text; a projection maps its hidden states into RoBERTa's embedding "
    "space, where they {fusion} RoBERTa's own token embeddings; {roberta} encodes the result",
}
FUSION_VERBS = {"replace": "replace", "add": "are added to", "prepend": "are prepended to"}
CONTRASTIVE_LOSS = (
    "the supervised contrastive loss ([Khosla et al. 2020](https://arxiv.org/abs/2004.11362))"
)


def describe_embedder(manifest: Manifest, result: Result | None) -> str:
    """What an embedder computes, its size, what was trained and how, and the head's labels."""
    sentences = [_architecture(manifest, result), _embedding(manifest, result)]
    sentences += [_training(manifest, result), _labels(manifest)]
    return " ".join(filter(None, sentences))


def _architecture(manifest: Manifest, result: Result | None) -> str:
    experiment = manifest.experiment
    names = {role: markdown_code(preset["name"]) for role, preset in manifest.presets.items()}
    cutoffs = experiment["llm_layers"]
    cutoffs = cutoffs if isinstance(cutoffs, list) else [cutoffs]
    layers = f"frozen, truncated after layer {max(cutoffs)}"
    layers += f" of {result.num_layers}" if result else ""
    if len(cutoffs) > 1:
        layers += f", hidden states after layers {', '.join(map(str, cutoffs))} pooled"
    description = DESCRIPTIONS[experiment["kind"]].format(
        roberta=f"RoBERTa ({names.get('slm_preset')})",
        gemma=f"Gemma ({names.get('llm_preset')}, {layers})",
        fusion=FUSION_VERBS.get(experiment["fusion"], "are combined with"),
    )
    language = "An English" if result and is_english(result) else "A"
    return f"{language} text embedder: {description}."


def _embedding(manifest: Manifest, result: Result | None) -> str:
    pooling = markdown_code(manifest.experiment["pooling"])
    embedding = f"last hidden states pooled over tokens by {pooling}"
    if _has_late_fusion(manifest):
        embedding = (
            f"RoBERTa's {embedding}, followed by the mean of Gemma's through a layer norm and a "
            "dense layer (late fusion)"
        )
    else:
        embedding = f"the {embedding}"
    text = f"The embedding, {manifest.width} numbers, is {embedding}."
    if result and result.parameters:
        text += f" A text passes {result.parameters / 1e6:,.1f} million weights."
    return text


def _has_late_fusion(manifest: Manifest) -> bool:
    # Manifests of versions before 0.6.0 do not have the setting.
    experiment = manifest.experiment
    return experiment["kind"] == "hybrid" and experiment.get("late_fusion", False)


def _training(manifest: Manifest, result: Result | None) -> str:
    if result is None:
        return "What it was trained on was not saved with it."
    if result.history:
        layers = "The projection, " if manifest.experiment["kind"] == "hybrid" else ""
        layers += "the late fusion, " if _has_late_fusion(manifest) else ""
        return (
            f"{layers}RoBERTa and a classification head were trained on {describe_data(result)} by "
            f"{_loss(result)}."
        )
    if manifest.classes:
        return f"Only a classification head was trained, on {describe_data(result)}."
    return "Nothing in it was trained."


def _loss(result: Result) -> str:
    settings = relevant_settings(result)
    if settings.get("objective") != "contrastive":
        return "cross-entropy"
    weight, temperature = settings["contrastive_weight"], settings["contrastive_temperature"]
    factor = "" if weight == 1 else f"{weight:g} times "
    return f"cross-entropy plus {factor}{CONTRASTIVE_LOSS} at temperature {temperature:g}"


def _labels(manifest: Manifest) -> str:
    labels = manifest.classes or []
    if not labels:
        return ""
    listed = [markdown_code(str(label), MAX_LABEL) for label in labels[:MAX_LABELS]]
    listed += ["…"] * (len(labels) > MAX_LABELS)
    return f"It classifies texts into {len(labels)} classes: {', '.join(listed)}."


def describe_data(result: Result) -> str:
    """The data of a result: a task's name, or that local files are no task."""
    name = result.task["name"]
    if data_source(result) != "local" or mteb_task(result):
        return escape_markdown(name)
    name = name.removesuffix(LOCAL_SUFFIX)
    kind = "file" if Path(name).suffix in FORMATS else "folder"
    return f"data of one's own (a local {kind} named {markdown_code(name)})"


def describe_gemma_source(manifest: Manifest) -> str:
    """Where Gemma's weights come from."""
    if "llm_preset" not in manifest.presets:
        return "No other model is needed."
    if manifest.contains_gemma:
        return "The truncated Gemma is in the folder: using it is subject to Gemma's terms (below)."
    name = manifest.experiment["llm_preset"]
    if name in BUILTIN_PRESETS:
        return f"`{name}` comes with the package: nothing else is downloaded."
    return (
        f"Gemma's weights are not in the folder: `load_embedder` downloads {markdown_code(name)}, "
        "for which your account must have accepted Gemma's terms; or give a folder that holds "
        "them: `eh.load_embedder(folder, llm_preset=…)`."
    )
