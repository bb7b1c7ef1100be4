"""Runs a test runner or linter and counts what it found: from the JUnit XML it writes, from its own stream of events, or from what it prints.

    reporter.py FORMAT FIGURES JUNIT COMMAND...

The command's output passes through. A line `<figure> <number>` is added to the file FIGURES for each figure that is known (tests_passed, tests_failed,
linter_errors), and the tests themselves are added to the file JUNIT. The exit code is the command's; 128 and the signal's number if one ended it.

FORMAT is pytest, go, cargo, node, lint or any; `any` understands what is printed at the end by pytest, unittest, Jest, Vitest, Mocha, AVA, node --test,
cargo and go. This file is pushed to nodes and runs on their own Python, 3.8 or newer, standard library only.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any
from xml.etree import ElementTree

COUNTED_LINE_BYTES_MAX = 65536  # a longer line is no summary; of what is counted no more has to be looked at
JUNIT_BYTES_MAX = 64 << 20
CASES_MAX = 20000
DETAIL_CHARACTERS_MAX = 8000

ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
CARGO_TEST = re.compile(r"test (\S.*?) \.\.\. (ok|FAILED|ignored)\b")
CARGO_SUM = re.compile(r"test result: \w+\. (\d+) passed; (\d+) failed")
PYTEST = re.compile(r"=* ?((?:\d+ (?:passed|failed|errors?|skipped|xfailed|xpassed|warnings?|deselected|rerun)(?:, )?)+) in [\d.]+")
UNITTEST_RAN = re.compile(r"Ran (\d+) tests? in ")
UNITTEST_BAD = re.compile(r"FAILED \(([a-z ]+=\d+(?:, [a-z ]+=\d+)*)\)")
JEST = re.compile(r"Tests:\s+(?=.*\b\d+ total)(.*)")
VITEST = re.compile(r"\s*Tests\s+(.*\d+ (?:passed|failed).*)\(\d+\)")
MOCHA = re.compile(r"\s*(\d+) (passing|failing)\b")
AVA = re.compile(r"\s*(\d+) tests? (passed|failed)$")
NODE = re.compile(r"(?:#|\u2139) (pass|fail) (\d+)$")
GO_TEST = re.compile(r"\s*--- (PASS|FAIL): ")
COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")
LINT_TOTALS = (
    re.compile(r"Found (\d+) errors?\b"),  # ruff
    re.compile(r"\S+ \d+ problems? \((\d+) errors?, \d+ warnings?\)"),  # eslint
    re.compile(r"error: could not compile .* due to (?:(\d+) )?(?:previous )?errors?"),  # clippy
)
LINT_LINE = re.compile(r"\S.*?:\d+:(?:\d+:)? \S")  # flake8, go vet: one a line


class Counter:
    """Reads lines and counts."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.passed = self.failed = 0
        self.known = False
        self.ran: int | None = None
        self.bad = 0
        self.totals = self.lines = 0
        self.told = False
        self.cases: list[tuple[str, str, str, float, str]] = []
        self.said: dict[tuple[str, str], list[str]] = {}

    def add(self, passed: int, failed: int) -> None:
        """More tests were run."""
        self.known = True
        self.passed += passed
        self.failed += failed

    def case(self, suite: str, name: str, result: str, seconds: float = 0.0, detail: str = "") -> None:
        """A single test."""
        if len(self.cases) < CASES_MAX:
            self.cases.append((suite, name, result, seconds, detail[:DETAIL_CHARACTERS_MAX]))

    def take(self, line: str) -> str:
        """Counts what a line says; returns what is to be shown of it."""
        if self.wanted == "go" and line.startswith("{"):
            return self.take_go(line)
        plain = ANSI.sub("", line).rstrip()
        if self.wanted == "lint":
            self.take_lint(plain)
        else:
            self.take_words(plain)
        return line

    def take_go(self, line: str) -> str:
        """An event of `go test -json`."""
        try:
            event: dict[str, Any] = json.loads(line)
            action, suite, name = str(event.get("Action")), str(event.get("Package") or ""), str(event.get("Test") or "")
            seconds = float(event.get("Elapsed") or 0)
        except (ValueError, TypeError, AttributeError):
            return line
        output = event.get("Output")
        if name and isinstance(output, str):
            self.said.setdefault((suite, name), []).append(output)
        if name and action in ("pass", "fail", "skip"):
            self.add(action == "pass", action == "fail")
            detail = "".join(self.said.pop((suite, name), [])) if action == "fail" else ""
            self.case(suite, name, {"pass": "passed", "fail": "failed", "skip": "skipped"}[action], seconds, detail)
        return output if isinstance(output, str) else ""

    def take_lint(self, line: str) -> None:
        for total in LINT_TOTALS:
            found = total.match(line)
            if found:
                self.told = True
                self.totals += int(found.group(1) or 1)
                return
        if LINT_LINE.match(line):
            self.lines += 1

    def take_words(self, line: str) -> None:
        """What a test runner prints of its tests, or at its end."""
        found = CARGO_TEST.match(line)
        if found and self.wanted in ("cargo", "any"):
            self.case("", found.group(1), {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}[found.group(2)])
            return
        for pattern, count in SUMS:
            found = pattern.match(line)
            if found:
                count(self, found)
                return

    def take_list(self, found: re.Match[str]) -> None:
        counts = {"passed": 0, "failed": 0}
        for number, word in COUNT.findall(found.group(1)):
            counts["passed" if word == "passed" else "failed"] += int(number)
        self.add(counts["passed"], counts["failed"])

    def take_pair(self, found: re.Match[str]) -> None:
        self.add(int(found.group(1)), int(found.group(2)))

    def take_one(self, found: re.Match[str]) -> None:
        good = found.group(2).startswith("pass")
        self.add(int(found.group(1)) * good, int(found.group(1)) * (not good))

    def take_named(self, found: re.Match[str]) -> None:
        good = found.group(1).lower() == "pass"
        count = int(found.group(2)) if found.lastindex == 2 else 1
        self.add(count * good, count * (not good))

    def take_ran(self, found: re.Match[str]) -> None:
        self.add(int(found.group(1)), 0)

    def take_bad(self, found: re.Match[str]) -> None:
        for part in found.group(1).split(", "):
            word, _, number = part.partition("=")
            if word in ("failures", "errors"):
                self.add(-int(number), int(number))

    def lint_errors(self, code: int) -> int:
        """What the linter found; one that failed and does not say how often found something."""
        return max(self.totals if self.told else self.lines, 1) if code else 0


