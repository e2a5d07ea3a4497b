"""Runs in ComfyUI's own process: gradients of miniatures in float64, for test_family_gradients.py.

    python gradients.py COMFYUI PACK NAMES.json ANSWER.json

By family: the worst relative errors of the backend's gradients against those of the host's network
alone, without checkpointing, whose in-place additions torch is told to undo; and how far the slope
along those is from a difference of two values. Prompts with as many tokens go through together, as
the host batches them: it rounds what the network predicts to float32, which shows where sums are in
another order.
"""

import json
import sys
from contextlib import contextmanager
from pathlib import Path

from host_process import enter

comfyui, pack, question, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_management  # noqa: E402
import comfy.sampler_helpers  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import miniatures  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import attention_pytorch  # noqa: E402
from esd_pack.nodes.host import pocket, session, text  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402

PROMPTS = ["a house in the style of Van Gogh", "a boat"]
EDGE, LEVELS = 128, [0.9, 0.4]
STEP = 1e-4


def loaded(name):
    state = miniatures.state_of(name)
    return comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": torch.float64})


def inputs(denoiser):
    generator = torch.Generator().manual_seed(1)
    shape = (len(PROMPTS), *denoiser.latent_shape(EDGE, EDGE))
    x, weigh = (torch.randn(shape, generator=generator).double() for _ in range(2))
    return x, torch.tensor(LEVELS).double(), weigh


def gradients_of(masters):
    """Zeros where there are none: what a network's last block makes of text is thrown away."""
    return {n: torch.zeros_like(m) if m.grad is None else m.grad for n, m in masters.items()}


def relative(one, other):
    return float((one - other).norm() / other.norm()) if other.norm() else float(one.norm())


def ours(name, clip):
    """Gradients with checkpointing and without, and how far predictions with either are from the
    teacher's; the inputs too."""
    found = {}
    with torch.inference_mode(), session.borrowed(loaded(name)) as own:  # as the server runs nodes
        denoiser = HostDenoiser(own, text.Texts(clip))
        rows = denoiser.encode(PROMPTS, EDGE, EDGE)
        x, sigma, weigh = inputs(denoiser)
        base = denoiser.parameters()
        train = [*filter(denoiser.architecture.layers["esd-all"], base)]
        with torch.no_grad():
            teacher = denoiser.predict(x, sigma, rows)
        for is_checkpointed in (False, True):
            masters = {n: base[n].detach().clone().requires_grad_() for n in train}
            with denoiser.checkpointed(is_checkpointed), denoiser.swapped(masters):
                predicted = denoiser.predict(x, sigma, rows)
                (predicted * weigh).sum().backward()
            found[is_checkpointed] = gradients_of(masters)
            found["moved", is_checkpointed] = relative(predicted.detach(), teacher)
    return found, (x, sigma, weigh), train, teacher


@contextmanager
def kernels_with_gradients():
    """Anima calls one that has none, whose package has the same in torch's own functions."""
    try:
        import comfy_kitchen
        from comfy_kitchen.backends.eager import rope
    except ImportError:  # with older hosts, which have no such kernels
        yield
        return
    before = comfy_kitchen.rms_rope_split_half
    comfy_kitchen.rms_rope_split_half = rope.rms_rope_split_half
    yield
    comfy_kitchen.rms_rope_split_half = before


@kernels_with_gradients()
def reference(name, clip, given, train):
    """The same of the network as it is loaded."""
    x, sigma, weigh = given
    model = loaded(name).model
    network = model.diffusion_model
    with torch.inference_mode():
        conds = [whole(model, clip, prompt, x[:1]) for prompt in PROMPTS]
    masters = {n: p for n, p in network.named_parameters() if n in set(train)}
    for parameter in masters.values():
        parameter.requires_grad_(True)
    comfy.model_management.in_training = True

    def directions():
        batches = together(conds)
        size = len(conds) // len(batches)
        found = []
        for part, level, cond in zip(x.split(size), sigma.split(size), batches, strict=True):
            options = {
                "optimized_attention_override": lambda _, *a, **k: attention_pytorch(*a, **k)
            }
            denoised = model.apply_model(part.clone(), level, transformer_options=options, **cond)
            found.append((part - denoised) / level.view(-1, *[1] * (x.ndim - 1)))
        return torch.cat(found)

    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        predicted = directions()
        (predicted * weigh).sum().backward()
    gradients = gradients_of(masters)
    slope, measured = along(masters, gradients, lambda: float((directions() * weigh).sum()))
    comfy.model_management.in_training = False
    return gradients, predicted.detach(), abs(slope - measured) / abs(measured)


def attention(_, *tensors, **options):
    return attention_pytorch(*tensors, **options)


def whole(model, clip, prompt, latent):
    """The host's condition, as its samplers make it, for the guidance that targets have."""
    found = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True, return_dict=True)
    states = found.pop("cond")
    found |= (
        {"guidance": 1.0}
        if "guidance_in.in_layer.weight" in dict(model.diffusion_model.named_parameters())
        else {}
    )
    cond = comfy.sampler_helpers.convert_cond([[states, found]])
    made = comfy.samplers.encode_model_conds(
        model.extra_conds, cond, torch.zeros_like(latent), latent.device, "positive"
    )
    conds = {n: c.process_cond(1, area=None).cond for n, c in made[0]["model_conds"].items()}
    return {n: text.own(c) for n, c in conds.items()}


def together(conds):
    """One batch, where the states have one length; else each alone."""
    tensors = {n for n, value in conds[0].items() if isinstance(value, torch.Tensor)}
    if any(len({cond[n].shape for cond in conds}) > 1 for n in tensors):
        return conds
    return [conds[0] | {n: torch.cat([cond[n] for cond in conds]) for n in tensors}]


def along(masters, gradients, value):
    """The slope in the direction of the gradient, by the gradient and by differences."""
    slope = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
    ways = {n: g / slope for n, g in gradients.items()}
    values = []
    with torch.no_grad():
        for step in (STEP, -2 * STEP):
            for name, master in masters.items():
                master += step * ways[name]
            values.append(value())
    return slope, (values[0] - values[1]) / (2 * STEP)


miniatures.register()
told = {}
for family in json.loads(question.read_text()):
    with torch.inference_mode():
        wide = miniatures.WideClip(pocket.load_clip(), family)
    found, given, train, teacher = ours(family, wide)
    expected, predicted, difference = reference(family, wide, given, train)
    told[family] = {
        "trained": len(train),
        "still": [n for n in train if not expected[n].norm()],
        "prediction": relative(teacher, predicted),
        "moved": max(found["moved", False], found["moved", True]),
        "plain": max(relative(found[False][n], expected[n]) for n in train),
        "checkpointed": max(relative(found[True][n], expected[n]) for n in train),
        "differences": difference,
    }
answer.write_text(json.dumps(told))
