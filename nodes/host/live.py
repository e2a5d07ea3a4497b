"""What a run shows on its node in the page: by web/live.js, or else as the host's line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from comfy.model_management import InterruptProcessingException, processing_interrupted
from comfy_execution.utils import get_executing_context
from server import PromptServer, web

from ...esd_core.errors import ESDError

_EVENT = "esd.run"
_FAILED = "ended by an error, before anything was trained"
_drawing: WeakSet[web.WebSocketResponse] = WeakSet()
"""Links to pages that have said that they draw runs themselves. The host's line of text knows no
workflow: it would write on whatever node of that number is open. A page that is loaded anew with
scripts of custom nodes off is the same client by another link."""
_running: dict[tuple[str, str], LiveRun] = {}


class LiveRun:
    """A run on one node of one prompt, for as long as the block lasts, or the check before it.

    An error in the block is said on the node, if it is for a person.

    Attributes:
        parting: what is said when it breaks off.
        is_to_finish: whether "Stop and keep" was pressed.
        is_drawn: whether the page draws it; without, text and previews are the host's.
    """

    def __init__(self, node: str, workflow: Mapping[str, Any] | None) -> None:
        """workflow: as the page has sent it; its id tells the page which tab the run is of."""
        context = get_executing_context()
        prompt = context.prompt_id if context else ""
        self._address = {"prompt": prompt, "node": node, "workflow": (workflow or {}).get("id")}
        self._client: str | None = PromptServer.instance.client_id
        self._key = prompt, node
        self.parting = ""
        self.is_to_finish = False
        self.is_drawn = PromptServer.instance.sockets.get(self._client) in _drawing
        self._is_shown = False

    def __enter__(self) -> LiveRun:
        _running[self._key] = self
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        _running.pop(self._key, None)
        if error:
            self.say(self._last_words(error))
        if self._is_shown:
            self.show(running=False)

    def _last_words(self, error: BaseException) -> str:
        """What is wrong, since newer pages keep it behind a button, and where the state is."""
        if isinstance(error, ESDError):
            return ";\n".join(filter(None, (str(error), self.parting)))
        is_cancel = isinstance(error, InterruptProcessingException)
        return self.parting or ("cancelled before its first step" if is_cancel else _FAILED)

    def should_stop(self) -> bool:
        """Asked before every step; the host may also raise in the midst of one."""
        return bool(processing_interrupted())

    def should_finish(self) -> bool:
        return self.is_to_finish

    def say(self, text: str) -> None:
        """Text on the node. Nodes 2.0 join its lines: it should read without their ends, too."""
        if self.is_drawn:
            self.show(text=text)
        else:
            say(text, self._key[1])

    def show(self, **what: Any) -> None:
        """Hands web/live.js whatever of the run has changed."""
        self._is_shown = True
        if self.is_drawn:
            PromptServer.instance.send_sync(_EVENT, {**self._address, **what}, self._client)


def say(text: str, node: str | None) -> None:
    """The host's line of text on a node, on the page that has queued it."""
    server = PromptServer.instance
    if node is not None and server.client_id is not None:
        server.send_progress_text(text, node, server.client_id)


async def _draws(request: web.Request) -> web.Response:
    """{"client": ...}: this page draws runs itself."""
    link = PromptServer.instance.sockets.get((await request.json())["client"])
    if link is not None:  # else it says so again once it is linked
        _drawing.add(link)
    return web.Response()


async def _stop(request: web.Request) -> web.Response:
    """{"prompt": ..., "node": ...}: that run is to end now and to keep what it has trained."""
    asked = await request.json()
    run = _running.get((str(asked.get("prompt")), str(asked.get("node"))))
    if run is None:
        return web.Response(status=404, text="there is no such run: it may have ended already")
    run.is_to_finish = True
    return web.Response()


# A pack may be loaded where no server runs, by a script of the host's for example.
if hasattr(PromptServer, "instance"):
    PromptServer.instance.routes.post("/esd/draws")(_draws)
    PromptServer.instance.routes.post("/esd/stop")(_stop)
