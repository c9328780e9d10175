"""Measures Tailrace and the alternatives that a user would consider, on one machine and in one run: `make bench`.

__main__ reads the command line, and environments creates the peers' virtual environments. rounds measures the peers in
turn. peers/ starts them, and scenarios sends them requests. The clients in load/ and the engines in workers/ run in
separate processes. report/ computes figures. It turns the newest results of each class of CPUs (results/CLASS/*.json) into
the tables of docs/benchmarks.md and SVGs. kernels/ measures the matrix products of linear layers, without a model.
"""
