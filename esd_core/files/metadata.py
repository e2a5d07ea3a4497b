"""What an erasure file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..config.settings import ErasureConfig
from ..models.architectures import Architecture

if TYPE_CHECKING:  # it needs torch, and the command line reads these names without
    from ..method.terms import Term

FORMAT = "esd-erasure-1"
PACK_VERSION = "0.1.0"
CONVENTION = (
    "paper: target = anchor - eta * (concept - empty); the official scripts' eta is this + 1"
)


class Key:
    """The names of the entries."""

    FORMAT = "esd.format"
    VERSION = "esd.version"
    CONCEPTS = "esd.concepts"
    ANCHORS = "esd.anchors"
    METHOD = "esd.method"
    CONTEXTS, PRESERVED = "esd.contexts", "esd.preserved"
    STEPS = "esd.steps"
    CONFIG, DIGEST = "esd.config", "esd.config_digest"
    ARCHITECTURE = "esd.base_architecture"
    FINGERPRINT = "esd.base_fingerprint"
    PROBES = "esd.probes"
    STRENGTH = "esd.strength"
    """Of an export; 1 goes without saying."""
    UNET_CONFIG = "esd.unet_config"
    """Diffusers' config, in files of whole UNets: shapes do not show all of it."""
    LORA_KEPT, LORA_KEPT_BY_LAYER = "esd.lora_kept", "esd.lora_kept_by_layer"
    RUN, LOSSES, ENDING = "esd.run", "esd.losses", "esd.ending"
    """From the nodes alone: which inputs made a file and how the run went, so that the same inputs
    need no second run."""
    WORDS = "trained_words"
    COVERS = "ssmd_cover_images"
    """JSON: a list of picture files in base64."""


def describe(
    architecture: Architecture,
    config: ErasureConfig,
    terms: Sequence[Term],
    steps: int,
    probes: Mapping[str, Any],
    fingerprint: str,
) -> dict[str, str]:
    """What was erased from what and how; deterministic: no times, machines or paths.

    terms: those of the concepts.
    """
    anchors = {str(term.concept): term.anchor for term in terms}
    names = list(anchors)
    title = ", ".join(names)
    return {
        "format": "pt",
        Key.FORMAT: FORMAT,
        Key.VERSION: PACK_VERSION,
        Key.CONCEPTS: json.dumps(names),
        Key.ANCHORS: json.dumps(anchors),
        Key.METHOD: config.method,
        Key.CONTEXTS: json.dumps(config.contexts),
        Key.PRESERVED: json.dumps(preserved(config)),
        "esd.negative_guidance": str(config.negative_guidance),
        "esd.negative_guidance_convention": CONVENTION,
        Key.STEPS: str(steps),
        Key.CONFIG: config.to_toml(),
        Key.DIGEST: config.digest(),
        Key.ARCHITECTURE: architecture.name,
        Key.PROBES: json.dumps(probes, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture.modelspec}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": f"{title} erased ({config.method})",
        "modelspec.description": f"Erases {title} by Erased Stable Diffusion (arXiv 2303.07345).",
        "ss_base_model_version": architecture.ss_version,
        Key.WORDS: json.dumps(names),
        Key.FINGERPRINT: fingerprint,
    }


def preserved(config: ErasureConfig) -> list[str]:
    """What a run keeps in place: prompts that it names, and in brackets what comes by itself."""
    automatic = {
        "(the empty prompt)": config.preserve_empty,
        "(contexts without the concept)": config.preserve_empty and bool(config.contexts),
        "(generic words in the same contexts)": bool(config.contexts),
    }
    if not config.preserve_weight:
        return []
    return [*config.preserve, *(what for what, is_kept in automatic.items() if is_kept)]
