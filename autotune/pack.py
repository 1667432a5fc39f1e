"""Small arrays as text: what a recorded table keeps of the runtime tensors that it was made with."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskwright.autotune.record import RecordError


@dataclass(frozen=True)
class Packed:
    """An array.

    Attributes:
        dtype: as numpy writes it, with the order of bytes.
        data: its bytes, compressed, in base64.
    """

    dtype: str
    shape: tuple[int, ...]
    data: str

    @staticmethod
    def of(array: Any) -> Packed:
        """Equal arrays give equal text."""
        found = np.ascontiguousarray(array)
        data = base64.b64encode(zlib.compress(found.tobytes(), 9)).decode("ascii")
        return Packed(found.dtype.str, tuple(np.shape(array)), data)

    def array(self) -> Any:
        """The inverse.

        Raises:
            RecordError: the text is no such array.
        """
        try:
            data = zlib.decompress(base64.b64decode(self.data, validate=True))
            return np.frombuffer(data, np.dtype(self.dtype)).reshape(self.shape).copy()
        except (ValueError, TypeError, zlib.error) as error:
            raise RecordError(f"this is no array: {error}") from error
