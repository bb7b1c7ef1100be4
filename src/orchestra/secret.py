"""PORT: where a key comes from. It is read when it is needed and again when it stops working, so that it may be changed there at any time."""

from __future__ import annotations

from typing import Protocol

MASK = "***"


class Secret:
    """A key. It shows itself nowhere by accident: `reveal` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Returns the key itself."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


class SecretSource(Protocol):
    """One place where one key is kept."""

    @property
    def name(self) -> str:
        """What people call the place; never the key."""
        ...

    async def read(self) -> Secret:
        """Returns the key as it is there now.

        Raises:
            SettingsInvalid: There is none, or the place is not safe.
        """
        ...
