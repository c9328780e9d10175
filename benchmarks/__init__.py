"""Measures Tailrace and the alternatives that a user would consider, on one machine and in one run: `make bench`.

__main__ reads the command line, and environments creates the peers' virtual environments. rounds measures the peers in
turn. peers/ starts them, and scenarios sends them requests. The clients in load/ and the engines in workers/ run in
separate processes. report/ computes figures, and turns the newest results of each CPU class (results/CLASS/*.json)
into the tables and SVG charts of docs/benchmarks.md.

kernels/ measures the matrix products of linear layers, without a model. gpu/ checks and measures Tailrace on a GPU.
Other modules with a command line, such as adapters and speculation, each measure one feature.
"""
