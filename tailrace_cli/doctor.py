"""`tailrace doctor`: looks at this machine and at the stack, and says of everything that is wrong what to do about it."""

import importlib.util
import json
import os
import platform
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tailrace_cli.asking import HOW_TO_INSTALL

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SECONDS = 5.0
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Finding:
    """is_ok: None if it only tells."""

    is_ok: bool | None
    what: str
    advice: str = ""


def doctor(url: str, token: str) -> int:
    """Print what was found, each as it is known. Returns 1 if anything must be mended, else 0."""
    sections: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("This machine", _machine),
        ("Packages", _packages),
        ("Models", _models),
        ("API tokens", _tokens),
        ("Addresses", _addresses),
        ("The running stack", lambda: _stack(url, token)),
    ]
    is_well = True
    for title, find in sections:
        print(title, flush=True)
        for finding in find():
            is_well = is_well and finding.is_ok is not False
            mark = {True: "ok  ", False: "WRONG", None: "     "}[finding.is_ok]
            print(f"  {mark:5} {finding.what}", flush=True)
            if finding.advice:
                print(f"        {finding.advice}", flush=True)
    return 0 if is_well else 1


def _machine() -> Iterator[Finding]:
    is_new = sys.version_info >= (3, 11)
    yield Finding(
        is_new, f"Python {platform.python_version()}", "" if is_new else "Tailrace needs Python 3.11 or newer."
    )
    yield Finding(None, f"{platform.system()} on {platform.machine()}, {os.cpu_count()} processors")
    features = _cpu_features()
    if features:
        fast = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if name in features]
        yield Finding(None, f"of the CPU's vector units: {', '.join(fast) or 'none that matter here'}")


def _cpu_features() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return set(next((line for line in lines if line.startswith("flags")), "").split())
    except OSError:
        return set()


def _packages() -> Iterator[Finding]:
    missing = []
    for name in ("torch", "transformers", "bitsandbytes", "starlette", "uvicorn"):
        try:
            yield Finding(True, f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding(None, f"not installed, and needed to serve: {', '.join(missing)}", HOW_TO_INSTALL)
    if importlib.util.find_spec("torch") is not None:
        yield _cuda()


def _cuda() -> Finding:
    started = time.monotonic()
    try:
        import torch

        if not torch.cuda.is_available():
            return Finding(None, "torch finds no GPU: models run on the CPU")
        name = torch.cuda.get_device_name(0)
        free, total = torch.cuda.mem_get_info(0)
    except (RuntimeError, OSError, ImportError) as error:
        return Finding(False, f"torch cannot be used: {str(error).splitlines()[0]}", "Install torch anew.")
    seconds = time.monotonic() - started
    return Finding(True, f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free (looked for {seconds:.1f} s)")


def _models() -> Iterator[Finding]:
    try:
        from inference_server.serving.catalog import read_catalog
        from inference_server.settings import Settings
        from tailrace_shared.config_errors import ConfigurationError
    except ImportError:
        yield Finding(None, "the inference server is not installed here")
        return
    try:
        settings = Settings.from_environment()
        entries = read_catalog(settings.catalog)
    except ConfigurationError as error:
        yield Finding(False, f"{error}", "TAILRACE_CATALOG names the catalog file.")
        return
    for entry in entries:
        where = "from the hub" if entry.weights.path is None else "its files are there"
        yield Finding(True, f"{entry.name}: {entry.weights}, {where}")


def _tokens() -> Iterator[Finding]:
    path = os.environ.get("TAILRACE_API_TOKENS_FILE")
    if os.environ.get("TAILRACE_API_TOKENS"):
        yield Finding(None, "TAILRACE_API_TOKENS has tokens for every account")
    if not path:
        return
    try:
        from http_bridge.auth.token_file import read_tokens
        from tailrace_shared.config_errors import ConfigurationError
    except ImportError:
        yield Finding(None, "TAILRACE_API_TOKENS_FILE is set, but the bridge is not installed here")
        return
    try:
        yield Finding(True, f"{len(read_tokens(Path(path)))} tokens in {path}")
    except ConfigurationError as error:
        yield Finding(
            False, f"{error}", "A bridge that runs goes on with the tokens it has read; a new one does not start."
        )


def _addresses() -> Iterator[Finding]:
    for name, default in {"HTTP": "127.0.0.1:8787", "GRPC": "127.0.0.1:50051"}.items():
        variable = f"TAILRACE_{name}_ADDRESS"
        address = os.environ.get(variable) or default
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            yield Finding(False, f"{variable}={address}", "An address is host:port, for example 127.0.0.1:8787.")
            continue
        if _is_taken(host.strip("[]"), int(port)):
            yield Finding(None, f"{address} is taken", f"If it is not Tailrace that listens there, set {variable}.")
        else:
            yield Finding(None, f"{address} is free")


def _is_taken(host: str, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if host in ("0.0.0.0", "::", "") else host, port), timeout=_SECONDS):
            return True
    except OSError:
        return False


def _stack(url: str, token: str) -> Iterator[Finding]:
    status, answer = _get(f"{url}/readyz", token)
    if status is None:
        yield Finding(None, f"no bridge answers at {url}", "Start one with `tailrace serve`.")
        return
    if status != 200:
        yield Finding(False, f"{url}: {answer.get('reason', status)}", "The server's log says what it is doing.")
        return
    yield Finding(True, f"the bridge at {url} is ready")
    status, answer = _get(f"{url}/client/v4/user/tokens/verify", token or "any-token")
    if status == 200:
        yield Finding(True, "the token is let in")
        return
    errors: Any = answer.get("errors") or [{}]
    advice = "Give with --token or TAILRACE_TOKEN one that the bridge knows; `tailrace token ACCOUNT` makes one."
    yield Finding(False, f"the token is refused: {errors[0].get('message')}", advice)


def _get(url: str, token: str) -> tuple[int | None, dict[str, object]]:
    """Status and JSON; no status if nobody answers."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (the user's own address)
    try:
        with _OPENER.open(request, timeout=_SECONDS) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            try:
                return error.code, json.load(error)
            except ValueError:
                return error.code, {}
    except (OSError, ValueError):
        return None, {}
