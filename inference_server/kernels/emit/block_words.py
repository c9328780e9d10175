"""Words of the argument block that generated code reads and Python sets. Importing this module does not import llvmlite."""

# The word of every argument block with the address of the C function usleep, or 0: threads then wait without sleeping.
SLEEP_WORD = 22

# The word of every argument block with the number of threads that run the kernel.
THREADS_WORD = 21
