"""One ComfyUI for all tests of the nodes; without one they are skipped, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comfy_server import NO_BROWSER, VARIABLE, Server, find_comfyui, running

HERE = Path(__file__).parent
_COMFYUI = find_comfyui()
_MISSING = "no ComfyUI"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.host)
            if _COMFYUI is None:
                item.add_marker(pytest.mark.skip(reason=_MISSING))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(_MISSING in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.section("ComfyUI was not found", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            f"{count} tests of the nodes were SKIPPED: `make host` installs a ComfyUI, or set "
            f"{VARIABLE} to the folder of one.",
            red=True,
            bold=True,
        )
    count = sum(NO_BROWSER in str(report.longrepr) for report in skipped)
    if count:
        terminalreporter.section("no browser to drive", sep="!", red=True, bold=True)
        terminalreporter.write_line(
            f"{count} tests of the page were SKIPPED: they need Chromium, node, and `npm install` "
            "in tests/page.",
            red=True,
            bold=True,
        )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    assert _COMFYUI
    base = tmp_path_factory.mktemp("comfyui") / "base"
    with running(_COMFYUI, base, HERE / "extra_nodes.py") as started:
        yield started
