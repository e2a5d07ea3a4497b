"""A real ComfyUI, started for the tests with this pack linked in, and spoken to over HTTP."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import websocket

PACK = Path(__file__).resolve().parents[2]
PACK_NAME = "esd-concept-erasure"
"""Of the folder that it has in custom_nodes/."""
VARIABLE = "COMFYUI_PATH"
NO_BROWSER = "no browser"
"""Why a test of the page is skipped."""
PYTHON_VARIABLE = "COMFYUI_PYTHON"
START_SECONDS, RUN_SECONDS = 180, 300

Prompt = dict[str, dict[str, Any]]
"""The API format: nodes by id."""


def find_comfyui() -> Path | None:
    """COMFYUI_PATH, then around the pack, then comfy-cli's place, then ~/ComfyUI."""
    named = os.environ.get(VARIABLE)
    around = [PACK.parents[1]] if PACK.parent.name == "custom_nodes" else []
    places = [Path(named)] if named else [*around, *(Path.home() / p for p in _HOMES)]
    return next((place for place in places if (place / "main.py").is_file()), None)


_HOMES = ("comfy/ComfyUI", "ComfyUI")


@dataclass
class Run:
    """What came of a prompt: messages of the websocket in order, and the entry in /history."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    history: dict[str, Any] = field(default_factory=dict)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [m["data"] for m in self.messages if m["type"] == kind]

    @property
    def ending(self) -> str:
        """execution_success, execution_error or execution_interrupted."""
        return self.messages[-1]["type"]

    @property
    def error(self) -> str:
        """The sentence that the dialog shows; "" when there was none."""
        errors = self.of("execution_error")
        return errors[0]["exception_message"].strip() if errors else ""

    def output(self, node: str) -> dict[str, Any]:
        """What a node has sent to the page."""
        return self.history["outputs"][node]

    def text(self, node: str) -> str:
        return self.output(node)["text"][0]

    def executed(self) -> set[str]:
        """The nodes that were not taken from the cache."""
        return {m["node"] for m in self.of("executing") if m["node"]}


class Refused(Exception):
    """What /prompt says of a prompt that does not validate: every node's errors as text."""


class Server:
    def __init__(self, base: Path, port: int, log: Path) -> None:
        self.base, self.log = base, log
        self.address = f"127.0.0.1:{port}"
        self.client = uuid.uuid4().hex
        self.pid, self.patience = 0, RUN_SECONDS
        self.draws = False  # whether it says that it draws runs itself, as the pack's page does

    def bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return bytes(answer.read())

    def text(self, path: str) -> str:
        return self.bytes(path).decode()

    def get(self, path: str) -> Any:
        return json.loads(self.text(path))

    def post(self, path: str, content: Any) -> Any:
        data = json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def run(self, prompt: Prompt, on_text: Callable[[str], None] | None = None) -> Run:
        """Queues a prompt and listens until it has ended.

        Args:
            on_text: called with every line of progress, while the prompt runs.

        Raises:
            Refused: it does not validate.
        """
        return self.run_all([prompt], on_text)[0]

    def run_all(
        self, prompts: Sequence[Prompt], on_text: Callable[[str], None] | None = None
    ) -> list[Run]:
        """As `run`, for prompts that wait for each other in the queue."""
        link = websocket.create_connection(
            f"ws://{self.address}/ws?clientId={self.client}", timeout=self.patience
        )
        try:
            if self.draws:
                self.post("/esd/draws", {"client": self.client})
            queued = [self._queue(prompt) for prompt in prompts]
            runs = [self._listen(link, one, on_text) for one in queued]
        finally:
            link.close()
        for run, one in zip(runs, queued, strict=True):
            run.history = self._history(one)
        return runs

    def _history(self, queued: str) -> dict[str, Any]:
        """The entry of a prompt that has ended, which is written a moment after it says so."""
        for _ in range(100):
            entry = self.get(f"/history/{queued}").get(queued)
            if entry:
                return dict(entry)
            time.sleep(0.1)
        raise RuntimeError(f"ComfyUI has no history of {queued}")

    def _queue(self, prompt: Prompt) -> str:
        try:
            queued = self.post("/prompt", {"prompt": prompt, "client_id": self.client})
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            errors = [e for node in answer["node_errors"].values() for e in node["errors"]]
            told = [f"{e['message']}: {e['details']}" for e in errors or [answer["error"]]]
            raise Refused("\n".join(told)) from error
        return str(queued["prompt_id"])

    def _listen(
        self, link: websocket.WebSocket, queued: str, on_text: Callable[[str], None] | None
    ) -> Run:
        run = Run()
        while True:
            message = link.recv()
            if isinstance(message, bytes):
                _take_binary(run, message, on_text)
                continue
            content = json.loads(message)
            if content.get("data", {}).get("prompt_id", queued) != queued:
                continue
            run.messages.append(content)
            if content["type"] in _ENDINGS:
                return run

    def interrupt(self) -> None:
        self.post("/interrupt", {})


_ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4


def _take_binary(run: Run, message: bytes, on_text: Callable[[str], None] | None) -> None:
    (kind,) = struct.unpack(">I", message[:4])
    if kind == _TEXT:
        (length,) = struct.unpack(">I", message[4:8])
        run.texts.append(message[8 + length :].decode())
        if on_text:
            on_text(run.texts[-1])
    elif kind == _PREVIEW:
        run.previews.append(message[8:])
    elif kind == _PREVIEW_WITH_METADATA:
        (length,) = struct.unpack(">I", message[4:8])
        run.previews.append(message[8 + length :])


@contextmanager
def running(
    comfyui: Path,
    base: Path,
    *further_nodes: Path,
    flags: Sequence[str] = (),
    is_cpu: bool = True,
    threads: int = 1,
    world: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Starts main.py on a free port with `base` as its world; ends it at the end.

    world: variables of its environment, beside this process's own.
    """
    custom_nodes = base / "custom_nodes"
    custom_nodes.mkdir(parents=True, exist_ok=True)
    for name, path in ((PACK_NAME, PACK), *((path.name, path) for path in further_nodes)):
        (custom_nodes / name).unlink(missing_ok=True)
        (custom_nodes / name).symlink_to(path)
    server = Server(base, _free_port(), base / "server.log")
    command = [
        os.environ.get(PYTHON_VARIABLE, sys.executable),
        "main.py",
        *(["--cpu"] if is_cpu else []),
    ]
    command += ["--port", server.address.rpartition(":")[2], "--base-directory", str(base)]
    command += ["--disable-api-nodes", "--preview-method", "latent2rgb"]
    command += flags
    # Pocket is small: more than one thread only wait for each other.
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), **(world or {})}
    with server.log.open("wb") as log:
        process = subprocess.Popen(
            command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT, env=variables
        )
        try:
            server.pid = process.pid
            _wait(server, process)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def in_host(script: str, *arguments: Path) -> None:
    """Runs a script of this folder in ComfyUI's own interpreter, and waits for it to succeed.

    Args:
        script: it is given ComfyUI's folder, the pack's, and `arguments`.
    """
    python = os.environ.get(PYTHON_VARIABLE, sys.executable)
    path = Path(__file__).with_name(script)
    command = [python, path, find_comfyui(), PACK, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def answer_in_host(script: str, folder: Path, question: Any) -> Any:
    """What a script of this folder answers there; both are JSON, in files of `folder`."""
    asked, answer = folder / "asked.json", folder / "answer.json"
    asked.write_text(json.dumps(question))
    in_host(script, asked, answer)
    return json.loads(answer.read_text())


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    for _ in range(START_SECONDS * 2):
        if process.poll() is not None:
            break
        try:
            server.get("/system_stats")
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"ComfyUI did not start:\n{server.log.read_text(errors='replace')[-4000:]}")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
