"""Measures Tailrace and the alternatives that a user would consider, on one machine and in one run: `make bench`.

__main__.py reads the command line, and environments.py creates the virtual environments of the alternatives (peers).
rounds.py measures the peers in turn. peers/ starts them, and scenarios.py sends them requests. The clients in load/ and
the engines in workers/ run in separate processes. report/ computes figures, and turns the newest results of each CPU
class (results/CLASS/*.json) into the tables and SVG charts of docs/benchmarks.md.

kernels/ measures the matrix products of linear layers, without a model. gpu/ checks and measures Tailrace on a GPU.
features/ has one command for each feature of Tailrace, such as `python -m benchmarks.features.adapters`.
"""
