"""T(n): the text that may be shown after n output tokens.

A pure function of the token prefix, and monotone: T(n) begins with T(n-1). Characters are whole, possible
stop strings are held back. Because each token's own part of it is kept, any delta [a, b) is T(b) - T(a), whoever
asks for it and however often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from hyperflexis_router.core.stops import StopStrings

REPLACEMENT = "\ufffd"
CHARACTER_TOKENS = 4
"""A character has at most four bytes, so at most this many tokens."""
UNDECIDED_TOKENS = 16
"""Undecodable output this long is settled up to its last CHARACTER_TOKENS tokens: work per token is bounded."""

Decode = Callable[[list[int]], str]
"""Token ids to text, special tokens skipped. Raises Undecodable."""


class Undecodable(Exception):
    """The tokenizer fails over these tokens; the message is its own reason."""


class Detokenizer:
    """Token by token to text, looking back only as far as the last settled piece.

    Decoders look at neighbours (spaces, multi-byte characters), so a token's text is the difference between
    decoding a window with it and without it.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._settled = 0
        self._shown = ""

    def push(self, token: int) -> str:
        """The characters that this token completes."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) > len(self._shown) and not text.endswith(REPLACEMENT):
            return self._settle(text, len(self._window))
        if len(self._window) - self._settled < UNDECIDED_TOKENS:
            return ""
        if text == self._shown:
            # Skipped special tokens: they add nothing, and the window before them is still needed.
            del self._window[self._settled : -CHARACTER_TOKENS]
            return ""
        # No character is this long: what ends before the last few tokens cannot change any more.
        upto = len(self._window) - CHARACTER_TOKENS
        sure = self._decode(self._window[:upto])
        return self._settle(text[: len(sure)], upto)

    def flush(self) -> str:
        """The output has ended: the incomplete end, as replacement characters."""
        return self._settle(self._decode(self._window), len(self._window))

    def _settle(self, text: str, upto: int) -> str:
        shown = self._shown
        new = text[len(shown) :]
        self._window = self._window[self._settled :]
        self._settled = upto - self._settled
        self._shown = self._decode(self._window[: self._settled])
        return new


class OutputText:
    """T over one request's whole output, fed once, asked any number of times. Ends before a token without text."""

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._tokens = Detokenizer(decode)
        self._stops = StopStrings(stops)
        self._pieces: list[str] = []
        self._tail = ""
        self.failure = ""
        """Why there is no text for what came next: the tokenizer fails over it."""

    @property
    def tokens(self) -> int:
        """Tokens taken; the token that completed a stop string is the last one."""
        return len(self._pieces)

    @property
    def stopped(self) -> str | None:
        return self._stops.matched

    @property
    def over(self) -> bool:
        """No further token has text: a stop string is complete, or the tokenizer failed."""
        return self._stops.matched is not None or bool(self.failure)

    def push(self, tokens: Iterable[int]) -> None:
        """Takes the next tokens, up to and including the one that completes a stop string."""
        for token in tokens:
            if self.over:
                return
            try:
                self._pieces.append(self._stops.push(self._tokens.push(token)))
            except Undecodable as error:
                self.failure = str(error)

    @property
    def tail(self) -> str:
        """What was held back to the end; empty before `finish`."""
        return self._tail

    def finish(self) -> None:
        """The output has ended: what was held back now belongs to it."""
        if self.over:
            return
        try:
            self._tail = self._stops.push(self._tokens.flush()) + self._stops.flush()
        except Undecodable as error:
            self.failure = str(error)

    def between(self, start: int, end: int) -> str:
        """T(end) - T(start)."""
        return "".join(self._pieces[start:end])
