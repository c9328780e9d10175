"""The classes of CPUs, and the switches that limit programs to an instruction set."""

import pytest

from benchmarks.instruction_sets import available, named
from benchmarks.machine import class_name
from benchmarks.peers.llama_cpp import builds

AVX2 = {"avx2", "fma", "f16c", "bmi2"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16"}
AMX = AVX512 | {"amx_tile", "amx_int8", "amx_bf16"}


@pytest.mark.parametrize(
    ("vendor", "microarchitecture", "flags", "limit", "expected"),
    [
        ("GenuineIntel", "sapphirerapids", AMX, None, "intel-amx"),
        ("GenuineIntel", "sapphirerapids", AMX, "avx512-bf16", "intel-as-avx512-bf16"),
        ("AuthenticAMD", "znver4", AVX512, None, "amd-zen4-avx512"),
        ("AuthenticAMD", "znver4", AVX512, "avx2", "amd-zen4-as-avx2"),
        ("GenuineIntel", "skylake-avx512", AVX512, None, "intel-skylake-avx512"),
        ("GenuineIntel", "alderlake", AVX2, None, "intel-alderlake-avx2"),
        ("0x41", "neoverse-n1", {"asimd", "asimddp"}, None, "arm-neoverse-n1-neon"),
    ],
)
def test_a_class_is_named_after_vendor_core_and_best_instructions(vendor, microarchitecture, flags, limit, expected):
    chosen = None if limit is None else named(limit, flags)
    assert class_name(vendor, microarchitecture, flags, chosen) == expected


def test_a_cpu_offers_its_own_instruction_sets_and_those_below():
    assert [each.name for each in available(AVX512)] == ["avx512-bf16", "avx512-vnni", "avx512", "avx2"]
    with pytest.raises(ValueError, match="amx is not an instruction set of this CPU"):
        named("amx", AVX512)


def test_a_limit_reaches_tailrace_torch_onednn_and_llama_cpp():
    limit = named("avx2", AMX)
    assert limit.environment() == {
        "TAILRACE_CPU_FEATURES": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    (build,) = builds(limit)
    assert "-DGGML_NATIVE=OFF" in build.cmake_args and "-DGGML_AVX2=ON" in build.cmake_args
    assert "AVX512" not in build.cmake_args


def test_llama_cpp_is_built_natively_first_and_without_amx_where_that_crashes():
    native, without_amx = builds(None)
    assert native.cmake_args == "-DGGML_NATIVE=ON"
    assert "-DGGML_NATIVE=ON" in without_amx.cmake_args and "-mno-amx-int8" in without_amx.cmake_args
