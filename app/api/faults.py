"""Collecting what is wrong with a request, element by element, up to a cap.

Knows: JSON pointers. Does not know: any rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.errors import FieldError, InvalidInput

LISTED: Final = 32  # enough to see the pattern; an answer is not a place for a million lines


def pointer(*tokens: str | int) -> str:
    """A JSON pointer (RFC 6901) from its tokens."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


class Faults:
    """The offending elements of one document, found below the pointer ``prefix``."""

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._errors: list[FieldError] = []
        self.total = 0

    def __bool__(self) -> bool:
        return self.total > 0

    @property
    def full(self) -> bool:
        """True when no further fault would be listed."""
        return self.total >= LISTED

    def add(self, where: str, detail: str) -> None:
        """Note one fault at the pointer ``where``."""
        self.total += 1
        if len(self._errors) < LISTED:
            self._errors.append(FieldError(_sendable(self._prefix + where), _sendable(detail)))

    def add_where(self, bad: NDArray[np.bool_], where: str, leaf: str, detail: str | Callable[[int], str]) -> None:
        """Note a fault at ``where/index`` + ``leaf`` for each true element of ``bad``; ``detail`` may use the index."""
        indices = np.flatnonzero(bad)
        for index in indices[: max(LISTED - self.total, 0)].tolist():
            words = detail if isinstance(detail, str) else detail(index)
            self._errors.append(FieldError(f"{self._prefix}{where}/{index}{leaf}", words))
        self.total += len(indices)

    def error(self) -> InvalidInput:
        """The error that names them."""
        return InvalidInput(self._errors, self.total)

    def raise_if_any(self) -> None:
        """Raise InvalidInput naming them."""
        if self:
            raise self.error()


def _sendable(text: str) -> str:
    """``text`` without the lone surrogates that a client's strings may hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
