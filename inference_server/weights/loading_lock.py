"""The lock that a thread holds while transformers loads a model.

`from_pretrained` replaces methods of PreTrainedModel until the model is loaded. If two threads load at the same time, the
replacement can become permanent, and every later model with tied embeddings lacks its output head.
"""

import threading

LOADING = threading.Lock()
