"""Nodes that only the tests use: models that nothing small enough to download would give."""

import copy
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path

import comfy.clip_vision
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import folder_paths
import torch

VISION = {
    "hidden_act": "quick_gelu",
    "hidden_size": 32,
    "image_size": 32,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-5,
    "model_type": "clip_vision_model",
    "num_attention_heads": 2,
    "num_channels": 3,
    "num_hidden_layers": 3,
    "patch_size": 8,
    "projection_dim": 16,
}


class TestClipVision:
    """A CLIP_VISION in miniature, in ComfyUI's own class: its loader knows full sizes alone."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP_VISION",), "load", "test"

    def load(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "config.json")
            with open(path, "w") as file:
                json.dump(VISION, file)
            vision = comfy.clip_vision.ClipVisionModel(path)
        generator = torch.Generator().manual_seed(0)
        shapes = {name: tensor.shape for name, tensor in vision.get_sd().items()}
        state = {n: torch.randn(shape, generator=generator) / 4 for n, shape in shapes.items()}
        vision.load_sd(state)
        return (vision,)


class TestCosines:
    """Cosines of what a CLIP_VISION says of two batches, by the formula."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"vision": ("CLIP_VISION",), "one": ("IMAGE",), "two": ("IMAGE",)}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "measure", "test"

    def measure(self, vision, one, two):
        rows = [vision.encode_image(batch)["image_embeds"].double() for batch in (one, two)]
        cosines = [float(a @ b / (a @ a).sqrt() / (b @ b).sqrt()) for a, b in zip(*rows)]  # noqa: B905
        return (json.dumps(cosines),)


class Packed(torch.Tensor):
    """Numbers in a form of their own, as packs for other number formats hold them."""


class PackedOps(comfy.ops.manual_cast):
    class Linear(comfy.ops.manual_cast.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            packed = state[f"{prefix}weight"].as_subclass(Packed)
            self.weight = torch.nn.Parameter(packed, requires_grad=False)
            bias = state.get(f"{prefix}bias")
            self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)


class TestPackedLoader:
    """A UNet whose linear layers hold tensors of their own kind, as GGUF loaders' do."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "load", "test"

    def load(self, name):
        path = folder_paths.get_full_path_or_raise("diffusion_models", name)
        state = comfy.utils.load_torch_file(path)
        options = {"custom_operations": PackedOps}
        return (comfy.sd.load_diffusion_model_state_dict(state, model_options=options),)


class TestSplit:
    """A MODEL with a copy beside it, as comfy.multigpu leaves one where there are two GPUs."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "split", "test"

    def split(self, model):
        whole, beside = model.clone(), model.clone()
        beside.is_multigpu_base_clone = True
        whole.set_additional_models("multigpu", [beside])
        return (whole,)


class TestOffloaded:
    """A MODEL half of whose weights have left the device, as they do when others need the room."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "offload", "test"

    def offload(self, model):
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        (loaded,) = [m for m in comfy.model_management.current_loaded_models if m.model is model]
        assert not loaded.model_unload(model.model_size() // 2)
        places = {weight.device for weight in model.model.diffusion_model.parameters()}
        assert places == {model.load_device, model.offload_device}, places
        return (model,)


class TestLittleMemory:
    """Empties the pretend accelerator of models, and leaves so many bytes free; 0 for all of it.

    Gives the CLIP as it is where ComfyUI keeps text encoders on the CPU.
    """

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"model": ("MODEL",), "clip": ("CLIP",), "free": ("INT", {})}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "CLIP"), "limit", "test"
    whole = None

    def limit(self, model, clip, free):
        comfy.model_management.unload_all_models()
        device = torch.ops.simdev
        TestLittleMemory.whole = TestLittleMemory.whole or device.limit()
        device.set_limit(device.allocated() + free if free else TestLittleMemory.whole)
        on_cpu = clip.clone()
        on_cpu.patcher.load_device = torch.device("cpu")
        return (model, on_cpu)


class TestBrokenVae:
    """A VAE that finds no memory to decode in."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"vae": ("VAE",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("VAE",), "spoil", "test"

    def spoil(self, vae):
        broken = copy.copy(vae)
        broken.decode = self.fail
        return (broken,)

    def fail(self, *_):
        raise torch.OutOfMemoryError("out of memory, says the test")


def _beside(name):
    """A module of this folder, which the host does not look into."""
    path = Path(__file__).resolve().with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


miniatures = _beside("miniatures")
miniatures.register()


class TestWideClip:
    """A CLIP whose text is as wide as a family's."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"clip": ("CLIP",), "family": ("STRING",)}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "widen", "test"

    def widen(self, clip, family):
        return (miniatures.WideClip(clip, family),)


class TestMiniature:
    """Writes a family's miniature for the stock loaders, in a format; its name."""

    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"family": ("STRING",), "dtype": ("STRING",)}}
    )
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("STRING",), "write", "test", True

    def write(self, family, dtype):
        state = miniatures.state_of(family)
        path = os.path.join(
            folder_paths.get_folder_paths("diffusion_models")[0], f"{family}-{dtype}.safetensors"
        )
        os.makedirs(os.path.dirname(path), exist_ok=True)
        own = {name: tensor.to(getattr(torch, dtype)) for name, tensor in state.items()}
        comfy.utils.save_torch_file(own, path)
        return (os.path.basename(path),)


class TestMiniatureVAE:
    """Writes a family's VAE in miniature for the stock loader; its name."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"family": ("STRING",)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = ("STRING",), "write", "test", True

    def write(self, family):
        folder = folder_paths.get_folder_paths("vae")[0]
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"{family}.safetensors")
        comfy.utils.save_torch_file(miniatures.vae_of(family), path)
        return (os.path.basename(path),)


NODE_CLASS_MAPPINGS = {
    kind.__name__: kind
    for kind in (
        *(TestClipVision, TestCosines, TestOffloaded, TestPackedLoader, TestSplit),
        *(TestBrokenVae, TestLittleMemory, TestWideClip, TestMiniature, TestMiniatureVAE),
    )
}
