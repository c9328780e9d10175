"""The benchmark of products of linear layers, with a small model."""

import json
import subprocess
import sys

from benchmarks.kernels.shapes import MODELS
from benchmarks.processes import ROOT


def test_the_weights_of_a_pass_are_those_of_the_models():
    # 30 layers and the head of SmolLM2-135M, which shares its weights with the embedding; 4 of 32 layers of the others.
    assert MODELS["smollm2-135m"].weights() == 134_479_872
    assert MODELS["llama-2-7b"].weights() == 4 * 202_375_168
    assert MODELS["llama-3.1-8b"].weights() == 4 * 218_103_808


def test_every_subject_computes_every_format_with_one_and_several_rows(tmp_path):
    job = {"models": ["tiny"], "formats": ["int4", "int8", "bf16"], "subjects": ["tailrace", "torch"], "rows": [1, 8]}
    job |= {"seconds": 0.0, "passes": 1, "threads": 1, "features": "as it is"}
    code = (
        "from benchmarks.kernels import part, shapes\n"
        "shapes.MODELS['tiny'] = shapes.Model('tiny', 'Tiny', shapes._decoder(64, 64, 128, 2))\n"
        "part._READER_MIB = 4\n"
        "part.main()\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=json.dumps(job), cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["bandwidth"] > 0
    assert len(results["rows"]) == 12
    assert all(row["ms"] > 0 and row["gb_per_s"] > 0 for row in results["rows"])
