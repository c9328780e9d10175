"""The layout and the examples of the help pages. The examples fit into 80 columns."""

import argparse
import shutil

_MAX_WIDTH = 100
_INDENT = 24

_RUN = """\
examples:
  tailrace run "where is new york?"
  tailrace run smollm2 "Name three rivers." --max-tokens 60
  cat report.txt | tailrace run "Summarise this:"
  tailrace run -f a.py -f b.py "What differs between these files?"
  tailrace run --schema person.json "Ada Lovelace, born in 1815."

exit codes: 0; 1 after an error; 2 for wrong usage; 130 after Ctrl-C"""
_CHAT = """\
In a chat, /help lists the commands. Ctrl-C stops a reply, Ctrl-D ends.

examples:
  tailrace chat
  tailrace chat smollm2 --system "Answer in one sentence."
  tailrace chat < questions.txt > answers.txt

exit codes: 0; 1 after an error, or if a line of piped input was refused;
2 for wrong usage; 130 after Ctrl-C"""
_SERVE = """\
examples:
  tailrace serve
  tailrace serve Qwen/Qwen3-0.6B --port 9000
  tailrace serve ./model.gguf --max-context 4096"""
_DOCTOR = """\
examples:
  tailrace doctor
  tailrace doctor --url https://ai.example.com --token "$TOKEN"

exit codes: 0; 1 if something must change"""
_MAKE_ACCOUNT = """\
example:
  tailrace token acme >> tokens.txt"""
_COMPLETION = """\
examples:
  source <(tailrace completion bash)         # in ~/.bashrc
  source <(tailrace completion zsh)          # in ~/.zshrc
  tailrace completion fish | source          # in config.fish"""
_STORED = """\
examples:
  tailrace pull Qwen/Qwen3-0.6B
  tailrace list
  tailrace rm Qwen/Qwen3-0.6B"""

EPILOGS = {
    "run": _RUN,
    "chat": _CHAT,
    "serve": _SERVE,
    "doctor": _DOCTOR,
    "token": _MAKE_ACCOUNT,
    "completion": _COMPLETION,
    "pull": _STORED,
    "list": _STORED,
    "rm": _STORED,
    "models": "example:\n  tailrace models --url http://127.0.0.1:8787",
    "ps": "example:\n  tailrace ps --json",
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the line ends of examples, and uses the width of the terminal up to a limit."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _MAX_WIDTH) - 2
        super().__init__(prog, max_help_position=_INDENT, width=width)
