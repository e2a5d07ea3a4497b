"""A pretend accelerator, to run device code where there is none: torch.device("sim").

Its kernels are the CPU's, so that results have the CPU's bits. Its memory lies in pages that CPU
code cannot touch, starts out as NaN, is counted, has a limit, and can fail at any allocation. It
refuses what CUDA refuses: tensors and generators of another device. It is synchronous, and says
nothing about speed, fragmentation, or the numbers of real kernels.

    import simdev
    simdev.load()
"""

import hashlib
import os
import shutil
import sys
import tempfile
import types
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils import cpp_extension

SOURCES = Path(__file__).with_name("sim")
CACHE = Path(__file__).resolve().parents[1] / ".sim"
"""Beside .venv: a library for every version of the sources and of torch."""

MISSING = "no pretend accelerator"
"""How the reason begins for which its tests are skipped."""

ops = torch.ops.simdev


def missing() -> str:
    """What keeps it from being built here; empty when nothing does."""
    if not sys.platform.startswith("linux"):
        return "it is for Linux"
    if _library().is_file():
        return ""
    if not shutil.which(cpp_extension.get_cxx_compiler()):
        return "there is no C++ compiler"
    with _path_of_python():
        return "" if cpp_extension.is_ninja_available() else "there is no ninja"


def _library() -> Path:
    texts = [path.read_bytes() for path in _sources("*.[ch]*")]
    key = hashlib.sha256(b"".join([torch.__version__.encode(), *texts])).hexdigest()[:16]
    return CACHE / f"{key}.so"


def _sources(pattern: str) -> list[Path]:
    return sorted(SOURCES.glob(pattern))


@contextmanager
def _path_of_python():
    """Inside, what pip has installed beside Python, as ninja, is found."""
    before = os.environ["PATH"]
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{before}"
    try:
        yield
    finally:
        os.environ["PATH"] = before


def build() -> Path:
    """The library, compiled unless it is there already; half a minute of CPU time."""
    import fcntl  # of Unix

    library = _library()
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of all processes of a test run, one compiles
        if not library.is_file():
            _compile(library)
    return library


def _compile(library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE) as folder, _path_of_python():
        cpp_extension.load(
            "simdev",
            [str(path) for path in _sources("*.cpp")],
            extra_cflags=["-O1", "-g0", "-w"],
            build_directory=folder,
            is_python_module=False,
            with_cuda=False,
        )
        Path(folder, "simdev.so").replace(library)


def load(name: str = "sim") -> None:
    """Registers the device under a name. Before the first backward pass of the process: torch
    starts its threads for devices then."""
    library = build()
    if not hasattr(ops, "peak"):  # compiling has loaded it already
        torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend(name)
    module = _module(f"torch.{name}")
    torch._register_device_module(name, module)
    sys.modules[module.__name__] = module
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)


class _Context:
    """A device or a stream as a context: there is one of each."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass

    def wait_stream(self, stream):
        pass


def _module(name: str) -> types.ModuleType:
    """What torch.cuda is for CUDA, as far as anybody asks."""
    module = types.ModuleType(name)
    properties = types.SimpleNamespace(name="pretend accelerator", major=8, minor=6)
    half = [torch.float16, torch.bfloat16]
    for names, answer in {
        "is_available is_initialized is_bf16_supported": lambda *_, **__: True,
        "_is_in_bad_fork": lambda: False,
        "init _lazy_init synchronize empty_cache": lambda *_: None,
        "set_device manual_seed manual_seed_all": lambda _: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "device _DeviceGuard Stream stream": _Context,
        "current_stream": lambda *_: _Context(),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        "get_amp_supported_dtype": lambda: half,
        "get_device_name": lambda *_: properties.name,
        "get_device_properties": lambda *_: properties,
        "memory_allocated": lambda *_: ops.allocated(),
        "memory_reserved": lambda *_: ops.allocated() + _fragments[-1],
        "max_memory_allocated": lambda *_: ops.peak(),
        "reset_peak_memory_stats": lambda *_: ops.reset_peak(),
        "mem_get_info": lambda *_: (ops.limit() - ops.allocated() - _fragments[-1], ops.limit()),
        "memory_stats": lambda *_: _stats(),
    }.items():
        for one in names.split():
            setattr(module, one, answer)
    return module


def _stats() -> dict[str, int]:
    return {
        "active_bytes.all.current": ops.allocated(),
        "reserved_bytes.all.current": ops.allocated() + _fragments[-1],
        "inactive_split_bytes.all.current": _fragments[-1],
    }


_fragments = [0]


@contextmanager
def fragmented(size: int):
    """Inside, torch holds so many bytes more, in pieces that are too small for anything."""
    _fragments.append(size)
    try:
        yield
    finally:
        _fragments.pop()


def as_npu() -> dict[str, str]:
    """Environment of a ComfyUI whose device it is to be, as a torch_npu in miniature."""
    build()
    paths = {
        "PYTHONPATH": [SOURCES / "npu"],
        "PATH": [Path(sys.executable).parent, os.environ["PATH"]],
    }
    return {name: os.pathsep.join(map(str, parts)) for name, parts in paths.items()}


@contextmanager
def failing_after(allocations: int):
    """Inside, the allocation after so many more fails, once."""
    ops.fail_after(allocations)
    try:
        yield
    finally:
        ops.fail_after(-1)


@contextmanager
def limited(size: int):
    """Inside, the device has no more than so many bytes."""
    before = ops.limit()
    ops.set_limit(size)
    try:
        yield
    finally:
        ops.set_limit(before)
