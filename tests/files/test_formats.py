"""The table of formats, and what reading a file takes."""

import subprocess
import sys
from typing import get_args

from esd_core.cli.export import Form
from esd_core.files.formats import FORMATS, WRITTEN

READ = """
import sys
import esd_core.files.open, esd_core.files.native, esd_core.files.apply
print(*sys.modules)
"""
TABLE = "import sys, esd_core.files.formats, esd_core.files.metadata; print(*sys.modules)"


def modules(code: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_reading_an_erasure_takes_nothing_of_the_training():
    found = {name for name in modules(READ) if name.startswith("esd_core.")}
    assert "esd_core.files.open" in found
    assert not {name for name in found if name.startswith(("esd_core.method", "esd_core.training"))}


def test_the_table_is_free_of_torch():
    assert "torch" not in modules(TABLE)


def test_the_command_and_the_node_write_the_same_formats():
    written = set(WRITTEN.values())
    assert set(get_args(Form.model_fields["to"].annotation)) == written
    assert written <= FORMATS.keys()
    assert list(WRITTEN) == ["erasure", "LoRA", "UNet", "diffusers", "official"]
