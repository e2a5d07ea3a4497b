"""Makes a pocket from one seed.

Stages, each on top of the last: oracle, text towers, autoencoder, UNet, assembly. One that is done
is not done again, and one that was cut short goes on from its last saved step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from ...images.render import render
from ...models.loading import load_denoiser
from .. import GUIDANCE
from ..judge import KINDS, load_oracle, make_cases, read, shown
from ..models import Oracle, build_scheduler
from ..world import SIZE
from .oracle import train_oracle
from .text import Tokenizers, Towers, tokenizers, train_text
from .unet import train_unet
from .vae import train_vae


def assemble(
    out: Path, pair: Tokenizers, towers: Towers, vae: AutoencoderKL, unet: UNet2DConditionModel
) -> None:
    """Writes a diffusers pipeline folder in fp16."""
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=towers.first,
        text_encoder_2=towers.second,
        tokenizer=pair[0],
        tokenizer_2=pair[1],
        unet=unet,
        scheduler=build_scheduler(),
        # SDXL's own unconditional is zeros; pocket was trained with the encoded empty prompt.
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out)


def save_oracle(out: Path, oracle: Oracle) -> None:
    """Writes the oracle beside the pipeline, in fp16."""
    state = oracle.state_dict().items()
    halves = {key: v.half() if v.is_floating_point() else v for key, v in state}
    save_file(halves, out / "oracle.safetensors")


def report(out: Path, per_pair: int) -> None:
    """Prints how many pictures show what their held-out prompts name, for every name."""
    cases, denoiser = make_cases(per_pair), load_denoiser(str(out))
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    pictures = render(denoiser, prompts, seeds, 20, GUIDANCE, SIZE, SIZE)
    readings = read(load_oracle(out / "oracle.safetensors"), cases, pictures)
    for name in KINDS:
        print(f"{name}: {shown(readings, name).get(name, 0.0):.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m esd_core.pocket.build", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="all of pocket follows from it")
    parser.add_argument("--work", type=Path, default=Path("out/pocket"), help="for the stages")
    parser.add_argument(
        "--out", type=Path, default=Path("out/pocket/weights"), help="where pocket is written"
    )
    arguments = parser.parse_args()
    work, out, seed = arguments.work, arguments.out, arguments.seed
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    pair = tokenizers()
    oracle = train_oracle(work, seed)
    towers = train_text(work, seed, pair)
    vae = train_vae(work, seed)
    unet = train_unet(work, seed, vae, towers)
    assemble(out, pair, towers, vae, unet)
    save_oracle(out, oracle)
    report(out, per_pair=16)
    print(f"all of it took {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
