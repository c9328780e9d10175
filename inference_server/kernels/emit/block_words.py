"""Numbers the words that every argument block has. Importing this module does not import llvmlite."""

# In every argument block, this word is the address of the C function usleep. If it is 0, threads wait without sleeping.
SLEEP_WORD = 22

# In every argument block, this word is the number of threads that run the kernel.
THREADS_WORD = 21
