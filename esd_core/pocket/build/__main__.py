"""Makes a pocket from one seed, or pocket-dit on top of the shipped one.

Stages, each on top of the last: oracle, text towers, autoencoder, UNet, assembly; of pocket-dit the
transformer alone. One that is done is not done again, and one that was cut short goes on from its
last saved step.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file

from ...images.render import render
from ...models.diffusers_backend import DiffusersDenoiser
from ...models.embedded import WEIGHTS
from ...models.headless import Headless
from ...models.loading import load_denoiser, with_transformer
from .. import GUIDANCE
from ..judge import KINDS, load_oracle, make_cases, read, shown
from ..models import Oracle, build_scheduler
from ..world import SIZE
from .oracle import train_oracle
from .text import Tokenizers, Towers, tokenizers, train_text
from .transformer import train_transformer
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


def report(artist: Headless, oracle: Oracle, per_pair: int) -> None:
    """Prints how many pictures show what their held-out prompts name, for every name."""
    cases = make_cases(per_pair)
    prompts, seeds = [case.prompt for case in cases], [case.seed for case in cases]
    pictures = render(artist, prompts, seeds, 20, GUIDANCE, SIZE, SIZE)
    readings = read(oracle, cases, pictures)
    for name in KINDS:
        print(f"{name}: {shown(readings, name).get(name, 0.0):.1%}", flush=True)


def make_pocket(work: Path, out: Path, seed: int) -> None:
    pair = tokenizers()
    oracle = train_oracle(work, seed)
    towers = train_text(work, seed, pair)
    vae = train_vae(work, seed)
    unet = train_unet(work, seed, vae, towers)
    assemble(out, pair, towers, vae, unet)
    save_oracle(out, oracle)
    report(load_denoiser(str(out)), load_oracle(out / "oracle.safetensors"), per_pair=16)


def make_dit(work: Path, out: Path, seed: int) -> None:
    """Writes the transformer alone: all else of pocket-dit is the shipped pocket's."""
    pocket = StableDiffusionXLPipeline.from_pretrained(
        WEIGHTS, torch_dtype=torch.float32, add_watermarker=False
    )
    transformer = train_transformer(work, seed, DiffusersDenoiser(pocket))
    transformer.to(torch.float16).save_pretrained(out / "transformer")
    transformer.to(torch.float32)  # as it was written
    report(with_transformer(pocket, transformer), load_oracle(), per_pair=16)


MAKERS = {"pocket": make_pocket, "dit": make_dit}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m esd_core.pocket.build", description=__doc__)
    parser.add_argument("what", nargs="?", choices=tuple(MAKERS), default="pocket")
    parser.add_argument("--seed", type=int, default=0, help="all of it follows from it")
    parser.add_argument("--work", type=Path, help="for the stages (default out/WHAT)")
    parser.add_argument("--out", type=Path, help="where it is written (default out/WHAT/weights)")
    arguments = parser.parse_args()
    work = arguments.work or Path("out") / arguments.what
    out = arguments.out or work / "weights"
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    MAKERS[arguments.what](work, out, arguments.seed)
    print(f"all of it took {(time.monotonic() - started) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
