"""Everything that fl-lowrank raises on purpose.

::

    CompressionError
    ├── WireError           bytes from elsewhere that are not what they should be
    │   ├── VersionError    a format version that this release cannot read
    │   └── SketchError     a sketch with too few cells for what was added to it
    ├── SpecError           a compressor or rule text that cannot be understood
    ├── SettingError        a setting outside its range, or settings that clash
    ├── InputError          a tensor that cannot be compressed (NaN, dtype, shape)
    └── ProtocolError       client and server disagree about what comes next

Every message names who complains, what was expected, what was found and what
to do. All of them are ``ValueError`` too, since a value is what was wrong.
"""

from __future__ import annotations


class CompressionError(ValueError):
    """Base of all errors of this package."""


class WireError(CompressionError):
    """Bytes that do not hold what they announce; the sender is at fault."""


class VersionError(WireError):
    """Bytes of a format version that this release cannot read."""


class SketchError(WireError):
    """A sketch that holds more entries than its cells give back.

    Attributes
    ----------
    unpeeled : int
        Entries that cannot be recovered.
    union : int
        Entries that the sketch holds.
    cells : int
        Its cells.
    """

    def __init__(
        self, message: str, *, unpeeled: int = 0, union: int = 0, cells: int = 0
    ) -> None:
        super().__init__(message)
        self.unpeeled = unpeeled
        self.union = union
        self.cells = cells


class SpecError(CompressionError):
    """A text that names no compressor, or names one wrongly."""


class SettingError(CompressionError):
    """A setting that is out of range or clashes with another."""


class InputError(CompressionError):
    """A tensor that cannot be compressed."""


class ProtocolError(CompressionError):
    """A message that does not fit the state of the conversation."""


def require_kind(who: str, value: object, kind: type, example: str) -> None:
    """Raise `SettingError` if a setting is not of a class, with an example of one."""
    if not isinstance(value, kind):
        msg = (
            f"{who}: expected a {kind.__name__}, such as {example}, found a "
            f"{type(value).__name__}"
        )
        raise SettingError(msg)
