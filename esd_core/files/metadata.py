"""What an erasure file says of itself."""

from __future__ import annotations

import json

from ..config.settings import ErasureConfig
from ..method.probes import ProbeReport
from ..models.denoiser import Denoiser

FORMAT = "esd-erasure-1"
PACK_VERSION = "0.1.0"
CONVENTION = (
    "paper: target = anchor - eta * (concept - empty); the official scripts' eta is this + 1"
)


def describe(
    denoiser: Denoiser, config: ErasureConfig, steps: int, probes: ProbeReport | None
) -> dict[str, str]:
    """What was erased from what and how; nothing of time or place.

    The fingerprint of the base is the caller's to add.
    """
    concepts = config.concepts
    names = ", ".join(c.name for c in concepts)
    return {
        "format": "pt",
        "esd.format": FORMAT,
        "esd.version": PACK_VERSION,
        "esd.concepts": json.dumps([c.name for c in concepts]),
        "esd.anchors": json.dumps({c.name: c.target_base for c in concepts}),
        "esd.method": config.method,
        "esd.negative_guidance": str(config.negative_guidance),
        "esd.negative_guidance_convention": CONVENTION,
        "esd.steps": str(steps),
        "esd.config": config.to_toml(),
        "esd.config_digest": config.digest(),
        "esd.base_architecture": denoiser.architecture.name,
        "esd.probes": json.dumps(probes.as_dict() if probes else {}, sort_keys=True),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{denoiser.architecture.modelspec}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": f"{names} erased ({config.method})",
        "modelspec.description": f"Erases {names} by Erased Stable Diffusion (arXiv 2303.07345).",
        "ss_base_model_version": denoiser.architecture.ss_version,
        "trained_words": json.dumps([c.name for c in concepts]),
    }
