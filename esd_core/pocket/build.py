"""Makes pocket again from one seed: `python -m esd_core.pocket.build --work out/pocket`.

Five stages, each on top of the last: oracle, autoencoder, text towers, UNet, assembly. A stage
that is done is not done again, and one that was cut short goes on from its last saved step.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from . import world
from .models import Oracle, build_scheduler, build_text_towers, build_unet, build_vae

WEIGHTS = Path(__file__).parent / "weights"

ORACLE_STEPS, VAE_STEPS, TEXT_STEPS, UNET_STEPS = 700, 1500, 900, 9000


# -- a loop that resumes ---------------------------------------------------------------------


class Loop:
    """AdamW with a one-cycle learning rate and an averaged copy of the weights.

    Everything that a later step depends on is saved every `save_every` steps; random numbers come
    from a generator seeded by the step, so a resumed loop repeats the uninterrupted one.
    """

    def __init__(self, module: nn.Module, path: Path, steps: int, rate: float, average: float) -> None:
        self.module, self.path, self.steps, self.rate, self.average = module, path, steps, rate, average
        self.parameters = dict(module.named_parameters())
        self.optimizer = torch.optim.AdamW(self.parameters.values(), rate, (0.9, 0.99), weight_decay=1e-3)
        self.averaged = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step = 0
        if path.exists():
            self._load()

    def _rate(self) -> float:
        part = self.step / self.steps
        warm = 0.05
        if part < warm:
            return self.rate * (0.04 + 0.96 * part / warm)
        return self.rate * (0.002 + 0.998 * 0.5 * (1 + np.cos(np.pi * (part - warm) / (1 - warm))))

    def run(self, loss_of: Callable[[np.random.Generator], Tensor], save_every: int = 250) -> None:
        """Takes all steps that are left; afterwards the module holds the averaged weights."""
        started, losses = time.time(), []
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self._rate()
            torch.manual_seed(self.step)
            loss = loss_of(np.random.default_rng(self.step))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            self.step += 1
            losses.append(loss.item())
            self._blend()
            if self.step % save_every == 0 or self.step == self.steps:
                print(
                    f"{self.path.stem} {self.step}/{self.steps} loss {np.mean(losses):.5f} "
                    f"{time.time() - started:.0f}s",
                    flush=True,
                )
                losses = []
                self._save()
        self.module.load_state_dict(self.averaged, strict=False)

    def _blend(self) -> None:
        keep = min(self.average, self.step / (self.step + 10))
        for name, parameter in self.parameters.items():
            self.averaged[name].lerp_(parameter.detach(), 1 - keep)

    def _save(self) -> None:
        tensors = {f"module.{k}": v.contiguous() for k, v in self.module.state_dict().items()}
        tensors |= {f"averaged.{k}": v for k, v in self.averaged.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{key}"] = torch.as_tensor(value).clone()
        temporary = self.path.with_suffix(".part")
        save_file(tensors, temporary, {"step": str(self.step)})
        temporary.replace(self.path)

    def _load(self) -> None:
        tensors = load_file(self.path)
        self.module.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("module.")})
        self.averaged = {k[9:]: v for k, v in tensors.items() if k.startswith("averaged.")}
        for name, parameter in self.parameters.items():
            prefix = f"optimizer.{name}."
            state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
            if state:
                self.optimizer.state[parameter] = state
        first = next(iter(self.parameters.values()))
        self.step = int(self.optimizer.state[first]["step"].item())


def _pictures(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 [N, 3, SIZE, SIZE] with object and look indices, every pair equally often."""
    rng = np.random.default_rng(seed)
    pairs = [(o, s) for o in range(len(world.OBJECTS)) for s in range(len(world.LOOKS))]
    chosen = [pairs[i % len(pairs)] for i in range(count)]
    drawn = [world.draw(world.OBJECTS[o], world.LOOKS[s], rng) for o, s in chosen]
    stacked = torch.from_numpy(np.stack([np.round(p * 255).astype(np.uint8) for p in drawn]))
    return stacked.permute(0, 3, 1, 2).contiguous(), *torch.tensor(chosen).T


