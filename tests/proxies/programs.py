"""Finds and starts the proxies. `python -m tests.proxies.programs` gets nginx where the machine has none.

nginx comes from PATH or from the package of Debian and its relatives, unpacked into build/: nothing is installed. Caddy is a
package of PyPI, the Node proxy are packages of npm.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.processes import ROOT, free_address

_UNPACKED = ROOT / "build" / "nginx"
_START_SECONDS = 20
_NGINX = """
daemon off;
pid nginx.pid;
events {{}}
http {{
  access_log off;
  {paths}
  server {{
    listen {address};
    location / {{
      proxy_pass http://{bridge};
      {options}
    }}
  }}
}}
"""
# The folders that nginx creates at start, which are otherwise in /var.
_NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def program(name: str, *folders: Path) -> str | None:
    """Return a program's path: the variable of its name in upper case, from `folders`, or from PATH. None: not found."""
    path = [str(Path(sys.executable).parent), *map(str, folders), os.environ.get("PATH", ""), "/usr/sbin"]
    return shutil.which(os.environ.get(name.upper(), name), path=os.pathsep.join(path))


def nginx() -> str:
    """Return nginx's path."""
    found = program("nginx", _UNPACKED / "usr" / "sbin")
    assert found, "there is no nginx here: make test-proxies gets it, or install it"
    return found


def caddy() -> str:
    """Return Caddy's path."""
    found = program("caddy")
    assert found, "there is no Caddy here: make test-proxies installs it"
    return found


@asynccontextmanager
async def running_nginx(folder: Path, bridge: str, options: str = "") -> AsyncIterator[str]:
    """Run nginx with `proxy_pass` and `options` alone. Yields its address."""
    address = free_address()
    paths = "\n  ".join(f"{name}_temp_path temp/{name};" for name in _NGINX_FOLDERS)
    (folder / "temp").mkdir()
    text = _NGINX.format(paths=paths, address=address, bridge=bridge, options=options)
    (folder / "nginx.conf").write_text(text)
    command = [nginx(), "-p", f"{folder}/", "-c", "nginx.conf", "-e", "error.log"]
    async with _running(command, folder, address):
        yield address


@asynccontextmanager
async def running_caddy(folder: Path, bridge: str) -> AsyncIterator[str]:
    """Run Caddy with the lines of docs/proxies.md. Yields its address."""
    address = free_address()
    site = f"http://{address} {{\n  encode\n  reverse_proxy {bridge}\n}}\n"
    (folder / "Caddyfile").write_text(f"{{\n  admin off\n  auto_https off\n}}\n{site}")
    settings = {"XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    async with _running([caddy(), "run", "--config", "Caddyfile"], folder, address, **settings):
        yield address


@asynccontextmanager
async def running_node(packages: Path, folder: Path, bridge: str, node: Path) -> AsyncIterator[str]:
    """Run Express with its compressing middleware. Yields its address."""
    address = free_address()
    command = [str(node / "node"), str(packages / "proxy.mjs")]
    async with _running(command, folder, address, LISTEN=address, BRIDGE=f"http://{bridge}"):
        yield address


@asynccontextmanager
async def _running(command: list[str], folder: Path, address: str, **settings: str) -> AsyncIterator[None]:
    """Run a program until the end of the block. Enters the block once the program listens."""
    log = folder / "output.log"
    with log.open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            *command, cwd=folder, env={**os.environ, **settings}, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await _listens(address):
                assert child.returncode is None, log.read_text()
                await asyncio.sleep(0.05)
        yield
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    return True


def _get_nginx() -> str:
    """Unpack the package of nginx if the machine has none. Returns a sentence about the result."""
    if found := program("nginx", _UNPACKED / "usr" / "sbin"):
        return f"nginx: {found}"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        sys.exit("make test-proxies needs nginx, from the system's packages or with NGINX=/path/to/nginx.")
    _UNPACKED.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["apt-get", "download", "-q", "nginx"], cwd=_UNPACKED, capture_output=True, text=True)
    packages = sorted(_UNPACKED.glob("nginx_*.deb"))
    if done.returncode or not packages:
        sys.exit(f"make test-proxies needs nginx, and its package cannot be downloaded: {done.stderr.strip()[-300:]}")
    subprocess.run(["dpkg-deb", "-x", packages[-1], _UNPACKED], check=True)
    return f"nginx: unpacked into {_UNPACKED}"


if __name__ == "__main__":
    print(_get_nginx())