SUMS = (
    (CARGO_SUM, Counter.take_pair),
    (PYTEST, Counter.take_list),
    (UNITTEST_RAN, Counter.take_ran),
    (UNITTEST_BAD, Counter.take_bad),
    (JEST, Counter.take_list),
    (VITEST, Counter.take_list),
    (MOCHA, Counter.take_one),
    (AVA, Counter.take_one),
    (NODE, Counter.take_named),
    (GO_TEST, Counter.take_named),
)


def run(argv: list[str], env: dict[str, str], counter: Counter) -> int:
    """Runs the command and passes its output on, line by line."""
    try:
        process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except OSError as problem:
        print("%s cannot be started: %s" % (argv[0], problem.strerror))
        return 127
    out = sys.stdout.buffer
    assert process.stdout is not None
    wanted_go = counter.wanted == "go"
    while True:
        piece = process.stdout.readline(COUNTED_LINE_BYTES_MAX)
        if not piece:
            break
        shown = counter.take(piece.decode("utf-8", "replace"))
        out.write(shown.encode("utf-8", "replace") if wanted_go else piece)
        out.flush()
    code = process.wait()
    return 128 - code if code < 0 else code


def suites_in(path: str) -> list[ElementTree.Element]:
    """The suites of a JUnit file; none if it is not there, no XML, or has a document type that could be made of anything."""
    try:
        with open(path, "rb") as file:
            data = file.read(JUNIT_BYTES_MAX + 1)
        if len(data) > JUNIT_BYTES_MAX or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            return []
        root = ElementTree.fromstring(data)
    except (OSError, ElementTree.ParseError, ValueError):
        return []
    if root.tag == "testsuite":
        return [root]
    if root.tag != "testsuites":
        return []
    suites = root.findall("testsuite")
    loose = root.findall("testcase")  # node --test: what is in no describe()
    if loose:
        suite = ElementTree.Element("testsuite", {"name": "tests", "tests": str(len(loose))})
        suite.extend(loose)
        suites.append(suite)
    return suites


