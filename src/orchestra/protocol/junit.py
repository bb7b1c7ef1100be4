"""JUnit XML, as test runners write it. Pure; bounded; a document type is refused, so that no entity can be made of it."""

from __future__ import annotations

from typing import Final
from xml.etree import ElementTree

import msgspec

CASES_MAX: Final = 20_000
DETAIL_CHARACTERS_MAX: Final = 8_000


class TestCase(msgspec.Struct, frozen=True):
    """One test."""

    suite: str
    name: str
    result: str
    """`passed`, `failed`, `error` or `skipped`."""
    seconds: float = 0.0
    detail: str = ""
    """What was said of it, cut to 8,000 characters."""

    __test__ = False


class TestRun(msgspec.Struct, frozen=True):
    """What a JUnit document says."""

    cases: tuple[TestCase, ...]
    more: int = 0
    """Tests beyond the first 20,000."""

    __test__ = False

    def count(self, *results: str) -> int:
        """Returns how many of its tests ended so."""
        return sum(case.result in results for case in self.cases)


def read_junit(text: str) -> TestRun | None:
    """Returns the tests of a document, or None if it is no JUnit XML."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        return None
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        return None
    if root.tag not in ("testsuites", "testsuite"):
        return None
    cases: list[TestCase] = []
    more = 0
    for suite in root.iter("testsuite"):
        for each in suite.findall("testcase"):
            if len(cases) < CASES_MAX:
                cases.append(_case(suite, each))
            else:
                more += 1
    return TestRun(tuple(cases), more)


def _case(suite: ElementTree.Element, case: ElementTree.Element) -> TestCase:
    result, detail = "passed", ""
    for tag, word in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            result = word
            said = [found.get("message") or "", (found.text or "").strip()]
            detail = "\n".join(dict.fromkeys(filter(None, said)))[:DETAIL_CHARACTERS_MAX]
            break
    return TestCase(case.get("classname") or suite.get("name") or "", case.get("name") or "", result, _seconds(case.get("time")), detail)


def _seconds(text: str | None) -> float:
    try:
        value = float((text or "0").replace(",", ""))
    except ValueError:
        return 0.0
    return value if 0 <= value < 1e9 else 0.0
