"""Measures Tailrace and the alternatives that a user would consider, on one machine and in one run: `make bench`.

__main__ (command line) -> environments (the peers' virtual environments) -> rounds (peer by peer, in turn) -> peers
(how each is started) -> scenarios (which requests they get). Peers and scenarios use load/ (clients) and workers/
(engines), which run in separate processes, and report/statistics. The results in results/CLASS/*.json, a folder for each
class of CPUs (machine), become the tables of docs/benchmarks.md (report/report) and SVGs (report/chart).
kernels/ measures the products of linear layers by themselves.
"""
