"""vLLM behind the same `Run`: tensor and pipeline parallelism, several nodes, and the models that only vLLM has.

Ours stay the prompt, the limits, who is let in and whose turn it is, text and stop strings, tool calls. vLLM is given token
ids and gives token ids. It runs in processes of its own; deploy/VLLM.md says what differs. vLLM is imported when a model
is loaded by it, and nowhere else.
"""
