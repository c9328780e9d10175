"""Emits a kernel's control flow, memory accesses and atomic counters.

A Python function defines a kernel. It receives a `Code` and the address of the argument block. Its Python loops and
calls run once, while the code is generated, so the generated code is unrolled and inlined. `Code.loop`, `Code.when` and
`Code.call` emit loops, branches and calls. The argument block is described in jit/arguments.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llvmlite import ir

from inference_server.kernels.emit.types import DOUBLE, FLOAT, INT8, INT16, INT32, INT64, vector_type
from inference_server.kernels.emit.values import Condition, Float, Int, Value, Vector, call_intrinsic, splat

if TYPE_CHECKING:
    from inference_server.kernels.isa.instruction_set import InstructionSet

LANES = 16  # lanes of the vectors that most kernels compute with; LLVM splits them where registers are narrower


class Variable:
    """A value that the generated code can replace, for example in a loop. LLVM keeps it in a register if one is free."""

    def __init__(self, builder: Any, initial: Any) -> None:
        """Create a variable with an initial value: an Int, Float or Vector."""
        self._builder, self._class = builder, type(initial)
        with builder.goto_entry_block():
            self._memory = builder.alloca(initial.llvm.type)
        self.set(initial)

    def get(self) -> Any:
        """Return the current value."""
        return self._class(self._builder, self._builder.load(self._memory))

    def set(self, value: Value) -> None:
        """Replace the value."""
        self._builder.store(value.llvm, self._memory)


class Code:
    """The code of one function of a kernel, to which instructions are appended."""

    def __init__(self, builder: Any, isa: "InstructionSet", block: Int | None = None) -> None:
        """Start a function.

        Args:
            builder: llvmlite's builder, which appends instructions to the function.
            isa: The instruction set for which the kernel is compiled.
            block: The address of the kernel's argument block; None in a function that a kernel calls.
        """
        self.builder, self.isa, self.block = builder, isa, block

    # Constants

    def integer(self, value: int) -> Int:
        """Return an int64 constant."""
        return Int(self.builder, ir.Constant(INT64, value))

    def number(self, value: float) -> Float:
        """Return a float32 constant."""
        return Float(self.builder, ir.Constant(FLOAT, value))

    def floats(self, value: float | list[float], lanes: int = LANES) -> Vector:
        """Return a constant vector of float32. `value`: one number for all lanes, or a list with one for each lane."""
        values = value if isinstance(value, list) else [float(value)] * lanes
        return Vector(self.builder, ir.Constant(vector_type(FLOAT, len(values)), values))

    def ints(self, value: int | list[int], lanes: int = LANES, element: Any = INT32) -> Vector:
        """Return a constant vector of integers. `value`: one number for all lanes, or a list with one for each lane."""
        values = value if isinstance(value, list) else [value] * lanes
        return Vector(self.builder, ir.Constant(vector_type(element, len(values)), values))

    def variable(self, initial: Any) -> Variable:
        """Return a variable with an initial value: an Int, Float or Vector."""
        return Variable(self.builder, initial)

    # Control flow

    @contextmanager
    def loop(self, start: Int | int, stop: Int | int, step: Int | int = 1) -> Iterator[Int]:
        """Emit a loop over range(start, stop, step), with a positive step. Yields the index."""
        first, end, each = (value if isinstance(value, Int) else self.integer(value) for value in (start, stop, step))
        builder = self.builder
        before = builder.block
        head, body, after = (builder.append_basic_block(name) for name in ("head", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(INT64)
        index.add_incoming(first.llvm, before)
        builder.cbranch(builder.icmp_signed("<", index, end.llvm), body, after)
        builder.position_at_end(body)
        yield Int(builder, index)
        index.add_incoming(builder.add(index, each.llvm), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def work_items(self, counter: Int, count: Int | int) -> Iterator[Int]:
        """Emit a loop that takes the next number from the shared counter until `count` is reached. Yields the number.

        The threads of a kernel share the work items this way: each number goes to one thread.
        """
        builder = self.builder
        head, body, after = (builder.append_basic_block(name) for name in ("take", "item", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        item = self.take_next(counter)
        builder.cbranch((item < count).llvm, body, after)
        builder.position_at_end(body)
        yield item
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def repeat_while(self, condition: Callable[[], Condition]) -> Iterator[None]:
        """Emit a loop that runs its body as long as the condition, evaluated before each run, is true."""
        builder = self.builder
        head, body, after = (builder.append_basic_block(name) for name in ("test", "again", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        builder.cbranch(condition().llvm, body, after)
        builder.position_at_end(body)
        yield
        builder.branch(head)
        builder.position_at_end(after)

    @contextmanager
    def when(self, condition: Condition) -> Iterator[None]:
        """Emit a branch that runs its body only if the condition is true."""
        with self.builder.if_then(condition.llvm):
            yield

    @contextmanager
    def either(self, condition: Condition) -> Iterator[tuple[Any, Any]]:
        """Emit two branches. Yields two context managers: one for the true case, one for the false case."""
        with self.builder.if_else(condition.llvm) as cases:
            yield cases

    def call(self, name: str, emit: "Callable[..., None]", *arguments: Value) -> None:
        """Call a function of the generated code, without inlining it. The first call defines it.

        Args:
            name: The function's name, which identifies it within the kernel.
            emit: Emits the function's body, from a `Code` for this function and the function's arguments.
            arguments: Int or Float values.
        """
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(ir.VoidType(), [argument.llvm.type for argument in arguments])
            function = ir.Function(module, signature, name)
            function.linkage = "internal"
            function.attributes.add("noinline")
            code = Code(ir.IRBuilder(function.append_basic_block("entry")), self.isa)
            parameters = zip(arguments, function.args, strict=True)
            emit(code, *(type(argument)(code.builder, parameter) for argument, parameter in parameters))
            code.builder.ret_void()
        self.builder.call(function, [argument.llvm for argument in arguments])

    def call_address(self, address: Int, *arguments: Int, returns_int: bool = False) -> Int | None:
        """Call the C function at an address with int64 arguments. Returns its result, a C int, if `returns_int`."""
        signature = ir.FunctionType(INT32 if returns_int else ir.VoidType(), [INT64] * len(arguments))
        result = self.builder.call(self.pointer(address, signature), [argument.llvm for argument in arguments])
        return Int(self.builder, self.builder.sext(result, INT64)) if returns_int else None

    def intrinsic(self, name: str, result: Any, *operands: Value) -> Any:
        """Call an LLVM intrinsic. Returns the LLVM value of type `result`."""
        return call_intrinsic(self.builder, name, result, *(operand.llvm for operand in operands))

    # Memory

    def pointer(self, address: Int, to: Any) -> Any:
        """Return an address as an LLVM pointer to the type `to`.

        If a constant was added to the address last, it becomes an offset of the pointer. LLVM then uses it as the offset in
        the load or store. On Arm, LLVM would otherwise choose offsets that do not fit into the instruction, and compute
        every address.
        """
        base, offset = address.llvm, 0
        while isinstance(base, ir.Instruction) and base.opname == "add" and isinstance(base.operands[1], ir.Constant):
            base, offset = base.operands[0], offset + base.operands[1].constant
        pointer = self.builder.inttoptr(base, INT8.as_pointer())
        if offset:
            pointer = self.builder.gep(pointer, [ir.Constant(INT64, offset)])
        return self.builder.bitcast(pointer, to.as_pointer())

    def _load(self, address: Int, kind: Any, align: int) -> Any:
        return self.builder.load(self.pointer(address, kind), align=align)

    def load_int64(self, address: Int) -> Int:
        """Load one int64."""
        return Int(self.builder, self._load(address, INT64, 8))

    def load_int32(self, address: Int) -> Int:
        """Load one int32, as int64."""
        return Int(self.builder, self.builder.sext(self._load(address, INT32, 4), INT64))

    def load_float(self, address: Int) -> Float:
        """Load one float32."""
        return Float(self.builder, self._load(address, FLOAT, 4))

    def load_vector(self, address: Int, element: Any, lanes: int = LANES, align: int = 1) -> Vector:
        """Load consecutive elements. `align`: alignment of the address in bytes."""
        return Vector(self.builder, self._load(address, vector_type(element, lanes), align))

    def load_floats(self, address: Int, lanes: int = LANES) -> Vector:
        """Load consecutive float32."""
        return self.load_vector(address, FLOAT, lanes, 4)

    def load_splat(self, address: Int, element: Any, lanes: int = LANES) -> Vector:
        """Load one element into every lane."""
        return splat(self.builder, self._load(address, element, 1), lanes)

    def store(self, value: Value, address: Int, align: int = 1) -> None:
        """Store a value: 8 bytes for an Int, 4 for a Float, the elements of a Vector."""
        self.builder.store(value.llvm, self.pointer(address, value.llvm.type), align=align)

    def stack(self, num_bytes: Int | int) -> Int:
        """Allocate stack memory, aligned to 64 bytes, until the function returns. Not allowed in loops and branches."""
        size = num_bytes if isinstance(num_bytes, Int) else self.integer(num_bytes)
        memory = self.builder.alloca(INT8, size.llvm)
        memory.align = 64
        return Int(self.builder, self.builder.ptrtoint(memory, INT64))

    def prefetch(self, address: Int) -> None:
        """Start loading the cache line at the address, without waiting for it."""
        hints = [ir.Constant(INT32, hint) for hint in (0, 3, 1)]  # read access, nearest cache level, data cache
        call_intrinsic(self.builder, "llvm.prefetch.p0", ir.VoidType(), self.pointer(address, INT8), *hints)

    # Argument blocks and counters

    def argument(self, block: Int, index: int) -> Int:
        """Return word `index` of the argument block."""
        return self.load_int64(block + 8 * index)

    def float_argument(self, block: Int, index: int) -> Float:
        """Return word `index` of the argument block, a double, as float32."""
        return Float(self.builder, self.builder.fptrunc(self._load(block + 8 * index, DOUBLE, 8), FLOAT))

    def take_next(self, counter: Int) -> Int:
        """Add 1 to the counter at this address atomically. Returns its previous value, which no other call returns."""
        return self.count(counter)

    def count_done(self, counter: Int) -> Int:
        """Add 1 to the counter at this address, after all of this thread's writes. Returns its previous value."""
        return self.count(counter)

    def count(self, counter: Int, amount: int = 1) -> Int:
        """Add `amount` to the counter at this address atomically. Returns its previous value.

        Writes by the threads that added to the counter earlier are then visible to this thread. This thread's own earlier
        writes are visible to the threads that read the counter later.
        """
        place = self.pointer(counter, INT64)
        return Int(self.builder, self.builder.atomic_rmw("add", place, ir.Constant(INT64, amount), "acq_rel"))

    def num_done(self, counter: Int) -> Int:
        """Load the counter at this address.

        Writes that threads made before they added to the counter are then visible.
        """
        return Int(self.builder, self.builder.load_atomic(self.pointer(counter, INT64), "acquire", 8))

    def load_bf16_bits(self, address: Int, lanes: int = LANES) -> Vector:
        """Load consecutive 16-bit values into the low halves of int32 lanes."""
        return self.load_vector(address, INT16, lanes, 2).widened(INT32)
