"""The record of a row: 20 words of 8 bytes. Words 0 to 16 are its arguments; the kernel writes words 17 to 19."""

# Words of a record.
LOGITS = 0  # address of the row's logits, float32
SEEN = 1  # address of a mask of the tokens in prompt and reply, (vocab_size,) bool; 0 if the row has no penalties
COUNTS = 2  # address of each token's number of occurrences in the reply, (vocab_size,) float32
ALLOWED = 3  # address of a mask of the tokens that a grammar allows, (vocab_size,) uint8; 0 if the row has no grammar
BIASED, BIASES = 4, 5  # addresses of token ids, int32, and of the biases of their logits, float32; 0 without a bias
NUM_BIASED = 6  # number of these token ids
REPETITION, FREQUENCY, PRESENCE = 7, 8, 9  # strengths of the penalties, float64
TEMPERATURE = 10  # float64; 0 selects the token with the largest logit
KEY = 11  # 64 bits for the noise
TOP_K = 12  # 0 for no limit
TOP_P = 13  # float64; 1 or more for no limit
DEPTH = 14  # float64; a kept logit is at least the largest one plus this number, which is temperature * log(min_p)
TOP, TOP_SIZE = 15, 16  # address of the list of likeliest tokens, and its length; 0 without log probabilities
TOKEN = 17  # the sampled token, or UNDECIDED
LARGEST = 18  # the largest logit, float32, in the first 4 bytes; NaN if any logit is NaN
TOTAL = 19  # sum of exp(logit - LARGEST) over all tokens, float32, in the first 4 bytes; only with log probabilities
RECORD_WORDS = 20

UNDECIDED = -1  # rounding errors could change the token
BLOCK = 64  # tokens that a loop of the kernel processes at a time
