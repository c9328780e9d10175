"""Styles Markdown for a terminal while it arrives, without moving the cursor.

Text is printed once and never redrawn. It therefore does not flicker, the terminal itself wraps it at any width, and code
keeps its exact characters for copying. A library that draws whole blocks, such as rich, must redraw each block with every
token, and cannot redraw lines that have left the window.
"""

import re

_BOLD, _DIM, _ITALIC, _UNDERLINE, _CYAN, _RESET = (f"\033[{code}m" for code in (1, 2, 3, 4, 36, 0))
# The longest part of a line that waits for the end of its emphasis, in characters.
_MAX_WAITING = 240
# Beginnings of lines that may become a heading, a list, a fence or a rule.
_UNDECIDED = re.compile(r"\s{0,12}(?:[#>*+\-_`~]{0,12}|\d{1,3}\.?)\s?")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s")
_RULE = re.compile(r"\s{0,3}([-*_])(?:\s*\1){2,}\s*")
_BULLET = re.compile(r"(\s*)[-*+]\s")
_SPECIAL = re.compile(r"\\[\\`*_#]|`+|\*+|_+")
# Bounded, so that the time for a line grows with its length only.
_CODE = re.compile(rf"(`+)(?!`)(.{{1,{_MAX_WAITING}}}?)(?<!`)\1(?!`)")
_EMPHASIS = re.compile(rf"(\*{{1,3}}|_)(?![\s*_])(.{{1,{_MAX_WAITING}}}?)(?<![\s*_])\1(?![\w*_])")
_STYLES = {1: _ITALIC, 2: _BOLD, 3: _BOLD + _ITALIC}


class MarkdownStyler:
    """Converts the pieces of one Markdown text to text with ANSI escape sequences."""

    def __init__(self) -> None:
        self._waiting = ""  # text of the current line that is not printed yet
        self._is_at_start = True  # whether the kind of the current line is undecided
        self._fence = ""  # the marker that ends the code block; empty outside of one
        self._base = ""  # style of the whole line
        self._last = " "  # the character before `_waiting`

    def feed(self, piece: str) -> str:
        """Return the text to print after another piece. The end of the piece may wait for the next one."""
        *lines, rest = f"{self._waiting}{piece}".split("\n")
        out = [f"{self._advance(line, is_complete=True)}{self._end_line()}" for line in lines]
        self._waiting = ""
        out.append(self._advance(rest, is_complete=False))
        return "".join(out)

    def finish(self) -> str:
        """Return the rest of the text, and switch all styles off."""
        return f"{self._advance(self._waiting, is_complete=True)}{_RESET if self._base else ''}"

    def _end_line(self) -> str:
        reset = _RESET if self._base else ""
        self._is_at_start, self._base, self._last = True, "", " "
        return f"{reset}\n"

    def _advance(self, text: str, *, is_complete: bool) -> str:
        """Return the printable beginning of `text`, the unprinted part of the current line. The rest waits."""
        start = ""
        if self._is_at_start:
            if not is_complete and _UNDECIDED.fullmatch(text):
                self._waiting = text
                return ""
            start, text = self._begin_line(text)
        if self._fence or self._base == _DIM:
            self._waiting = ""
            return f"{start}{text}"
        styled, self._waiting = self._spans(text, is_complete=is_complete)
        return f"{start}{styled}"

    def _begin_line(self, text: str) -> tuple[str, str]:
        """Decide the kind of the line. Return its start with the line's style, and its unstyled rest."""
        self._is_at_start = False
        fence = _FENCE.match(text)
        if self._fence:
            is_end = fence is not None and fence[1].startswith(self._fence) and not text[fence.end() :].strip()
            self._fence, self._base = ("", _DIM) if is_end else (self._fence, _CYAN)
        elif fence is not None:
            # This line, which contains the marker, is dim. The lines of the code block follow.
            self._fence, self._base = fence[1], _DIM
        elif _RULE.fullmatch(text):
            self._base = _DIM
        elif _HEADING.match(text):
            self._base = _BOLD
        elif bullet := _BULLET.match(text):
            return f"{bullet[1]}• ", text[bullet.end() :]
        return self._base, text

    def _spans(self, text: str, *, is_complete: bool) -> tuple[str, str]:
        """Return text with its emphasis and code styled, and the end of it that must wait for more text."""
        out: list[str] = []
        position = 0
        while (special := _SPECIAL.search(text, position)) is not None:
            before = text[position : special.start()]
            out.append(before)
            self._last = before[-1:] or self._last
            position = special.end()
            marker = special[0]
            if marker[0] == "\\":
                out.append(marker[1])
                self._last = marker[1]
                continue
            span = (_CODE if marker[0] == "`" else _EMPHASIS).match(text, special.start())
            is_word = marker[0] == "_" and self._last.isalnum()
            next_letter = text[position : position + 1]
            if span is not None and not is_word and (is_complete or span.end() < len(text)):
                out.append(self._styled(marker, span[2]))
                position = span.end()
            elif is_complete or is_word or next_letter.isspace() or len(text) - special.start() > _MAX_WAITING:
                out.append(marker)
            else:
                return "".join(out), text[special.start() :]
            self._last = text[position - 1]
        out.append(text[position:])
        self._last = text[-1:] or self._last
        return "".join(out), ""

    def _styled(self, marker: str, text: str) -> str:
        if marker[0] == "`":
            return f"{_CYAN}{text}{_RESET}{self._base}"
        inner = MarkdownStyler()
        inner._base = f"{self._base}{_STYLES[min(len(marker), 3)]}"
        styled, _ = inner._spans(text, is_complete=True)
        return f"{inner._base}{styled}{_RESET}{self._base}"
