"""Licenses of an embedder's parts: of Gemma, RoBERTa and the built-in models."""

from collections.abc import Mapping

from embedder_helpers.builtin import BUILTIN_PRESETS
from embedder_helpers.models.saving import Manifest

REPOSITORY = "https://github.com/embedder-gemma-roberta/embedder-gemma-roberta"
BUILTIN_CARD = f"{REPOSITORY}/blob/main/embedder_helpers/builtin/README.md"

# Licenses by Hugging Face's identifiers, the strictest first, and as the card words them.
GEMMA, OTHER, MIT, APACHE = "gemma", "other", "mit", "apache-2.0"
GEMMA_TERMS = "https://ai.google.dev/gemma/terms"
LICENSES = {
    GEMMA: f"[Gemma Terms of Use]({GEMMA_TERMS})",
    OTHER: "its publisher's; MIT for Meta's own RoBERTa",
    MIT: "MIT",
    APACHE: f"[Apache-2.0, with a notice]({BUILTIN_CARD})",
}


def license_of(manifest: Manifest) -> str:
    """The strictest license of the parts, by Hugging Face's identifier; OTHER if one is unknown."""
    parts = [part_license(role, preset) for role, preset in manifest.presets.items()]
    return next(license for license in LICENSES if license in parts)


def part_license(role: str, preset: Mapping[str, str]) -> str:
    """The license of a manifest's preset; a folder does not have that of a name it happens to have.

    OTHER stands for every RoBERTa but Meta's own, from a hub.
    """
    name, is_folder = preset["name"], "@" not in preset["fingerprint"]
    if name in BUILTIN_PRESETS:
        return APACHE
    if role == "llm_preset":
        return GEMMA
    known = ("facebookai/", "roberta_base_en", "roberta_large_en", "xlm_roberta_")
    is_known = name.removeprefix("hf://").lower().startswith(known)
    return MIT if is_known and not is_folder else OTHER
