"""The config.json of a preset, which may be a stranger's: read and checked before it is used.

A preset is in Keras's format, with a `class_name` and the model's `config`, or in Hugging Face's.
"""

from pathlib import Path
from typing import Any

from embedder_helpers.errors import InputError, show
from embedder_helpers.models.preset_files import check_datasets, preset_files
from embedder_helpers.utils.json_files import read_json

# The architectures that each role accepts, as Keras and as Hugging Face spell them.
FAMILIES = {
    "llm_preset": (
        "Gemma 1, 2 or 3 text model",
        {"GemmaBackbone", "Gemma3Backbone", "gemma", "gemma2", "gemma3_text"},
    ),
    "slm_preset": (
        "RoBERTa model",
        {"RobertaBackbone", "XLMRobertaBackbone", "roberta", "xlm-roberta"},
    ),
    # In Keras's format; sentence-transformers knows what it can load in Hugging Face's.
    "encoder_preset": (
        "text encoder of keras-hub",
        {
            "AlbertBackbone", "BertBackbone", "DebertaV3Backbone", "DistilBertBackbone",
            "ElectraBackbone", "GemmaBackbone", "Gemma3Backbone", "RobertaBackbone",
            "XLMRobertaBackbone",
        },
    ),
}  # fmt: skip

# What config.json says in keras-hub's terms: sizes that there must be, and options that there may
# be. Sizes far beyond those of any model would take memory without end.
SIZES = {
    "llm_preset": (
        "vocabulary_size", "num_layers", "num_query_heads", "num_key_value_heads", "hidden_dim",
        "intermediate_dim", "head_dim",
    ),
    "slm_preset": (
        "vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim",
        "max_sequence_length",
    ),
    "encoder_preset": ("vocabulary_size", "num_layers", "hidden_dim", "intermediate_dim"),
}  # fmt: skip
MULTIPLES = {  # sizes that are multiples of others, or of a number
    "llm_preset": (("num_query_heads", "num_key_value_heads"), ("head_dim", 2)),
    "slm_preset": (("hidden_dim", "num_heads"),),
    "encoder_preset": (),
}
OPTIONS = (
    "use_post_attention_norm", "use_post_ffw_norm", "use_query_key_norm", "layer_norm_epsilon",
    "use_sliding_window_attention", "use_bidirectional_attention", "attention_logit_soft_cap",
    "local_rope_scaling_factor", "global_rope_scaling_factor", "sliding_window_size",
)  # fmt: skip
MAX_SIZE = 10**7
MAX_LAYERS = 1000
MAX_CONFIG_BYTES = 2**20
WEIGHTS_PER_BYTE = 4  # at most, in a file: they have 4 bits or more, and may be compressed


def read_config(role: str, name: str, path: Path) -> dict[str, Any]:
    """Read a config.json.

    Args:
        role: `llm_preset`, `slm_preset` or `encoder_preset`.
        name: name of the preset, for messages.
        path: of the file.

    Raises:
        InputError: it cannot be read, is of another family, or has sizes or options in keras-hub's
            terms that no such model has.
    """
    try:
        config = read_json(path, MAX_CONFIG_BYTES, finite=False)
        shape = model_shape(config) if isinstance(config, dict) else None
        if not isinstance(shape, dict):
            raise ValueError("it describes no model")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{role}: {show(str(path.parent))} is not a preset: it has no readable config.json "
            f"({reason}), so give another folder, or copy the whole preset again"
        ) from None
    if role == "encoder_preset" and "class_name" not in config:
        return config
    architecture = config.get("class_name") or config.get("model_type")
    registered = str(config.get("registered_name") or architecture)  # the class that is loaded
    family, architectures = FAMILIES[role]
    is_known = isinstance(architecture, str) and architecture in architectures
    if not is_known or registered.rpartition(">")[2] != architecture or shape.get("vision_encoder"):
        found = show(registered if is_known else architecture).strip("'")
        raise InputError(f"{role} {show(name)} is a {found}, but a {family} is needed")
    if "class_name" in config:
        for key in SIZES[role]:
            read_size(role, name, shape, key)
        for key, divisor in MULTIPLES[role]:
            if shape[key] % (shape[divisor] if isinstance(divisor, str) else divisor):
                raise _implausible(role, name, key, shape[key])
        for key in OPTIONS:
            _check_option(role, name, shape, key)
    return config


def check_weights(role: str, name: str, folder: Path, shape: dict[str, Any]) -> None:
    """Check that a folder's files can hold the model that would be made of it, and do so.

    Raises:
        InputError: they cannot.
    """
    suffixes = (".h5", ".safetensors")
    files = [path for path in preset_files(folder) if path.suffix in suffixes]
    for path in files:
        if path.suffix == ".h5":
            check_datasets(path)
    size = sum(path.stat().st_size for path in files)
    table = shape["vocabulary_size"] * shape["hidden_dim"]
    least = table + shape["num_layers"] * shape["hidden_dim"] * shape["intermediate_dim"]
    if least > WEIGHTS_PER_BYTE * size:
        raise InputError(
            f"{role} {show(name)}: its config.json describes a model of over {least} weights, but "
            f"its files of weights have {size} bytes: copy the whole preset again, or use another "
            "one"
        )


def model_shape(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config.json that holds the model's sizes and options."""
    return config.get("config") if "class_name" in config else config


def read_size(role: str, name: str, shape: dict[str, Any], key: str) -> int:
    """A size in a config.json.

    Raises:
        InputError: it is missing, or no number that a model can have.
    """
    value, most = shape.get(key), MAX_LAYERS if "layers" in key else MAX_SIZE
    least = 3 if key == "max_position_embeddings" else 1  # the first two are no token's
    if type(value) is int and least <= value <= most:
        return value
    found = f"{key} is {show(value)}" if key in shape else f"there is no {key}"
    raise InputError(
        f"{role} {show(name)}: {found} in its config.json, where a whole number from {least} to "
        f"{most} is needed: copy the whole preset again, or use another one"
    )


def _check_option(role: str, name: str, shape: dict[str, Any], key: str) -> None:
    """Raises InputError if an option of a config.json is of another type, or absurd."""
    value = shape.get(key)
    if key.startswith("use_"):
        is_valid = value is None or isinstance(value, bool)
    else:
        is_valid = value is None or (type(value) in (int, float) and 0 < value <= MAX_SIZE)
    if not is_valid:
        raise _implausible(role, name, key, value)


def _implausible(role: str, name: str, key: str, value: Any) -> InputError:
    return InputError(
        f"{role} {show(name)}: {key} is {show(value)} in its config.json, which no such model has: "
        "copy the whole preset again, or use another one"
    )
