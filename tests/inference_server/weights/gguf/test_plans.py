"""Plans of GGUF files that one machine wrote and another one reads, as with the plans in a container image."""

import shutil

import pytest
from transformers import AutoModelForCausalLM

from inference_server.cpu.linear.panels import PanelBackend
from inference_server.kernels.isa.choice import NONE, VARIABLE, chosen
from inference_server.settings.server import Settings
from inference_server.weights.gguf.plan import plan_path, read_plan
from inference_server.weights.prepare import prepare
from inference_server.weights.source import Weights
from tests.inference_server.weights.loading import CPU
from tests.support.models.gguf_files import write_gguf

ISA = chosen()
pytestmark = pytest.mark.skipif(ISA is None, reason="this CPU has no kernels")


@pytest.mark.parametrize("precision", ["int4", "bitsandbytes-int8", "bfloat16"])
def test_the_cpu_that_reads_a_plan_determines_the_layout(tiny_model, precision, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model("llama-2-heads-of-32"))
    path = write_gguf(tmp_path / "tiny.gguf", model, kind="Q4_1")
    written = prepare(Weights(path=path), precision, CPU, Settings(device="cpu", cache_dir=tmp_path))
    (plan,) = (tmp_path / "gguf").glob("*/plan-*")
    # AMX and Arm store int8 codes signed, other CPUs unsigned.
    other = type("Other", (type(ISA),), {"name": "other", "unsigned_codes": not ISA.unsigned_codes})()
    monkeypatch.setattr(PanelBackend, "isa", other)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # for the kernels of this instruction set
    # A copy, because engines of one process share the layers of a file.
    decoder = read_plan(plan, shutil.copy(path, tmp_path / "copy.gguf")).decoder
    layouts = [{linear.packed.layout for linear in each.linears} for each in (written.model, decoder)]
    assert layouts[0] != layouts[1] and len(layouts[1]) == 1
    assert decoder.num_bytes == written.num_bytes


def test_without_kernels_no_plan_is_read(tmp_path, monkeypatch):
    def path():
        return plan_path(tmp_path, "int4", batch_invariant=False)

    with_kernels = path()
    monkeypatch.setenv(VARIABLE, NONE)
    assert path() != with_kernels