def counted(suites: list[ElementTree.Element]) -> tuple[int, int]:
    """How many tests of the suites passed, and how many did not."""
    passed = failed = 0
    for suite in suites:
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                failed += 1
            elif case.find("skipped") is None:
                passed += 1
    return passed, failed


def suite_of(name: str, counter: Counter) -> ElementTree.Element:
    """The tests that were read from the output, as a JUnit suite."""
    results = [result for _, _, result, _, _ in counter.cases]
    suite = ElementTree.Element(
        "testsuite",
        {"name": name, "tests": str(len(results)), "failures": str(results.count("failed")), "skipped": str(results.count("skipped"))},
    )
    for where, test, result, seconds, detail in counter.cases:
        case = ElementTree.SubElement(suite, "testcase", {"classname": where or name, "name": test, "time": "%.3f" % seconds})
        if result != "passed":
            said = ElementTree.SubElement(case, "failure" if result == "failed" else "skipped")
            said.text = "".join(char if char in "\n\t" or char >= " " else "?" for char in detail)
    return suite


def add_suites(path: str, suites: list[ElementTree.Element]) -> None:
    """Adds suites to a JUnit file."""
    root = ElementTree.Element("testsuites")
    root.extend(suites_in(path) + suites)
    with open(path + ".new", "wb") as file:
        file.write(ElementTree.tostring(root, "utf-8", xml_declaration=True))
    os.replace(path + ".new", path)


def node_reports(env: dict[str, str], target: str) -> dict[str, str]:
    """The environment in which `node --test` also writes JUnit XML, where this node can."""
    options = [
        "--test-reporter=spec",
        "--test-reporter-destination=stdout",
        "--test-reporter=junit",
        "--test-reporter-destination=" + target,
    ]
    wanted = dict(env, NODE_OPTIONS=" ".join([env.get("NODE_OPTIONS", ""), *options]).strip())
    try:
        done = subprocess.run(["node", "-e", "0"], env=wanted, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError):
        return env
    return wanted if done.returncode == 0 else env


def main(arguments: list[str]) -> int:
    """Runs, counts, writes down; returns the command's exit code."""
    wanted, figures, junit, *argv = arguments
    counter = Counter(wanted)
    env = dict(os.environ)
    with tempfile.TemporaryDirectory(prefix="orchestra-tests-") as folder:
        own = folder + "/junit.xml"
        if wanted == "pytest":
            argv = [*argv, "--junitxml=" + own]
        elif wanted == "node":
            env = node_reports(env, own)
        code = run(argv, env, counter)
        suites = suites_in(own)
    if wanted == "lint":
        found = {"linter_errors": counter.lint_errors(code)}
    else:
        passed, failed = counted(suites)
        if not passed + failed:
            passed, failed = counter.passed, counter.failed
        found = {"tests_passed": max(passed, 0), "tests_failed": failed} if suites or counter.known else {}
        if not suites and counter.cases:
            suites = [suite_of(wanted, counter)]
    with open(figures, "a", encoding="ascii") as file:
        file.write("".join("%s %d\n" % each for each in found.items()))
    if suites:
        add_suites(junit, suites)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
