"""A bridge for tests of the command, whose replies the test writes."""

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "@cf/meta/echo"
_SECONDS = 30


class ScriptedBridge:
    """A bridge with one model. Each request for a reply waits until the test ends the reply.

    Attributes:
        url: Its URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: queue.Queue[dict[str, Any]] = queue.Queue()
        self.replies: queue.Queue[tuple[str, str]] = queue.Queue()

    def request(self) -> dict[str, Any]:
        """Return the body of the next request. Its reply has not begun yet."""
        return self.asked.get(timeout=_SECONDS)

    def reply(self, text: str, finish: str = "stop") -> None:
        """Send one reply, to the oldest request without one."""
        self.replies.put((text, finish))

    def refuse(self, sentence: str) -> None:
        """Refuse the oldest request without a reply. `sentence`: the error."""
        self.replies.put((sentence, ""))


@contextmanager
def scripted_bridge() -> Iterator[ScriptedBridge]:
    """Yield a bridge that runs in threads of this process while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            properties = [{"property_id": "context_length_limit", "value": "100"}]
            self._send("application/json", {"result": [{"name": MODEL, "properties": properties}]})

        def do_POST(self) -> None:
            bridge.asked.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            text, finish = bridge.replies.get(timeout=_SECONDS)
            if not finish:
                error = {"error": {"message": text}, "errors": [{"code": 5006, "message": text}]}
                return self._send("application/json", error, status=400)
            usage = {"prompt_tokens": 5, "completion_tokens": 2}
            choice = {"delta": {"content": text}, "finish_reason": finish}
            self._send("text/event-stream", {"choices": [choice], "usage": usage}, "data: ", "\n\ndata: [DONE]\n\n")

        def _send(self, kind: str, body: object, before: str = "", after: str = "", *, status: int = 200) -> None:
            data = f"{before}{json.dumps(body)}{after}".encode()
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    bridge = ScriptedBridge(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield bridge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
