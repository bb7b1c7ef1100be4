"""Headers, cookies and status codes."""

from webapp_framework.http.cookies import make_cookie, read_cookies
from webapp_framework.http.headers import Headers, negotiate
from webapp_framework.http.status import is_error, phrase

__all__ = ["Headers", "is_error", "make_cookie", "negotiate", "phrase", "read_cookies"]
