"""The record of a row: 22 words of 8 bytes. Words 0 to 18 are its arguments; the kernel writes words 19 to 21."""

# Words of a record.
LOGITS = 0  # address of the row's logits, float32
PENALISED, COUNTS = (
    1,
    2,
)  # addresses of the distinct tokens of prompt and reply, int32, and of their counts in the reply, float32
UNCHANGED = 3  # address to which the kernel copies the logits of these tokens before it changes them, float32
NUM_PENALISED = 4  # number of these tokens; 0 if the row has no penalties
ALLOWED = 5  # address of a mask of the tokens that a grammar allows, (vocab_size,) uint8; 0 if the row has no grammar
BIASED, BIASES = 6, 7  # addresses of token ids, int32, and of the biases of their logits, float32; 0 without a bias
NUM_BIASED = 8  # number of these token ids
REPETITION, FREQUENCY, PRESENCE = 9, 10, 11  # strengths of the penalties, float64
TEMPERATURE = 12  # float64; 0 selects the token with the largest logit
KEY = 13  # 64 bits for the noise
TOP_K = 14  # 0 for no limit
TOP_P = 15  # float64; 1 or more for no limit
DEPTH = 16  # float64; a kept logit is at least the largest one plus this number, which is temperature * log(min_p)
TOP, TOP_SIZE = 17, 18  # address of the list of likeliest tokens, and its length; 0 without log probabilities
TOKEN = 19  # the sampled token, or UNDECIDED
LARGEST = 20  # the largest logit, float32, in the first 4 bytes; NaN if any logit is NaN
TOTAL = 21  # sum of exp(logit - LARGEST) over all tokens, float32, in the first 4 bytes; only with log probabilities
RECORD_WORDS = 22

UNDECIDED = -1  # rounding errors could change the token
BLOCK = 64  # tokens that a loop of the kernel processes at a time
