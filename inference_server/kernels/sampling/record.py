"""The record of a row: 16 words of 8 bytes. Words 0 to 12 are its arguments; the kernel writes words 13 to 15."""

# Words of a record.
LOGITS = 0  # address of the row's logits, float32
SEEN = 1  # address of a mask of the tokens in prompt and reply, (vocab_size,) bool; 0 if the row has no penalties
COUNTS = 2  # address of each token's number of occurrences in the reply, (vocab_size,) float32
ALLOWED = 3  # address of a mask of the tokens that a grammar allows, (vocab_size,) uint8; 0 if the row has no grammar
REPETITION, FREQUENCY, PRESENCE = 4, 5, 6  # strengths of the penalties, float64
TEMPERATURE = 7  # float64; 0 selects the token with the largest logit
KEY = 8  # 64 bits for the noise
TOP_K = 9  # 0 for no limit
TOP_P = 10  # float64; 1 or more for no limit
TOP, TOP_SIZE = 11, 12  # address of the list of likeliest tokens, and its length; 0 without log probabilities
TOKEN = 13  # the sampled token, or UNDECIDED
LARGEST = 14  # the largest logit before penalties and grammar, float32, in the first 4 bytes; NaN if any logit is NaN
TOTAL = 15  # sum of exp(logit - LARGEST) over all tokens, float32, in the first 4 bytes; only with log probabilities
RECORD_WORDS = 16

UNDECIDED = -1  # rounding errors could change the token
BLOCK = 64  # tokens that a loop of the kernel processes at a time
