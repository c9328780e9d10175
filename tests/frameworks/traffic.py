"""An HTTP proxy that refuses every request, and notes the hosts that programs tried to reach."""

import socketserver
import threading
from types import TracebackType
from typing import Self


class _Refuse(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline(4096).decode(errors="replace").split()
        if len(line) > 1:
            host = line[1].removeprefix("http://").split("/")[0].split(":")[0]
            self.server.hosts.append(host)  # type: ignore[attr-defined]
        while self.rfile.readline(4096).strip():
            pass
        self.wfile.write(b"HTTP/1.1 502 No network in this test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class Traffic:
    """The proxy. `settings` are the variables that make programs use it. Requests to this machine pass it by."""

    def __init__(self) -> None:
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Refuse)
        self._server.daemon_threads = True
        self.hosts: list[str] = []
        self._server.hosts = self.hosts  # type: ignore[attr-defined]
        url = f"http://127.0.0.1:{self._server.server_address[1]}"
        proxies = {name: url for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")}
        local = "localhost,127.0.0.1,::1"
        self.settings = {**proxies, "NO_PROXY": local, "no_proxy": local}

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
