"""Checks of what comes from outside."""

from webapp_framework.validation.rules import at_least, at_most, email, integer, matches, one_of, required, unique
from webapp_framework.validation.validator import Invalid, clean, validate

__all__ = ["Invalid", "at_least", "at_most", "clean", "email", "integer", "matches", "one_of", "required", "unique", "validate"]
