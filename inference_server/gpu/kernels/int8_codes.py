"""The conversion of int8 codes to 16-bit numbers, four at a time. All codes are exact in both 16-bit types.

The usual instruction that converts int8 to float has an eighth of the throughput of ordinary arithmetic instructions. At
one conversion per code, it is too slow for an H200's memory bandwidth. The sequences below work on packed bytes. They take
1.25 instructions per code for float16, and 2 for bfloat16.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"
import triton
import triton.language as tl

# Four codes are in $2, as bytes; the lowest is the first. The results are in $0 (first and second) and $1.
# float16: with its sign bit inverted, a code c is the byte c + 128. Below the byte 0x64 it is the number 1024 + 128 + c.
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
# bfloat16 has room for seven bits: below the byte 0x43 they are the number 128 + (c mod 128). The sign bit alone is 128 or
# 256 there, which is subtracted: as a product with -1 and a sum, because compute capability 8.0 has no subtraction.
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
    """Return int8 codes as `dtype`. PACKED is for float16 and bfloat16 on a GPU: the interpreter runs no assembly."""
    if not PACKED:
        return codes.to(tl.float32).to(dtype)
    elif dtype == tl.float16:
        return tl.inline_asm_elementwise(TO_FLOAT16, "=&r,=&r,r", [codes], dtype=tl.float16, is_pure=True, pack=4)
    else:
        return tl.inline_asm_elementwise(TO_BFLOAT16, "=&r,=&r,r", [codes], dtype=tl.bfloat16, is_pure=True, pack=4)
