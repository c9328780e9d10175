"""The kinds of routes on which runs are asked for: each reads a request in its own way and chooses the form of its reply."""
