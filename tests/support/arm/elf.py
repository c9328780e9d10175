"""Links an object file of a kernel for AArch64, and builds the small program that runs it.

No linker, assembler or C library for AArch64 is necessary: kernels are position-independent and refer to nothing outside
their object file, so that a few kinds of relocation are enough.
"""

import struct
from dataclasses import dataclass

_ALLOCATED, _RELOCATIONS, _SYMBOLS, _NO_BITS = 2, 4, 2, 8  # SHF_ALLOC, SHT_RELA, SHT_SYMTAB, SHT_NOBITS
_PAGE = 4096
# Relocation types of AArch64 (R_AARCH64_...) that insert the low bits of an address, with the bits that they leave out.
_LOW_BITS = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
_ABSOLUTE_64, _RELATIVE_32, _RELATIVE_21, _PAGE_21, _JUMP_26, _CALL_26 = 257, 261, 274, 275, 282, 283


@dataclass(frozen=True, slots=True)
class _Section:
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def link(object_file: bytes, address: int, entry: str) -> tuple[bytes, int]:
    """Link an object file to run at `address`, a multiple of 4,096.

    Returns:
        The bytes to place at the address, and the address of the function `entry`.

    Raises:
        ValueError: The object file refers to an external symbol, lacks the entry or has an unexpected relocation.
    """
    sections = _sections(object_file)
    image, places = bytearray(), {}
    for index, section in enumerate(sections):
        if section.flags & _ALLOCATED:
            image.extend(bytes(-len(image) % max(section.alignment, 1)))
            places[index] = len(image)
            content = object_file[section.offset : section.offset + section.size]
            image.extend(bytes(section.size) if section.kind == _NO_BITS else content)
    symbols = _symbols(object_file, sections, places)
    for section in sections:
        if section.kind == _RELOCATIONS and section.info in places:
            entries = object_file[section.offset : section.offset + section.size]
            for offset, info, addend in struct.iter_unpack("<QQq", entries):
                name, target = symbols[info >> 32]
                if target is None:
                    raise ValueError(f"the kernel needs the external symbol {name}")
                place = places[section.info] + offset
                _relocate(image, place, info & 0xFFFFFFFF, address + target + addend, address + place)
    entries_found = [target for name, target in symbols if name == entry and target is not None]
    if not entries_found:
        raise ValueError(f"the object file has no function {entry}")
    return bytes(image), address + entries_found[0]


def _sections(file: bytes) -> list[_Section]:
    (start,) = struct.unpack_from("<Q", file, 40)
    _, count, _ = struct.unpack_from("<3H", file, 58)
    return [_Section(*struct.unpack_from("<2I4Q2I2Q", file, start + 64 * index)) for index in range(count)]


def _symbols(file: bytes, sections: list[_Section], places: dict[int, int]) -> list[tuple[str, int | None]]:
    """Return each symbol's name and its place in the image; None for a symbol of another file."""
    table = next(section for section in sections if section.kind == _SYMBOLS)
    names = sections[table.link].offset
    symbols = []
    for name, _, _, section, value, _ in struct.iter_unpack("<I2BH2Q", file[table.offset : table.offset + table.size]):
        start = names + name
        place = places[section] + value if section in places else None
        symbols.append((file[start : file.index(b"\0", start)].decode(), place))
    return symbols


def _relocate(image: bytearray, place: int, kind: int, target: int, here: int) -> None:
    """Insert the address `target` into the instruction or word at `place`, whose own address is `here`."""
    if kind == _ABSOLUTE_64:
        struct.pack_into("<Q", image, place, target)
        return
    (word,) = struct.unpack_from("<I", image, place)
    if kind == _RELATIVE_32:
        word = (target - here) & 0xFFFFFFFF
    elif kind in (_RELATIVE_21, _PAGE_21):
        distance = target - here if kind == _RELATIVE_21 else target // _PAGE - here // _PAGE
        word |= (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5
    elif kind in (_JUMP_26, _CALL_26):
        word |= (target - here) >> 2 & 0x3FFFFFF
    elif kind in _LOW_BITS:
        word |= (target % _PAGE >> _LOW_BITS[kind]) << 10
    else:
        raise ValueError(f"relocation type {kind} of AArch64 is not implemented")
    struct.pack_into("<I", image, place, word)


def caller_program(address: int, size: int) -> bytes:
    """Return a program for Linux on AArch64 that maps its standard input at `address` and calls a function there.

    Args:
        address: Where to map, a multiple of 4 GiB. The first word there is the address of the function, the second one
            its argument.
        size: Bytes to map, a multiple of 64 KiB, below 4 GiB.
    """
    code = (
        _move(0, address >> 32, 2),
        _move(1, size >> 16, 1),
        _move(2, 7),  # to read, write and execute
        _move(3, 0x11),  # MAP_SHARED | MAP_FIXED
        _move(4, 0),  # standard input
        _move(5, 0),
        _move(8, 222),  # mmap
        0xD4000001,  # svc #0
        0xA9400001,  # ldp x1, x0, [x0]
        0xD63F0020,  # blr x1
        _move(0, 0),
        _move(8, 93),  # exit
        0xD4000001,  # svc #0
    )
    base, header = 0x400000, 64 + 56
    length = header + 4 * len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    # An executable (2) for AArch64 (183) with one program header, which loads the whole file (1) to run (5) at `base`.
    file_header = struct.pack("<2HI3QI6H", 2, 183, 1, base + header, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    program_header = struct.pack("<2I6Q", 1, 5, 0, base, base, length, length, 0x10000)
    return identity + file_header + program_header + struct.pack(f"<{len(code)}I", *code)


def _move(register: int, value: int, sixteens: int = 0) -> int:
    """Return the instruction movz: register = value << (16 * sixteens)."""
    return 0xD2800000 | sixteens << 21 | value << 5 | register
