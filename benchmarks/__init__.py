"""Tailrace measured beside what a user would pick instead, on one machine and in one run: `make bench`.

__main__ (command line) -> environments (the peers' virtual environments) -> rounds (peer by peer, in turn)
-> peers (how each is started) -> scenarios (what is asked of them) -> client, workers (who ask, in processes of their
own) -> statistics -> results/*.json -> report (README table) and chart (SVG).
"""
