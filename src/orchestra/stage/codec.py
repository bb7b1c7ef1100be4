"""One line of JSON and back, by the C halves of the json module.

Importing the whole of it costs 6 ms and more, with `re` and `enum` behind it: that is a second for 200 workers. It is loaded where the C halves are
missing, and to say what is wrong with a text.
"""

from __future__ import annotations

from .files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Parse = Callable[[str], Any]
    Unparse = Callable[[Any], str]
    Quote = Callable[[str], str]


class Context:
    """What the C scanner asks of a decoder."""

    strict, object_hook, object_pairs_hook, parse_float, parse_int = True, None, None, float, int

    @staticmethod
    def parse_constant(name: str) -> None:
        """NaN and the infinities."""
        raise ValueError("%s is not JSON" % name)


def _c_halves() -> tuple[Parse, Unparse, Quote]:
    """Raises ImportError, AttributeError, TypeError or ValueError where this Python's C halves are other than we know them."""
    import _json

    scan = _json.make_scanner(Context)  # type: ignore[arg-type]
    encode = _json.make_encoder(None, str, _json.encode_basestring, None, ":", ",", False, False, False)

    def parse(text: str) -> Any:
        try:
            value, end = scan(text, 0)
        except (StopIteration, SystemError):  # the latter where the C half looks for an error class that is not loaded
            value, end = None, -1
        if end != len(text):
            import json

            return json.loads(text, parse_constant=Context.parse_constant)  # knows what is wrong
        return value

    def unparse(value: Any) -> str:
        return "".join(encode(value, 0))

    if parse(unparse({"a": [1, "\u00e9", None]})) != {"a": [1, "\u00e9", None]}:
        raise ValueError("the C halves do not understand each other")
    return parse, unparse, _json.encode_basestring


def _whole() -> tuple[Parse, Unparse, Quote]:
    import json

    def unparse(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)

    return json.loads, unparse, unparse


_made: list[tuple[Parse, Unparse, Quote]] = []


def _codec() -> tuple[Parse, Unparse, Quote]:
    """Made at first use: a worker that only waits needs none."""
    if not _made:
        try:
            _made.append(_c_halves())
        except (ImportError, AttributeError, TypeError, ValueError):
            _made.append(_whole())
    return _made[0]


def loads(text: str | bytes) -> Any:
    """The value; ValueError for whatever is not exactly one JSON value in UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return _codec()[0](text.strip())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any) -> bytes:
    """One line of JSON in UTF-8."""
    text: str = _codec()[1](value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry as an escape and UTF-8 cannot carry at all
        import json

        return json.dumps(value, separators=(",", ":")).encode("ascii")


def quoting() -> Quote:
    """What makes a JSON string of a text."""
    return _codec()[2]


def read_json(path: str) -> Any:
    """The value in a file, or None if there is none or it is not whole."""
    data = read_file(path)
    try:
        return None if data is None else loads(data)
    except ValueError:
        return None
