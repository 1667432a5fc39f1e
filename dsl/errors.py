"""Every error a user can meet: one small class a cause, one message shape.

The text says what happened, shows the user's expression, and says what to do.
"""

from __future__ import annotations


class MaskwrightError(Exception):
    """Base of all errors of this package.

    Args:
        what: what happened, one sentence.
        expression: the user's expression (or value) it happened in.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, expression: object = None, fix: str = "") -> None:
        self.what = what
        self.expression = None if expression is None else str(expression)
        self.fix = fix
        super().__init__(self._format())

    def _format(self) -> str:
        lines = [self.what]
        if self.expression is not None:
            lines.append(f"  in: {shorten(self.expression)}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class MaskError(MaskwrightError):
    """The mask or score expression itself is wrong."""


class MaskSyntaxError(MaskError):
    """A text mask does not follow the grammar; shows the place with a caret."""

    def __init__(self, what: str, *, text: str, column: int = 0, fix: str = "") -> None:
        self.text = text
        self.column = column
        super().__init__(what, fix=fix)

    def _format(self) -> str:
        start = max(0, self.column - 60)
        piece = self.text[start : start + 100]
        caret = " " * (self.column - start) + "^"
        lines = [self.what, f"  in: {piece}", f"      {caret}"]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


class BindingError(MaskwrightError):
    """A runtime value is missing, unknown, or of the wrong type, rank, shape or device."""


class ShapeError(MaskwrightError):
    """Tensor shapes, dtypes or head counts do not fit together."""


class LoweringError(MaskwrightError):
    """The compiler cannot produce the requested kernel."""


class TuningError(MaskwrightError):
    """The tuner cannot do what was asked."""


class DispatchError(MaskwrightError):
    """No backend can serve this call on this device."""


class StrictError(DispatchError):
    """A slower path would be taken and ``MASKWRIGHT_STRICT=1`` forbids it."""


def shorten(text: str, limit: int = 400) -> str:
    """``text``, cut in the middle if it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"
