"""Application, request and response: what every program built on the framework uses."""

from webapp_framework.core.application import Application
from webapp_framework.core.errors import BadRequest, Forbidden, NotFound, Unauthorized, WebError
from webapp_framework.core.request import Request
from webapp_framework.core.response import Response

__all__ = ["Application", "BadRequest", "Forbidden", "NotFound", "Request", "Response", "Unauthorized", "WebError"]
