"""The text side of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .denoiser import Conditioning

Texts = Callable[[Sequence[str]], Conditioning]
"""Encodes prompts, a row each."""

_FLUX_TOKENS = {True: 512, False: 256}
"""Of T5, for dev and for schnell, as black-forest-labs/flux loads it."""


def sdxl_texts(pipeline: Any, prompts: Sequence[str]) -> Conditioning:
    """Of a StableDiffusionXLPipeline: its two towers, side by side, and the second's pooled."""
    context, _, pooled, _ = pipeline.encode_prompt(list(prompts), do_classifier_free_guidance=False)
    return Conditioning(context, pooled)


def sd3_texts(pipeline: Any, prompts: Sequence[str]) -> Conditioning:
    """Of a StableDiffusion3Pipeline, with T5 or without."""
    context, _, pooled, _ = pipeline.encode_prompt(
        list(prompts), None, None, do_classifier_free_guidance=False
    )
    if pipeline.text_encoder_3 is None:
        # The pipeline puts zeros in T5's place, to which the network attends. ComfyUI has no
        # such tokens, and an erasure is to mean the same in both.
        context = context[:, : pipeline.tokenizer_max_length]
    return Conditioning(context, pooled)


def flux_texts(pipeline: Any, prompts: Sequence[str]) -> Conditioning:
    """Of a FluxPipeline: T5's states, and CLIP's pooled text."""
    tokens = _FLUX_TOKENS[pipeline.transformer.config.guidance_embeds]
    context, pooled, _ = pipeline.encode_prompt(list(prompts), max_sequence_length=tokens)
    return Conditioning(context, pooled)
