"""The forms in which replies and errors reach a client: one module for each, one object for each reply.

Pure: they know bytes and JSON; they know nothing of HTTP's or gRPC's connections.
"""
