"""Caching, mappings and text."""

from webapp_framework.utils.cache import Cache
from webapp_framework.utils.mapping import merge, pick
from webapp_framework.utils.text import plural, shorten, slug

__all__ = ["Cache", "merge", "pick", "plural", "shorten", "slug"]
