"""Models from a hub, with the hub's real client."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.hub.client import HubClient
from tests.support.hub.server import running_hub

SMALL = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b'{"chat_template": "x"}',
    "generation_config.json": b'{"top_p": 0.9}',
}


def safetensors(num_bytes: int) -> bytes:
    """Return a file with one tensor of random bytes."""
    header = json.dumps({"a": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(num_bytes)


def model(num_bytes: int = 100_000, **more: bytes) -> dict[str, bytes]:
    return {**SMALL, "model.safetensors": safetensors(num_bytes), **more}


def sharded(num_bytes: int = 100_000) -> dict[str, bytes]:
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": dict(zip("ab", names, strict=True))}).encode()
    return {**SMALL, "model.safetensors.index.json": index, **{name: safetensors(num_bytes) for name in names}}


def content(folder: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def shared_hub():
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def client(shared_hub, tmp_path_factory):
    client = HubClient(shared_hub, tmp_path_factory.mktemp("home"))
    yield client
    client.kill()


@pytest.fixture
def hub(shared_hub):
    """Return the hub without faults and without requests."""
    shared_hub.requests.clear()
    yield shared_hub
    shared_hub.faults.__init__()


def test_a_model_has_the_hubs_content_without_files_that_no_server_needs(hub, client):
    files = model(**{"README.md": b"read me", "pytorch_model.bin": b"x", "original/model.safetensors": b"y"})
    hub.add("owner/whole", files)
    outcome = client.fetch("owner/whole")
    assert content(outcome.path) == {name: files[name] for name in [*SMALL, "model.safetensors"]}
    assert outcome.lines[0].startswith("getting owner/whole from the hub (once; it stays in ")
    assert outcome.lines[0].endswith("): 5 files, 100.2 kB")


def test_a_repository_without_a_configuration_is_explained_before_its_weights_are_asked_for(hub, tmp_path):
    hub.add("owner/files", {"a.gguf": b"GGUF"})
    code = (
        "import pathlib\n"
        "from inference_server.weights.fetching.hub import HubModel\n"
        "from inference_server.weights.source import Weights\n"
        "HubModel(Weights(hub='owner/files'), pathlib.Path('unused')).fetch_config()"
    )
    done = subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path), capture_output=True, text=True)
    assert "owner/files has GGUF files instead of safetensors: choose one, as in owner/files:a.gguf" in done.stderr


def test_of_shards_those_of_the_index_are_downloaded(hub, client):
    files = sharded()
    hub.add("owner/shards", {**files, "model-old.safetensors": safetensors(10)})
    assert content(client.fetch("owner/shards").path) == files


@pytest.mark.parametrize("offline", [False, True])
def test_a_second_start_sends_no_request(hub, client, offline):
    hub.add(f"owner/second-{offline}", model())
    first = client.fetch(f"owner/second-{offline}")
    hub.requests.clear()
    second = client.fetch(f"owner/second-{offline}", offline=offline)
    assert (second.path, second.lines, hub.requests) == (first.path, [], [])


def test_a_newer_commit_is_fetched_on_demand_only(hub, client):
    hub.add("owner/moving", model())
    first = client.fetch("owner/moving").path
    newer = hub.add("owner/moving", model())
    assert client.fetch("owner/moving").path == first
    refreshed = client.fetch("owner/moving", refresh=True).path
    assert refreshed.endswith(newer.commit)
    assert client.fetch("owner/moving").path == refreshed


def test_a_branch_whose_download_failed_still_has_its_older_commit(hub, client):
    hub.add("owner/older", model())
    first = client.fetch("owner/older").path
    hub.add("owner/older", model())
    hub.faults.corrupt = {"model.safetensors"}
    assert client.fetch("owner/older", refresh=True).error
    assert client.fetch("owner/older").path == first


def test_a_commit_of_its_own_is_fetched_by_its_id(hub, client):
    commit = hub.add("owner/pinned", model()).commit
    outcome = client.fetch("owner/pinned", revision=commit)
    assert outcome.path.endswith(commit)
    hub.requests.clear()
    assert client.fetch("owner/pinned", revision=commit).path == outcome.path
    assert hub.requests == []


def test_a_connection_that_breaks_is_continued_at_its_last_byte(hub, client):
    files = model(200_000)
    hub.add("owner/breaks", files)
    hub.faults.break_after, hub.faults.num_breaks = 80_000, 2
    outcome = client.fetch("owner/breaks")
    assert content(outcome.path) == files
    assert [request.range for request in hub.downloads_of("model.safetensors") if "/cdn/" in request.path] == [
        None,
        "bytes=80000-",
        "bytes=160000-",
    ]
    assert any("the download continues in " in line for line in outcome.lines)


def test_a_server_without_ranges_sends_the_file_again(hub, client):
    files = model(200_000)
    hub.add("owner/no-ranges", files)
    hub.faults.break_after, hub.faults.num_breaks, hub.faults.ignores_ranges = 80_000, 1, True
    assert content(client.fetch("owner/no-ranges").path) == files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_arrives_damaged_is_never_served(hub, client, name):
    hub.add(f"owner/corrupt-{name}", model())
    hub.faults.corrupt = {name}
    outcome = client.fetch(f"owner/corrupt-{name}")
    assert outcome.error == f"downloading owner/corrupt-{name} failed: {name} does not match the hub's digest"
    assert client.fetch(f"owner/corrupt-{name}", offline=True).error
    hub.faults.corrupt = set()
    assert client.fetch(f"owner/corrupt-{name}").path


def test_a_file_that_was_cut_on_disk_is_named_offline_and_downloaded_again_online(hub, client):
    files = sharded()
    hub.add("owner/cut", files)
    folder = Path(client.fetch("owner/cut").path)
    cut = (folder / "model-00002-of-00002.safetensors").resolve()
    os.truncate(cut, 30_000)
    assert client.fetch("owner/cut", offline=True).error == (
        "owner/cut is incomplete in the local cache (model-00002-of-00002.safetensors has 30.0 kB of 100.1 kB) and the hub "
        "could not be reached: unset HF_HUB_OFFLINE or check the network, or point the catalog's source at a folder"
    )
    hub.requests.clear()
    assert content(client.fetch("owner/cut").path) == files
    assert not hub.downloads_of("model-00001-of-00002.safetensors")


def test_a_model_that_another_program_downloaded_is_used_without_a_request(hub, client):
    hub.add("owner/foreign", sharded())
    path = client.fetch("owner/foreign").path
    for record in client.cache_dir.glob("hub/models--owner--foreign/*"):
        record.unlink()
    hub.requests.clear()
    assert client.fetch("owner/foreign").path == path
    assert hub.requests == []


def test_part_of_a_model_that_another_program_downloaded_is_completed(hub, client):
    files = sharded()
    hub.add("owner/part", files)
    path = Path(client.fetch("owner/part").path)
    for record in client.cache_dir.glob("hub/models--owner--part/*"):
        record.unlink()
    (path / "model-00002-of-00002.safetensors").resolve().unlink()
    assert "model-00002-of-00002.safetensors is missing" in client.fetch("owner/part", offline=True).error
    assert content(client.fetch("owner/part").path) == files


def test_a_damaged_file_of_another_program_is_found_by_its_digest(hub, client):
    files = sharded()
    hub.add("owner/rotten", files)
    path = Path(client.fetch("owner/rotten").path)
    for record in client.cache_dir.glob("hub/models--owner--rotten/*"):
        record.unlink()
    with (path / "model-00001-of-00002.safetensors").resolve().open("r+b") as blob:
        blob.seek(-1, os.SEEK_END)
        blob.write(bytes([files["model-00001-of-00002.safetensors"][-1] ^ 1]))
    outcome = client.fetch("owner/rotten", refresh=True)
    assert outcome.lines[0] == "model-00001-of-00002.safetensors is damaged in the cache: it is downloaded again"
    assert content(outcome.path) == files


def test_a_gguf_file_of_a_repository_is_fetched_alone(hub, client):
    hub.add("owner/ggufs", {"a.gguf": b"GGUF" + bytes(100), "b.gguf": b"GGUF" + bytes(200), "config.json": b"{}"})
    outcome = client.fetch("owner/ggufs", file="b.gguf")
    assert Path(outcome.path).read_bytes() == b"GGUF" + bytes(200)
    assert [Path(request.path).name for request in hub.requests if "/resolve/" in request.path] == ["b.gguf"]
    hub.requests.clear()
    assert client.fetch("owner/ggufs", file="b.gguf", offline=True).path == outcome.path
    assert client.fetch("owner/ggufs", file="a.gguf", offline=True).error.startswith(
        "owner/ggufs is incomplete in the local cache (a.gguf is missing) and the hub could not be reached"
    )


REFUSALS = {
    "no-file": (
        {"a.gguf": b"GGUF"},
        {"file": "b.gguf"},
        "owner/no-file has no file 'b.gguf' (its GGUF files are a.gguf)",
    ),
    "split": (
        {"a-00001-of-00003.gguf": b"GGUF"},
        {"file": "a-00001-of-00003.gguf"},
        "a-00001-of-00003.gguf is one of 3 parts of a split GGUF file: join them with llama.cpp's "
        "`llama-gguf-split --merge`, or choose a file in one part",
    ),
    "only-gguf": (
        {"a.gguf": b"GGUF", "config.json": b"{}"},
        {},
        "owner/only-gguf has GGUF files instead of safetensors: choose one, as in owner/only-gguf:a.gguf or, in a catalog, "
        'source = { hub = "owner/only-gguf", file = "a.gguf" } (its files are a.gguf)',
    ),
    "pickled": (
        {**SMALL, "pytorch_model.bin": b"x"},
        {},
        "owner/pickled has no safetensors files (model.safetensors; its weights are in pytorch_model.bin, a format that can "
        "run code when it is read): choose a repository with safetensors or GGUF files",
    ),
    "adapter": (
        {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors(9)},
        {},
        "owner/adapter has no config.json, so its architecture is not known: it is not a model for transformers",
    ),
    "no-tokenizer": (
        {"config.json": b"{}", "model.safetensors": safetensors(9)},
        {},
        "owner/no-tokenizer has no tokenizer (tokenizer.json or tokenizer.model), so text cannot be converted to tokens: point "
        "the source at a folder with its files and those of its base model's tokenizer",
    ),
    "no-shard": (
        {name: text for name, text in sharded(9).items() if "00002-of" not in name},
        {},
        "owner/no-shard is incomplete on the hub: it lacks model-00002-of-00002.safetensors, which "
        "model.safetensors.index.json lists",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_repository_without_an_essential_file_is_refused_before_its_weights_are_downloaded(hub, client, name):
    files, options, sentence = REFUSALS[name]
    hub.add(f"owner/{name}", files)
    assert client.fetch(f"owner/{name}", **options).error == sentence
    assert not any("/cdn/" in request.path for request in hub.requests)


def test_a_missing_template_and_generation_config_are_explained(hub, client):
    files = model(**{"tokenizer_config.json": b"{}"})
    del files["generation_config.json"]
    hub.add("owner/base", files)
    lines = client.fetch("owner/base").lines[-2:]
    assert lines[0].startswith("owner/base: it has no chat template, so only raw prompts work ")
    assert lines[1].startswith(
        "owner/base: it has no generation_config.json, so replies end at the tokenizer's end token"
    )


def test_a_download_shows_bytes_rate_and_remaining_time(hub, client):
    hub.add("owner/slow", model(250_000))
    hub.faults.bytes_per_second = 300_000
    shown = client.fetch("owner/slow", shows=True).shown
    assert shown[0].startswith("getting owner/slow: ")
    assert " of 250.2 kB (" in shown[0]
    assert shown[0].endswith(" s left")
    assert "kB/s, " in shown[0]


def test_a_hub_that_is_down_is_named_with_its_status(hub, client):
    hub.faults.is_down = True
    assert client.fetch("owner/down").error == "downloading owner/down failed: the hub answered 503: try again later"


def test_a_complete_model_whose_hub_is_not_reached_is_named_as_complete(hub, client):
    hub.add("owner/known", model())
    client.fetch("owner/known")
    assert client.fetch("owner/known", refresh=True, offline=True).error.startswith(
        "owner/known is complete in the local cache and the hub could not be reached: "
    )


def test_without_a_network_a_complete_model_is_served_and_another_one_is_named(hub, client):
    hub.add("owner/before", model())
    path = client.fetch("owner/before").path
    unreachable = {"endpoint": "http://127.0.0.1:9"}
    assert client.fetch("owner/before", **unreachable).path == path
    error = client.fetch("owner/after", **unreachable).error
    assert error.startswith(
        "owner/after is not in the local cache and the hub could not be reached at http://127.0.0.1:9 ("
    )
    assert error.endswith(
        "check the network, or set HTTPS_PROXY or HF_ENDPOINT, or point the catalog's source at a folder"
    )


def test_a_path_outside_of_the_repository_is_refused(hub, client):
    hub.add("owner/outside", model(**{"../../outside.json": b"{}"}))
    assert client.fetch("owner/outside").error == ("owner/outside has a file with an unsafe path: '../../outside.json'")


def test_two_processes_download_a_model_once(hub, client, tmp_path):
    files = model(300_000)
    hub.add("owner/both", files)
    hub.faults.bytes_per_second = 300_000
    other = HubClient(hub, client.cache_dir.parent)
    try:
        other.fetch("owner/absent")  # it has started
        hub.requests.clear()
        client.send("owner/both")
        while not hub.downloads_of("model.safetensors"):
            time.sleep(0.01)
        waited = other.fetch("owner/both")
        outcome = client.outcome()
    finally:
        other.kill()
    assert waited.path == outcome.path
    assert waited.lines[0] == "waiting for another process that is downloading owner/both"
    assert len([request for request in hub.requests if request.path.startswith("/cdn/")]) == 1


def test_a_cache_that_cannot_be_written_is_named_with_its_variable(hub, client, tmp_path):
    hub.add("owner/unwritable", model())
    (tmp_path / "file").touch()
    error = client.fetch("owner/unwritable", hub_cache=str(tmp_path / "file")).error
    client.fetch("owner/absent", hub_cache=str(client.hub_cache))
    assert error.startswith(f"cannot write to the hub's cache, {tmp_path / 'file'}")
    assert error.endswith(" (Not a directory): set HF_HOME to a folder that can be written")


MOMENTS = (
    (
        "the list of files",
        lambda hub: any(request.path.startswith("/api/models/owner/killed") for request in hub.requests),
    ),
    ("the first small file", lambda hub: hub.downloads_of("config.json")),
    ("the weights' first bytes", lambda hub: hub.sent_bytes.get("killed.safetensors", 0) > 0),
    ("half of the weights", lambda hub: hub.sent_bytes.get("killed.safetensors", 0) >= 250_000),
    ("the last bytes", lambda hub: hub.sent_bytes.get("killed.safetensors", 0) >= 500_000),
)


def test_a_download_that_is_killed_five_times_continues_and_is_never_served_before_its_end(hub, client, tmp_path):
    files = {**SMALL, "killed.safetensors": safetensors(500_000)}
    hub.add("owner/killed", files)
    hub.faults.bytes_per_second, hub.faults.delay = 1_000_000, 0.05
    hub.sent_bytes.clear()
    victims = [HubClient(hub, client.cache_dir.parent) for _ in MOMENTS]
    for (moment, has_come), victim in zip(MOMENTS, victims, strict=True):
        victim.send("owner/killed")
        while not has_come(hub):
            assert victim.process.poll() is None, moment
            time.sleep(0.002)
        victim.kill()
        error = client.fetch("owner/killed", offline=True).error
        assert error is None or "local cache" in error, moment
        assert error or moment == "the last bytes"
        if not error:
            assert content(client.fetch("owner/killed", offline=True).path) == files
    outcome = client.fetch("owner/killed")
    assert content(outcome.path) == files
    # Each kill loses at most the bytes in transit.
    assert hub.sent_bytes["killed.safetensors"] < 500_000 * 1.5
    assert not list(client.hub_cache.glob("models--owner--killed/blobs/*incomplete"))
