"""The test vectors of `safetensors`, read out of its sources, through our readers.

    python tests/suites/safetensors_vectors.py SAFETENSORS

SAFETENSORS is a checkout of its repository.
"""

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from esd_core.errors import FileError
from esd_core.storage.reading import (
    mapped_tensors,
    read_header,
    read_metadata,
    read_tensors,
    tensor_names,
)

READERS = (
    *(read_header, read_metadata, tensor_names, read_tensors),
    lambda path: dict(mapped_tensors(read_header(path))),
)
BYTES = re.compile(r'let serialized = (b"(?:[^"\\]|\\.)*");')


def vectors(source: str) -> Iterator[tuple[str, bytes, bool]]:
    """Of the tests in src/tensor.rs: name, content, and whether it must be refused."""
    for test in source[source.index("mod tests") :].split("#[test]")[1:]:
        name = re.search(r"fn (\w+)", test)[1]
        for match in BYTES.finditer(test):
            until_next = test[match.end() :].split("let serialized")[0]
            yield name, ast.literal_eval(match[1]), "Err(SafeTensorError" in until_next


def attacks() -> Iterator[tuple[str, bytes, bool]]:
    """As attacks/safetensors_abuse_attempt_*.py make them, and test_json_attack."""
    yield "length beyond the file", (1000).to_bytes(8, "little") + _in_one_place(1, 2)[8:], True
    for count, edge in ((10, 2), (100_000, 200), (2_000_000, 2)):
        yield f"{count} tensors in one place", _in_one_place(count, edge), True


def _in_one_place(count: int, edge: int) -> bytes:
    one = {"dtype": "F32", "shape": [edge, edge], "data_offsets": [0, 4 * edge * edge]}
    header = json.dumps({f"weight_{i}": one for i in range(count)}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * edge * edge)


def is_refused(reader, path: Path) -> bool:
    try:
        reader(path)
    except FileError:
        return True
    return False


def main() -> None:
    source = Path(sys.argv[1], "safetensors", "src", "tensor.rs").read_text()
    every = [*vectors(source), *attacks()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vector.safetensors"
        for name, content, refused in every:
            path.write_bytes(content)
            assert all(is_refused(reader, path) == refused for reader in READERS), name
    print(f"{len(every)} vectors, by {len(READERS)} readers each: all as there")


if __name__ == "__main__":
    main()
