"""The inference server: a gRPC `Run` that streams a language model's reply.

The path of a request, file by file:
    servicer -> requests -> prompt -> engine -> scheduler -> runner (attention, kv_cache) -> sampling -> detokenizer -> back
"""
