"""Applies rules to the fields of a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from webapp_framework.validation.rules import Rule


class Invalid(ValueError):
    """Something in a form is wrong; `faults` says what, by field."""

    status = 400

    def __init__(self, faults: Mapping[str, str]) -> None:
        """Takes what is wrong with which field."""
        super().__init__("; ".join(f"{field} {said}" for field, said in faults.items()))
        self.faults = dict(faults)


def validate(values: Mapping[str, Any], rules: Mapping[str, Sequence[Rule]]) -> dict[str, str]:
    """Returns the first thing wrong with each field, by field."""
    faults = {}
    for field, checks in rules.items():
        said = next((said for check in checks if (said := check(values.get(field)))), "")
        if said:
            faults[field] = said
    return faults


def clean(values: Mapping[str, Any], rules: Mapping[str, Sequence[Rule]]) -> dict[str, Any]:
    """Returns the fields there are rules for; others are left out.

    Raises:
        Invalid: A field breaks a rule; the application answers 400.
    """
    faults = validate(values, rules)
    if faults:
        raise Invalid(faults)
    return {field: values[field] for field in rules if field in values}
