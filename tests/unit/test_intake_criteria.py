"""Success criteria: which can be run, as what, and that the fixed scripts find a project's own tools or say that there are none."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.model import Check
from orchestra.errors import BadInput
from orchestra.intake import check_scripts as scripts
from orchestra.intake.criteria import RunCriterion, checks_for, written


def check(criterion: str | RunCriterion) -> Check:
    (made,) = checks_for([criterion], field="success_criteria")
    return made


@pytest.mark.parametrize(
    "text,script",
    [
        *(
            (text, scripts.TESTS)
            for text in ("All tests pass", "tests pass", "Tests must pass.", " all  the tests PASS ", "All unit tests pass", "tests")
        ),
        *((text, scripts.LINTER) for text in ("Linter passes", "No linter errors", "0 lint warnings", "The linter passes!", "lint")),
        *((text, scripts.BUILD) for text in ("Builds", "The build succeeds", "project builds", "build")),
    ],
)
def test_known_phrases(text: str, script: str) -> None:
    assert check(text).argv[:3] == ("/bin/sh", "-c", script)


@pytest.mark.parametrize(
    "text,arguments",
    [
        ("Code coverage > 80%", (">", "80")),
        ("Coverage > 80%", (">", "80")),
        ("Coverage >= 80 %", (">=", "80")),
        ("test coverage is at least 87.5 percent", (">=", "87.5")),
        ("coverage above 0", (">", "0")),
        ("Coverage ≥ 100%", (">=", "100")),
    ],
)
def test_coverage_is_an_argument(text: str, arguments: tuple[str, ...]) -> None:
    assert check(text).argv == ("/bin/sh", "-c", scripts.COVERAGE, "orchestra-coverage", *arguments)


@pytest.mark.parametrize("path", ["a.txt", "$(reboot)", "a b'\"", "-rf", "(", "!"])
def test_files_are_asked_for_without_a_shell(path: str) -> None:
    assert check(f"File exists: {path}").argv == ("test", "-e", f"./{path.strip(chr(34) + chr(39))}")


def test_commands() -> None:
    assert check("$ make lint && true") == Check("make lint && true", ("/bin/sh", "-c", "make lint && true"))
    assert check(RunCriterion(run="x\ny")) == Check("x", ("/bin/sh", "-c", "x\ny"))
    assert check(RunCriterion(run="x", name="n", timeout_seconds=0.5)) == Check("n", ("/bin/sh", "-c", "x"), 500)
    assert [written(one) for one in ("a", RunCriterion(run="x"), RunCriterion(run="x", name="n"))] == ["a", "$ x", "n"]


@pytest.mark.parametrize(
    "text",
    [
        "It is good",
        "",
        "$ ",
        "Coverage > 101%",
        "File exists: ../x",
        "File exists: /etc/passwd",
        "File exists: ",
        "$ a\0b",
        "tests pass; reboot",
    ],
)
def test_what_no_machine_can_check(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        checks_for(["tests pass", text], field="tasks[3].success_criteria")
    assert caught.value.field == "tasks[3].success_criteria[1]"
    assert caught.value.hint


@given(
    st.text(max_size=40)
    | st.builds("coverage > {}%".format, st.text(max_size=5))
    | st.builds("File exists: {}".format, st.text(max_size=9))
)
def test_no_text_gets_into_a_script(text: str) -> None:
    try:
        argv = check(text).argv
    except BadInput:
        return
    if argv[0] == "/bin/sh" and not text.strip().startswith("$ "):
        assert argv[2] in (scripts.TESTS, scripts.LINTER, scripts.BUILD, scripts.COVERAGE)


# The scripts themselves, with stand-ins for the tools.


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A folder with `project` to work in and `bin` with the only commands there are."""
    (tmp_path / "project").mkdir()
    (tmp_path / "bin").mkdir()
    for name in ("grep", "awk", "mktemp", "rm", "env", "sh", "cat"):
        real = subprocess.run(["/bin/sh", "-c", f"command -v {name}"], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / "bin" / name).symlink_to(real)
    return tmp_path