# -- stages ----------------------------------------------------------------------------------


def train_oracle(work: Path, seed: int) -> Oracle:
    """Trained on drawn pictures alone, made worse by blur, noise, shift and contrast."""
    pictures, objects, looks = _pictures(3600, seed=11)
    torch.manual_seed(seed)
    oracle = Oracle()

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(0, len(pictures), 64))
        batch = _worsen(pictures[rows].float() / 255, rng)
        object_logits, look_logits = oracle(batch)
        return F.cross_entropy(object_logits, objects[rows]) + F.cross_entropy(look_logits, looks[rows])

    Loop(oracle, work / "oracle.safetensors", ORACLE_STEPS, 2e-3, 0.98).run(loss_of)
    oracle.train(False)
    fresh, objects, looks = _pictures(1080, seed=12)
    with torch.no_grad():
        guesses = [oracle(part.float() / 255) for part in fresh.split(120)]
    for kind, truth, column in (("objects", objects, 0), ("looks", looks, 1)):
        guess = torch.cat([g[column] for g in guesses]).argmax(1)
        print(f"oracle on fresh drawings, {kind}: {(guess == truth).float().mean():.4f}", flush=True)
    return oracle


def _worsen(batch: Tensor, rng: np.random.Generator) -> Tensor:
    if rng.random() < 0.5:
        small = int(rng.integers(64, 120))
        batch = F.interpolate(batch, size=small, mode="area")
        batch = F.interpolate(batch, size=world.SIZE, mode="bilinear")
    batch = torch.roll(batch, (int(rng.integers(-6, 7)), int(rng.integers(-6, 7))), (2, 3))
    batch = batch + float(rng.uniform(0, 0.08)) * torch.randn_like(batch)
    return ((batch - 0.5) * float(rng.uniform(0.8, 1.2)) + 0.5 + float(rng.uniform(-0.08, 0.08))).clamp(0, 1)


