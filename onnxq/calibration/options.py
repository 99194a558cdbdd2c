"""The options of a data source on the command line: `images:photos?resize=256&crop=224`."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from onnxq.errors import DataError


@dataclass(frozen=True)
class Options:
    """The `key=value` pairs after the question mark, read by type; every wrong one raises a DataError."""

    kind: str
    values: Mapping[str, str]

    @staticmethod
    def parse(kind: str, text: str, known: Collection[str]) -> Options:
        """The options in `text`, all of which must be among `known`."""
        values: dict[str, str] = {}
        for pair in filter(None, text.split("&")):
            key, _, value = pair.partition("=")
            if key not in known:
                raise DataError(f"Data {kind!r} has no option {key!r}. Its options are {', '.join(known)}.")
            if key in values or not value:
                raise DataError(f"Data {kind!r}: option {key!r} needs one value. Write {key}=VALUE once.")
            values[key] = value
        return Options(kind, values)

    def whole(self, key: str, default: int, minimum: int = 1) -> int:
        """A whole number, at least `minimum`."""
        text = self.values.get(key, str(default))
        if not text.isdecimal() or int(text) < minimum:
            raise self._wrong(key, f"a whole number, at least {minimum}")
        return int(text)

    def numbers(self, key: str, counts: Collection[int]) -> tuple[float, ...]:
        """Finite numbers with commas between them, as many as one of `counts`; empty where not given."""
        if key not in self.values:
            return ()
        try:
            numbers = tuple(float(part) for part in self.values[key].split(","))
        except ValueError as error:
            raise self._wrong(key, "numbers, with commas between them") from error
        if not all(map(math.isfinite, numbers)) or len(numbers) not in counts:
            raise self._wrong(key, f"{' or '.join(map(str, counts))} finite numbers here")
        return numbers

    def choice(self, key: str, default: str, allowed: Collection[str]) -> str:
        """One of the `allowed` words."""
        value = self.values.get(key, default)
        if value not in allowed:
            raise self._wrong(key, " or ".join(allowed))
        return value

    def sides(self, key: str) -> tuple[int, ...]:
        """`224` as (224,), `480x640` as (480, 640), height first; empty where the option is not given."""
        parts = self.values[key].split("x") if key in self.values else []
        if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
            raise self._wrong(key, "pixels, like 224, or HEIGHTxWIDTH, like 480x640")
        return tuple(map(int, parts))

    def _wrong(self, key: str, wanted: str) -> DataError:
        return DataError(f"Data {self.kind!r}: option {key}={self.values.get(key)} is wrong. It takes {wanted}.")
