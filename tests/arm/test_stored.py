"""The kernels that read weights of GGUF files, on emulated Arm CPUs, against torch."""

import pytest
import torch

from inference_server.cpu.linear.integer_weights import rounded_to_int8
from inference_server.kernels.jit import arguments
from inference_server.kernels.linear import stored, stored_int4
from inference_server.weights.gguf.formats import format_of
from tests.inference_server.weights.gguf.test_formats import number, panels, random_blocks

OUTPUTS, GROUPS = 16, 8


@pytest.mark.parametrize("name", stored.FORMATS)
@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_panels_have_the_weights_of_the_file(name, kind, place, call, cpu):
    rows = place(torch.from_numpy(random_blocks(name.upper(), OUTPUTS, GROUPS // stored.FORMATS[name][2])))
    weights = format_of(number(name.upper())).weights(rows)
    inputs, dtype = (4, torch.int8) if kind == "int8" else (2, torch.bfloat16)
    addresses = place(rows.data_ptr() + torch.arange(OUTPUTS) * rows.stride(0))
    panel = place(torch.zeros(GROUPS * 32 // inputs, OUTPUTS, inputs, dtype=dtype))
    scales = place(torch.zeros(OUTPUTS)) if kind == "int8" else None
    call(arguments.stored(addresses, panel, scales, 1, GROUPS), f"{name}-{kind}")
    found = panel.transpose(0, 1).flatten(1)
    if kind == "bf16":
        assert torch.equal(found, weights.bfloat16())
        return
    wanted = rounded_to_int8(weights)
    codes = found ^ -128 if cpu.isa.unsigned_codes else found
    assert torch.equal(codes, wanted.codes)
    assert torch.equal(scales, wanted.scales)


@pytest.mark.parametrize("name", stored_int4.READERS)
def test_int4_records_have_the_codes_of_the_file(name, place, call):
    rows = place(torch.from_numpy(random_blocks(name.upper(), OUTPUTS, GROUPS // stored.FORMATS[name][2])))
    addresses = place(rows.data_ptr() + torch.arange(OUTPUTS) * rows.stride(0))
    records = place(torch.zeros(1, GROUPS, 320, dtype=torch.uint8))
    call(arguments.stored(addresses, records, None, 1, GROUPS), f"{name}-int4")
    assert torch.equal(records, panels(format_of(number(name.upper())).int4(rows), "int4").weights[:1])
