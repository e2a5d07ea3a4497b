"""Runs in ComfyUI's own process: which kernels a borrowed MODEL computes with, for test_kernels.py.

    python eight_bits.py COMFYUI PACK QUESTION.json ANSWER.json

The MODEL is pocket with fp8 weights that are multiplied in 8 bits, as they are on a card that can,
where ComfyUI was started with --fast, here with fp16_accumulation as well.
"""

import json
import sys
from pathlib import Path

from host_process import enter

comfyui, pack, _, answer = map(Path, sys.argv[1:])
enter(comfyui, pack)

import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import torch  # noqa: E402
from esd_pack.esd_core.config.settings import ErasureConfig  # noqa: E402
from esd_pack.esd_core.training.student import make_student  # noqa: E402
from esd_pack.nodes.host import pocket, session, text  # noqa: E402
from esd_pack.nodes.host.denoiser import HostDenoiser  # noqa: E402

LAYER = "middle_block.1.transformer_blocks.0.attn2.to_q"


def in_eight_bits():
    weights = pocket.load_model("pocket").model.diffusion_model.state_dict()
    kernels = {"custom_operations": comfy.ops.fp8_ops, "dtype": torch.float8_e4m3fn}
    model = comfy.sd.load_diffusion_model_state_dict(weights, model_options=kernels)
    model.model.diffusion_model.eval()  # 0.3.64 does not, and takes such kernels after that alone
    return model


def flags():
    """What ComfyUI calls `in_training`, which older ones do not have; and whether fp16 sums lose
    digits."""
    is_lossy = torch.backends.cuda.matmul.allow_fp16_accumulation
    return getattr(comfy.model_management, "in_training", None), is_lossy


def moved(denoiser):
    """By how much the student differs from the teacher before any training."""
    rows = denoiser.encode(["a house"], 64, 64)
    x, sigma = torch.ones(1, 4, 8, 8), torch.ones(1)
    student = make_student(denoiser, ErasureConfig.from_mapping({"concepts": ["Van Gogh"]}))
    with torch.no_grad():
        teacher = denoiser.predict(x, sigma, rows)
        with denoiser.swapped(student.tensors()):
            return float((denoiser.predict(x, sigma, rows) - teacher).abs().max())


torch.backends.cuda.matmul.allow_fp16_accumulation = True
with torch.inference_mode():  # as the server runs nodes
    model, clip = in_eight_bits(), pocket.load_clip()
    layer = model.model.diffusion_model.get_submodule(LAYER)
    given = torch.randn(1, 4, layer.in_features, generator=torch.Generator().manual_seed(0))
    outside, told = layer(given.clone()), {"outside": flags()}
    with session.borrowed(model) as own:
        inside = layer(given.clone())
        told |= {"inside": flags(), "moved": moved(HostDenoiser(own, text.Texts(clip)))}
    after = layer(given.clone())
told |= {"after": flags(), "restored": torch.equal(after, outside)}
told["apart"] = float((inside - outside).norm() / inside.norm())
answer.write_text(json.dumps(told))
