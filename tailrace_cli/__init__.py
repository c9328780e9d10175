"""The `tailrace` command: starts both services, asks models from a terminal, and finds out what is wrong."""