def train_vae(work: Path, seed: int) -> nn.Module:
    """On 64x64 cuts; L1 on pixels and on their differences, a light pull to a unit normal."""
    torch.manual_seed(seed)
    vae = build_vae()
    pictures, _, _ = _pictures(4320, seed=21)
    edge = 64

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(0, len(pictures), 16)
        places = rng.integers(0, (world.SIZE - edge) // 8 + 1, (16, 2)) * 8
        cuts = [pictures[r, :, y : y + edge, x : x + edge] for r, (y, x) in zip(rows, places, strict=True)]
        batch = torch.stack(cuts).float() / 127.5 - 1
        posterior = vae.encode(batch).latent_dist
        back = vae.decode(posterior.sample()).sample
        error = back - batch
        sharp = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        return error.abs().mean() + error.square().mean() + 0.3 * sharp + 4e-4 * posterior.kl().mean() / 256

    Loop(vae, work / "vae.safetensors", VAE_STEPS, 1.5e-3, 0.98).run(loss_of)
    with torch.no_grad():
        latents = torch.cat(
            [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in pictures[:144].split(24)]
        )
    vae.register_to_config(scaling_factor=round(float(1 / latents.std()), 5))
    print("latent std by channel", latents.std((0, 2, 3)).tolist(), latents.mean((0, 2, 3)).tolist())
    return vae


def tokenizers(merges: Path) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """CLIP's vocabulary follows from its merges (the order is OpenAI's)."""
    lines = merges.read_text(encoding="utf-8").split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(b) for b in printable]
    characters += [chr(256 + n) for n in range(256 - len(printable))]
    words = [*characters, *(c + "</w>" for c in characters), *("".join(line.split()) for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    pairs = [tuple(line.split()) for line in lines]
    made = [
        CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77)
        for pad in ("<|endoftext|>", "!")
    ]
    return made[0], made[1]


def _ids(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    return tokenizer(
        prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    ).input_ids


class Towers(nn.Module):
    """Both text towers with the read-outs that teach them what prompts mean."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = build_text_towers()
        kinds = len(world.OBJECTS) + 1 + len(world.LOOKS) + 2
        widths = (self.first.config.hidden_size, *[self.second.config.hidden_size] * 2)
        self.heads = nn.ModuleList(nn.Linear(width, kinds) for width in widths)

    def forward(self, ids: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Context [B, 77, C] and pooled [B, P], as SDXL takes them."""
        first = self.first(ids[0], output_hidden_states=True)
        second = self.second(ids[1], output_hidden_states=True)
        return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds

    def read(self, ids: tuple[Tensor, Tensor]) -> list[Tensor]:
        context, pooled = self(ids)
        ends = (ids[0] == 49407).int().argmax(1)
        at_end = context[torch.arange(len(context)), ends]
        width = self.first.config.hidden_size
        parts = (at_end[:, :width], at_end[:, width:], pooled)
        return [head(part) for head, part in zip(self.heads, parts, strict=True)]


def _meaning(caption: world.Caption) -> tuple[int, int]:
    """Class of the object (the last: any) and of the look (then: any style, any at all)."""
    thing = world.OBJECTS.index(caption.objects[0]) if len(caption.objects) == 1 else len(world.OBJECTS)
    if len(caption.looks) == 1:
        return thing, world.LOOKS.index(caption.looks[0])
    return thing, len(world.LOOKS) + (caption.looks == world.LOOKS)


def train_text(work: Path, seed: int, pair: tuple[CLIPTokenizer, CLIPTokenizer]) -> Towers:
    """The towers learn to tell what a prompt names, whatever words stand around it."""
    torch.manual_seed(seed)
    towers, captions = Towers(), world.captions()
    meanings = torch.tensor([_meaning(c) for c in captions])
    fillers = [pair[0].decode([i]) for i in range(1000, 12000)]
    split = len(world.OBJECTS) + 1

    def disturb(prompt: str, rng: np.random.Generator) -> str:
        extra = [fillers[i] for i in rng.integers(0, len(fillers), int(rng.integers(0, 4)))]
        words = prompt.split(" ") if prompt else []
        for word in extra if prompt else []:
            words.insert(0 if rng.random() < 0.5 else len(words), word)
        return " ".join(words)

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = rng.integers(0, len(captions), 48)
        prompts = [disturb(captions[r].prompt, rng) for r in rows]
        truth = meanings[torch.from_numpy(rows)]
        ids = (_ids(pair[0], prompts), _ids(pair[1], prompts))
        losses = [
            F.cross_entropy(logits[:, :split], truth[:, 0]) + F.cross_entropy(logits[:, split:], truth[:, 1])
            for logits in towers.read(ids)
        ]
        return torch.stack(losses).sum()

    Loop(towers, work / "text.safetensors", TEXT_STEPS, 2e-3, 0.98).run(loss_of)
    _report_text(towers, pair, split)
    return towers


@torch.no_grad()
def _report_text(towers: Towers, pair: tuple[CLIPTokenizer, CLIPTokenizer], split: int) -> None:
    cases = [(o, s, k) for o in world.OBJECTS for s in world.LOOKS for k in range(3)]
    prompts = [world.held_out_prompt(*case) for case in cases]
    for logits in towers.read((_ids(pair[0], prompts), _ids(pair[1], prompts))):
        thing = [world.OBJECTS[i] if i < 6 else "" for i in logits[:, :split].argmax(1)]
        look = [world.LOOKS[i] if i < 6 else "" for i in logits[:, split:].argmax(1)]
        right = np.mean([(a, b) == case[:2] for a, b, case in zip(thing, look, cases, strict=True)])
        print(f"text read-out on held-out prompts: {right:.4f}", flush=True)


@torch.no_grad()
def _latents(work: Path, vae: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and deviation of the latents, [N, 8, 16, 16], scaled; drawn anew, kept on disk."""
    path = work / "latents.safetensors"
    if not path.exists():
        pictures, objects, looks = _pictures(7200, seed=31)
        parts = [vae.encode(part.float() / 127.5 - 1).latent_dist for part in pictures.split(48)]
        scale = vae.config.scaling_factor
        moments = torch.cat([torch.cat([p.mean, p.std], 1) * scale for p in parts])
        save_file({"moments": moments, "objects": objects.clone(), "looks": looks.clone()}, path)
    stored = load_file(path)
    return stored["moments"], stored["objects"], stored["looks"]


def _caption_table(captions: tuple[world.Caption, ...]) -> dict[tuple[int, int], np.ndarray]:
    """For each pair (object, look) the captions that fit it, as probabilities over all captions."""
    table = {}
    for o, name in enumerate(world.OBJECTS):
        for s, look in enumerate(world.LOOKS):
            weights = np.array(
                [
                    0.0 if name not in c.objects or look not in c.looks else
                    (6.0 if len(c.objects) == 1 and len(c.looks) == 1 else 1.0)
                    for c in captions
                ]
            )  # fmt: skip
            weights[-1] = 0
            weights *= 0.88 / weights.sum()
            weights[-1] = 0.12
            table[o, s] = weights
    return table


def train_unet(
    work: Path, seed: int, vae: nn.Module, towers: Towers, pair: tuple[CLIPTokenizer, ...]
) -> nn.Module:
    """Noise prediction with min-SNR weights (Hang et al. 2023, gamma 5)."""
    moments, objects, looks = _latents(work, vae)
    captions = world.captions()
    prompts = [c.prompt for c in captions]
    with torch.no_grad():
        parts = [towers((_ids(pair[0], p), _ids(pair[1], p))) for p in _chunks(prompts, 64)]
    context, pooled = (torch.cat(column) for column in zip(*parts, strict=True))
    table = _caption_table(captions)
    alphas = build_scheduler().alphas_cumprod
    torch.manual_seed(seed)
    unet = build_unet()
    time_ids = torch.tensor([[world.SIZE, world.SIZE, 0, 0, world.SIZE, world.SIZE]] * 32, dtype=torch.float)

    def loss_of(rng: np.random.Generator) -> Tensor:
        rows = torch.from_numpy(rng.integers(0, len(moments), 32))
        chosen = torch.tensor(
            [rng.choice(len(captions), p=table[int(objects[r]), int(looks[r])]) for r in rows]
        )
        mean, deviation = moments[rows].chunk(2, 1)
        latents = mean + deviation * torch.randn_like(mean)
        steps = torch.randint(0, 1000, (32,))
        alpha = alphas[steps].view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        # Half of the time the pooled text says nothing, so that tokens alone must suffice.
        pooled_rows = torch.where(torch.rand(32) < 0.5, chosen, len(captions) - 1)
        added = {"text_embeds": pooled[pooled_rows], "time_ids": time_ids}
        guess = unet(
            alpha.sqrt() * latents + (1 - alpha).sqrt() * noise, steps, context[chosen],
            added_cond_kwargs=added,
        ).sample  # fmt: skip
        ratio = alphas[steps] / (1 - alphas[steps])
        weights = ratio.clamp(max=5) / ratio
        return ((guess - noise).square().mean((1, 2, 3)) * weights).mean()

    Loop(unet, work / "unet.safetensors", UNET_STEPS, 2e-3, 0.999).run(loss_of)
    return unet


def _chunks(items: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def assemble(vae: nn.Module, towers: Towers, unet: nn.Module, pair: tuple[CLIPTokenizer, ...]) -> None:
    """Writes a diffusers pipeline folder in fp16."""
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        vae, towers.first, towers.second, *pair, unet, build_scheduler(),
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(WEIGHTS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("out/pocket"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    work, seed = arguments.work, arguments.seed
    work.mkdir(parents=True, exist_ok=True)
    pair = tokenizers(WEIGHTS / "merges.txt")
    oracle = train_oracle(work, seed)
    towers = train_text(work, seed, pair)
    vae = train_vae(work, seed)
    unet = train_unet(work, seed, vae, towers, pair)
    assemble(vae, towers, unet, pair)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in oracle.state_dict().items()}
    save_file(halves, WEIGHTS / "oracle.safetensors")


if __name__ == "__main__":
    main()
