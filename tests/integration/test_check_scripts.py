"""The success criteria with real tools, and how what the others print is counted (recorded outputs, of tools that are not part of the test setup)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra.agents.ending import metrics_of
from orchestra.core.model import CheckResult
from orchestra.intake.check_scripts import NO_RUNNER, with_command
from orchestra.intake.criteria import checks_for
from orchestra.protocol.junit import TestRun, read_junit

REPORTER = Path(__file__).resolve().parents[2] / "src" / "orchestra" / "stage" / "reporter.py"
ALONE = {"GOPROXY": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local", "CARGO_NET_OFFLINE": "true", "npm_config_offline": "true"}
"""What is tested here needs no network."""


class Bench:
    """A project, and what its checks leave."""

    def __init__(self, folder: Path) -> None:
        self.project, self.reports = folder / "project", folder / "reports"
        self.project.mkdir()
        self.code = -1

    def write(self, **files: str) -> None:
        for name, text in files.items():
            path = self.project / name.replace("__", ".").replace("_S_", "/")
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)

    def check(self, *criteria: str, command: str = "", env: dict[str, str] | None = None) -> dict[str, float]:
        """Runs the criteria as a worker does; returns the figures."""
        python = Path(sys.executable).parent
        variables = {
            **os.environ,
            **ALONE,
            "GOCACHE": str(self.project.parent / "go-cache"),
            "PATH": f"{python}:{os.environ['PATH']}",
            **(env or {}),
            "ORCHESTRA_REPORTER": str(REPORTER),
            "ORCHESTRA_REPORTS_DIR": str(self.reports),
        }
        results = []
        for check in checks_for(criteria, field="f"):
            argv = with_command(check.argv, {check.argv[3]: command})
            done = subprocess.run(
                argv, cwd=self.project, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
            )
            self.code = done.returncode
            results.append(CheckResult(check.name, self.code == 0, self.code, "exit", 1, tuple(done.stdout.splitlines()[-20:])))
            self.said = done.stdout
        return metrics_of(results)

    def junit(self) -> TestRun:
        found = read_junit((self.reports / "junit.xml").read_text())
        assert found is not None
        return found


@pytest.fixture(scope="module", autouse=True)
def tools() -> None:
    """What is missing is no reason to skip."""
    if missing := [name for name in ("node", "npm", "cargo", "go") if shutil.which(name) is None]:
        pytest.fail(f"{', '.join(missing)} missing; run: bash scripts/setup.sh --test", pytrace=False)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


PYTHON_TESTS = """\
import pytest
from m import used

def test_a(): assert used(1) == 2
def test_b(): assert used(1) == 2
def test_c(): assert 1 == 2, "<&>"
@pytest.mark.skip
def test_d(): pass
"""


def test_pytest(bench: Bench) -> None:
    bench.write(test_it__py=PYTHON_TESTS, m__py="def used(x):\n    return x + 1\n")
    assert bench.check("All tests pass") == {"tests_passed": 2, "tests_failed": 1}
    assert bench.code == 1
    run = bench.junit()
    assert [(case.name, case.result) for case in run.cases] == [
        ("test_a", "passed"),
        ("test_b", "passed"),
        ("test_c", "failed"),
        ("test_d", "skipped"),
    ]
    assert "<&>" in run.cases[2].detail
    assert [path.name for path in bench.project.iterdir() if "cache" in path.name and path.name != ".pytest_cache"] == []


def test_a_runner_that_is_missing_is_named(bench: Bench) -> None:
    bench.write(test_it__py="def test_a(): pass\n")
    hidden = {"PYTHONPATH": str(bench.project)}
    for name in ("coverage", "pytest_cov"):
        bench.write(**{f"{name}__py": "raise ImportError"})
    assert bench.check("All tests pass", "Code coverage > 70%", env=hidden) == {"tests_passed": 1, "tests_failed": 0}
    assert (bench.code, bench.said) == (NO_RUNNER, "coverage (or pytest-cov) is needed here and not installed\n")


def test_coverage_of_an_npm_script(bench: Bench) -> None:
    bench.write(package__json='{"name": "x", "scripts": {"coverage": "node --test --experimental-test-coverage"}}')
    bench.write(m__js="exports.used = () => 1;\n\n\nexports.unused = () => {\n  return 2;\n};\n")
    bench.write(it__test__js="const t = require('node:test'); const m = require('./m.js');\nt('one', () => { m.used(); });\n")
    figures = bench.check("Coverage > 50%")
    assert bench.code == 0, bench.said
    assert 50 < figures["coverage_percent"] < 100


def test_ruff(bench: Bench) -> None:
    bench.write(pyproject__toml="", a__py="import os\nimport sys\n")
    assert bench.check("Linter passes") == {"linter_errors": 2}
    assert bench.code == 1
    bench.write(a__py="")
    assert bench.check("Linter passes") == {"linter_errors": 0}
    assert bench.code == 0


NODE_TESTS = """\
const { test, describe } = require('node:test');
const assert = require('node:assert');
test('one', () => {});
test('two', () => assert.equal(1, 2, 'this is why'));
describe('more', () => {
  test('three', () => {});
  test('four', { skip: true }, () => {});
});
"""


def test_npm(bench: Bench) -> None:
    bench.write(package__json='{"name": "x", "scripts": {"test": "node --test"}}', it__test__js=NODE_TESTS)
    assert bench.check("All tests pass") == {"tests_passed": 2, "tests_failed": 1}
    assert bench.code == 1
    cases = {case.name: case for case in bench.junit().cases}
    assert {name: case.result for name, case in cases.items()} == {"one": "passed", "two": "failed", "three": "passed", "four": "skipped"}
    assert "this is why" in cases["two"].detail


def test_cargo(bench: Bench) -> None:
    bench.write(Cargo__toml='[package]\nname = "x"\nversion = "0.1.0"\nedition = "2021"\n')
    bench.write(src_S_lib__rs="#[test]\nfn one() {}\n#[test]\nfn two() { assert_eq!(1, 2); }\n#[test]\n#[ignore]\nfn three() {}\n")
    assert bench.check("All tests pass") == {"tests_passed": 1, "tests_failed": 1}
    assert sorted((case.name, case.result) for case in bench.junit().cases) == [("one", "passed"), ("three", "skipped"), ("two", "failed")]


GO_TESTS = """\
package x

