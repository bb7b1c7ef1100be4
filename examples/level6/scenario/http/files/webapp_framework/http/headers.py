"""Headers, whose names know no case."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


class Headers:
    """Headers in the order they came; a name may come more than once."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        """Takes names and values."""
        self._pairs: list[tuple[str, str]] = []
        for name, value in pairs:
            self.add(name, value)

    def add(self, name: str, value: str) -> None:
        """Adds a header.

        Raises:
            ValueError: Name or value could pass for another header.
        """
        if not name or any(mark in name for mark in " :\r\n\0") or any(mark in value for mark in "\r\n\0"):
            raise ValueError(f"{name!r} is not a header of one line")
        self._pairs.append((name, value))

    def get(self, name: str, default: str = "") -> str:
        """Returns all values of a name, separated by commas, or the default."""
        found = self.all(name)
        return ", ".join(found) if found else default

    def all(self, name: str) -> list[str]:
        """Returns the values of a name, each by itself."""
        return [value for known, value in self._pairs if known.lower() == name.lower()]

    def __contains__(self, name: str) -> bool:
        """Tells whether there is a header of that name."""
        return bool(self.all(name))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Goes through names and values in order."""
        return iter(self._pairs)


def negotiate(accept: str, offers: list[str]) -> str:
    """Returns the offer a client likes best by its `Accept` header, or nothing if it takes none of them."""
    wishes = [_wish(part) for part in (accept or "*/*").split(",") if part.strip()]
    scored = [(max((quality for kind, quality in wishes if _fits(kind, offer)), default=0.0), offer) for offer in offers]
    best = max(scored, key=lambda pair: pair[0], default=(0.0, ""))
    return best[1] if best[0] > 0 else ""


def _wish(part: str) -> tuple[str, float]:
    kind, _, rest = part.strip().partition(";")
    quality = rest.strip()[2:] if rest.strip().startswith("q=") else "1"
    try:
        return kind.strip().lower(), float(quality)
    except ValueError:
        return kind.strip().lower(), 0.0


def _fits(kind: str, offer: str) -> bool:
    return kind in ("*/*", offer) or (kind.endswith("/*") and offer.startswith(kind[:-1]))
