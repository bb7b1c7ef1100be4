"""Text with holes in it, filled safely."""

from webapp_framework.templating.engine import Template, TemplateError, page, render
from webapp_framework.templating.escape import Safe, escaped

__all__ = ["Safe", "Template", "TemplateError", "escaped", "page", "render"]