import "testing"

func TestA(t *testing.T) {
	if used() != 1 {
		t.Fatal("wrong")
	}
}

func TestB(t *testing.T) {
	t.Run("sub", func(t *testing.T) { t.Error("this is why") })
}

func TestC(t *testing.T) { t.Skip() }
"""


def test_go(bench: Bench) -> None:
    bench.write(go__mod="module x\n\ngo 1.19\n", m__go="package x\n\nfunc used() int { return 1 }\n", x_test__go=GO_TESTS)
    assert bench.check("All tests pass") == {"tests_passed": 1, "tests_failed": 2}
    assert bench.code == 1
    assert "x_test.go:12: this is why\n" in bench.said
    assert "Action" not in bench.said
    cases = {case.name: case for case in bench.junit().cases}
    assert {name: case.result for name, case in cases.items()} == {
        "TestA": "passed",
        "TestB": "failed",
        "TestB/sub": "failed",
        "TestC": "skipped",
    }
    assert "this is why" in cases["TestB/sub"].detail


def test_go_that_does_not_compile_has_no_tests_and_is_no_success(bench: Bench) -> None:
    bench.write(go__mod="module x\n\ngo 1.19\n", m__go="package x\n", x_test__go=GO_TESTS)
    assert bench.check("All tests pass") == {}
    assert bench.code == 1
    assert "used" in bench.said


def test_linter_build_and_coverage_of_go(bench: Bench) -> None:
    code = 'package x\n\nimport "fmt"\n\nfunc used() int { return 1 }\n\nfunc Unused() {\n\tfmt.Printf("%d\\n", "text")\n}\n'
    tests = 'package x\n\nimport "testing"\n\nfunc TestA(t *testing.T) { used() }\n'
    bench.write(go__mod="module x\n\ngo 1.19\n", m__go=code)
    assert bench.check("Linter passes") == {"linter_errors": 1}
    assert bench.code == 1
    bench.check("Builds")
    assert bench.code == 0, bench.said
    bench.write(m__go=code.replace('"text"', "1"), x_test__go=tests)
    assert bench.check("Linter passes") == {"linter_errors": 0}
    assert bench.check("Coverage > 40%") == {"coverage_percent": 50.0}
    assert bench.code == 0, bench.said
    bench.check("Coverage > 60%")
    assert bench.code == 1


@pytest.mark.parametrize("file,tool", [("go.mod", "go"), ("Cargo.toml", "cargo"), ("package.json", "npm")])
def test_a_tool_that_is_missing_is_named(bench: Bench, tmp_path: Path, file: str, tool: str) -> None:
    (bench.project / file).write_text('{"scripts": {"test": "node --test"}}')
    bare = tmp_path / "bin"
    bare.mkdir()
    for name in ("grep", "awk", "mkdir", "rm", "python3"):
        found = shutil.which(name)
        assert found is not None
        (bare / name).symlink_to(found)
    assert bench.check("All tests pass", env={"PATH": str(bare)}) == {}
    assert (bench.code, bench.said) == (NO_RUNNER, f"{tool} is needed here and not installed\n")


def test_nothing_to_run_is_no_success(bench: Bench) -> None:
    bench.check("All tests pass")
    assert bench.code == NO_RUNNER


RECORDED = {
    "jest": ("Tests:       1 failed, 1 skipped, 40 passed, 42 total\nTime:        1.2 s", 40, 1),
    "vitest": (" Test Files  1 failed | 1 passed (2)\n      Tests  1 failed | 5 passed (6)", 5, 1),
    "mocha": ("  7 passing (12ms)\n  2 failing", 7, 2),
    "ava": ("  9 tests passed\n  1 test failed", 9, 1),
    "node": ("# tests 3\n# pass 2\n# fail 1", 2, 1),
    "cargo": ("test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\ntest result: FAILED. 1 passed; 2 failed; 0 ignored", 4, 2),
    "unittest": ("Ran 7 tests in 0.001s\n\nFAILED (failures=1, errors=1, skipped=1)", 5, 2),
    "go -v": ("--- PASS: TestA (0.00s)\n    --- FAIL: TestB/sub (0.00s)\n--- FAIL: TestB (0.00s)", 1, 2),
    "pytest": ("========= 1 failed, 2 passed, 1 error in 0.12s =========", 2, 2),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_other_runners_print_is_counted_where_the_settings_name_a_command(bench: Bench, name: str) -> None:
    text, passed, failed = RECORDED[name]
    (bench.project / "output").write_text(text + "\n")
    assert bench.check("All tests pass", command="cat output; exit 1") == {"tests_passed": passed, "tests_failed": failed}
    assert bench.code == 1


GO = """\
{"Action":"start","Package":"x"}
{"Action":"run","Package":"x","Test":"TestA"}
{"Action":"output","Package":"x","Test":"TestA","Output":"--- PASS: TestA (0.00s)\\n"}
{"Action":"pass","Package":"x","Test":"TestA","Elapsed":0}
{"Action":"output","Package":"x","Test":"TestB","Output":"    b_test.go:5: wrong\\n"}
{"Action":"fail","Package":"x","Test":"TestB","Elapsed":0.25}
{"Action":"skip","Package":"x","Test":"TestC","Elapsed":0}
{"Action":"fail","Package":"x","Elapsed":0.3}
"""


def test_how_long_tests_of_go_took_is_kept(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "events").write_text(GO)
    bench.reports.mkdir()
    figures, junit = bench.reports / "figures", bench.reports / "junit.xml"
    argv = [sys.executable, str(REPORTER), "go", str(figures), str(junit), "cat", str(tmp_path / "events")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "--- PASS: TestA (0.00s)\n    b_test.go:5: wrong\n"
    assert figures.read_text() == "tests_passed 1\ntests_failed 1\n"
    assert [(case.name, case.result, case.seconds) for case in bench.junit().cases] == [
        ("TestA", "passed", 0.0),
        ("TestB", "failed", 0.25),
        ("TestC", "skipped", 0.0),
    ]


@pytest.mark.parametrize(
    "text,errors",
    [
        ("a.js\n  1:1  error  x\n\n✖ 3 problems (2 errors, 1 warning)", 2),
        ("a.py:1:1: F401 unused\nb.py:3:80: E501 long", 2),
        ("error: could not compile `x` (lib) due to 2 previous errors; 1 warning emitted", 2),
        ("error: could not compile `x` (lib) due to 1 previous error", 1),
        ("Found 7 errors.", 7),
        ("x/a.go:3:2: unreachable code", 1),
        ("something else", 1),
    ],
)
def test_what_linters_print_is_counted(bench: Bench, text: str, errors: int) -> None:
    (bench.project / "output").write_text(text + "\n")
    assert bench.check("Linter passes", command="cat output; exit 1") == {"linter_errors": errors}
    assert bench.check("Linter passes", command="cat output") == {"linter_errors": 0}


@pytest.mark.parametrize(
    "text,percent",
    [
        ("File      | % Stmts | % Branch |\nAll files |   87.55 |       90 |", 87.55),
        ("TOTAL      100     20    80%", 80.0),
        ("total:\t(statements)\t66.7%", 66.7),
        ("coverage: 91.25% of statements", 91.25),
    ],
)
def test_a_coverage_that_a_command_prints(bench: Bench, text: str, percent: float) -> None:
    (bench.project / "output").write_text(text + "\n")
    assert bench.check("Coverage > 50%", command="cat output") == {"coverage_percent": percent}
    assert bench.code == 0
    bench.check("Coverage > 99%", command="cat output")
    assert bench.code == 1
    bench.check("Coverage > 50%", command="cat output; exit 3")
    assert bench.code == 1


def test_exact_figures_of_coverage() -> None:
    check = CheckResult("Coverage > 60%", True, tail=("coverage: 66.66666666666667% (wanted > 60%)",))
    assert metrics_of([check]) == {"coverage_percent": 66.67}
