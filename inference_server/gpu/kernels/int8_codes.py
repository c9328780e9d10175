"""The conversion of int8 codes to 16-bit numbers, four at a time. All codes are exact in both 16-bit types.

The instruction that converts int8 to float has an eighth of the throughput of ordinary arithmetic instructions. With
one such conversion per code, the product would be slower than an H200's memory. The sequences below work on packed
bytes. They take 1.25 instructions per code for float16, and 2 for bfloat16.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import triton
import triton.language as tl

# Input: four codes as the bytes of $2, the first in the lowest byte. Results: $0 (first and second code) and $1. A code
# c with its sign bit inverted is the byte c + 128. If 0x64 is the upper byte and c + 128 the lower one, the float16
# number is 1024 + 128 + c. The subtracted offset 0x6480 is 1024 + 128.
TO_FLOAT16 = tl.constexpr("""{
    .reg .b32 bytes, high, offset;
    xor.b32 bytes, $2, 0x80808080;
    mov.b32 high, 0x64646464;
    mov.b32 offset, 0x64806480;
    prmt.b32 $0, bytes, high, 0x4140;
    prmt.b32 $1, bytes, high, 0x4342;
    sub.f16x2 $0, $0, offset;
    sub.f16x2 $1, $1, offset;
}""")
# bfloat16 has only seven bits of fraction. If 0x43 is the upper byte and the low seven bits of a code c the lower one,
# the number is 128 + (c mod 128). With the sign bit of c alone as the lower byte, it is 128, or 256 if c is negative.
# This second number is subtracted. Compute capability 8.0 has no bfloat16 subtraction, so it is multiplied by -1 and
# added.
TO_BFLOAT16 = tl.constexpr("""{
    .reg .b32 high, minus, sign0, sign1;
    mov.b32 high, 0x43434343;
    mov.b32 minus, 0xbf80bf80;
    prmt.b32 $0, $2, high, 0x4140;
    prmt.b32 $1, $2, high, 0x4342;
    and.b32 sign0, $0, 0xff80ff80;
    and.b32 sign1, $1, 0xff80ff80;
    and.b32 $0, $0, 0xff7fff7f;
    and.b32 $1, $1, 0xff7fff7f;
    fma.rn.bf16x2 $0, sign0, minus, $0;
    fma.rn.bf16x2 $1, sign1, minus, $1;
}""")


@triton.jit
def converted(codes, dtype: tl.constexpr, PACKED: tl.constexpr):
    """Return int8 codes as `dtype`.

    PACKED selects the assembly above, for float16 and bfloat16 on a GPU. Triton's interpreter cannot run it.
    """
    if not PACKED:
        return codes.to(tl.float32).to(dtype)
    elif dtype == tl.float16:
        return tl.inline_asm_elementwise(TO_FLOAT16, "=&r,=&r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return tl.inline_asm_elementwise(TO_BFLOAT16, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