def stand_in(bench: Path, name: str, body: str) -> None:
    tool = bench / "bin" / name
    tool.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    tool.chmod(0o755)


def run(bench: Path, criterion: str) -> tuple[int, str]:
    done = subprocess.run(
        check(criterion).argv,
        cwd=bench / "project",
        env={"PATH": str(bench / "bin"), "TMPDIR": str(bench)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert [path.name for path in bench.iterdir() if path.name not in ("bin", "project")] == [], "nothing is left behind"
    return done.returncode, done.stdout


@pytest.mark.parametrize("criterion", ["All tests pass", "Linter passes", "Coverage > 80%", "Builds"])
def test_nothing_to_check_with(bench: Path, criterion: str) -> None:
    code, words = run(bench, criterion)
    assert code == scripts.NO_RUNNER
    assert "nothing found" in words


PYTEST = 'case "$*" in *-c*pytest_cov*) exit 1;; *-c*) exit 0;; *pytest*) exit {code};; esac'


@pytest.mark.parametrize("code", [0, 1, 5])
def test_pytest_is_found(bench: Path, code: int) -> None:
    (bench / "project/pyproject.toml").touch()
    stand_in(bench, "python3", PYTEST.format(code=code))
    assert run(bench, "All tests pass")[0] == (1 if code else 0), "no tests (5) is not a pass"


def test_pytest_is_missing(bench: Path) -> None:
    (bench / "project/tests").mkdir()
    (bench / "project/tests/test_a.py").touch()
    stand_in(bench, "python3", "exit 1")
    python = bench / "bin" / "python3"
    why = f"pytest (neither as a module of {python} nor as a program) is needed here and not installed\n"
    assert run(bench, "All tests pass") == (scripts.NO_RUNNER, why)
    stand_in(bench, "pytest", "echo 3 passed")
    assert run(bench, "All tests pass")[0] == 0, "there may be one of another Python"


@pytest.mark.parametrize(
    "file,text,tool",
    [
        ("package.json", '{"scripts": {"test": "x"}}', "npm"),
        ("Cargo.toml", "", "cargo"),
        ("go.mod", "", "go"),
        ("Makefile", "test: all\n", "make"),
    ],
)
def test_other_runners_are_found(bench: Path, file: str, text: str, tool: str) -> None:
    (bench / "project" / file).write_text(text, encoding="utf-8")
    if tool != "make":
        assert run(bench, "All tests pass")[0] == scripts.NO_RUNNER
    stand_in(bench, tool, 'echo "$0 $*"; exit 3')
    code, words = run(bench, "All tests pass")
    assert code == 1
    assert f"exit code 3: {'env CI=1 ' if tool == 'npm' else ''}{tool} test" in words


@pytest.mark.parametrize(
    "criterion,reached,code",
    [
        ("Coverage > 80%", "80.0", 1),
        ("Coverage >= 80%", "80.0", 0),
        ("Coverage > 80%", "80.01", 0),
        ("Coverage > 9%", "10", 0),
        ("Coverage > 80%", "", 1),
    ],
)
def test_coverage_is_measured_and_compared(bench: Path, criterion: str, reached: str, code: int) -> None:
    (bench / "project/setup.cfg").touch()
    stand_in(bench, "python3", f'case "$*" in *pytest_cov*) exit 1;; *percent_covered*) echo "{reached}";; esac')
    got, words = run(bench, criterion)
    assert got == code
    assert not reached or f"coverage: {reached}% (wanted" in words


@pytest.mark.parametrize("code", [0, 1])
def test_linters_are_found(bench: Path, code: int) -> None:
    (bench / "project/pyproject.toml").touch()
    stand_in(bench, "python3", "exit 1")
    stand_in(bench, "ruff", f"exit {code}")
    assert run(bench, "Linter passes")[0] == code
    (bench / "bin/ruff").unlink()
    stand_in(bench, "flake8", f"exit {code}")
    assert run(bench, "Linter passes")[0] == code
