"""`orchestra roster`: what it shows is what would be laid out, without an orchestra."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.intake.roster import preset_text
from orchestra.testing.fake_usecases import FakeWiring

REFERENCE = ("--node", "mugen=100", "--node", "majin=100")


def call(*args: str) -> Result:
    wiring = FakeWiring(running=False)
    result = CliRunner().invoke(cli, ["roster", *args], obj=Session(wiring))
    assert wiring.log == [], "nothing is started, and nobody is asked"
    return result


def said(*args: str) -> dict[str, Any]:
    result = call(*args, "--json")
    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_without_a_name_it_is_what_starts_without_one() -> None:
    found = said()
    assert (found["roster"], found["agents"], found["nodes"]) == ("plain", 4, {"local": 4})


def test_the_reference_fleet_as_data() -> None:
    found = said("phase3", *REFERENCE)
    assert found == said("--phase", "3", *REFERENCE)
    assert (found["agents"], found["capacity"], found["nodes"]) == (200, 200, {"mugen": 100, "majin": 100})
    assert found["by"]["category"]["coding"] == {"total": 70, "mugen": 35, "majin": 35}
    assert {level: row["total"] for level, row in found["by"]["level"].items()} == {"0": 3, "1": 4, "2": 20, "3": 173}
    assert list(found["by"]["speciality"])[:3] == ["codegen", "review", "test"]
    assert len(found["by"]["team"]) == 20
    assert found["levels"][0]["limits"] == {"cpus": 4, "cpus_max": 8, "memory_mb": 8192, "memory_mb_max": 16384}
    assert "list" not in found


def test_the_tables_have_totals_and_the_order_of_the_roster() -> None:
    lines = call("phase3", *REFERENCE).stdout.splitlines()
    assert lines[0].startswith("roster  phase3: Full scale with 200 agents")
    assert lines[1:3] == ["agents  200; the nodes take 200", "teams   20"]
    assert [line.split() for line in lines[4:8]] == [
        ["node", "agents", "numbers", "takes"],
        ["mugen", "100", "#1-#100", "100"],
        ["majin", "100", "#101-#200", "100"],
        ["total", "200", "200"],
    ]
    at = next(index for index, line in enumerate(lines) if line.startswith("category"))
    assert [line.split() for line in lines[at + 1 : at + 3]] == [["coding", "35", "35", "70"], ["business", "25", "25", "50"]]
    assert "0 chief coordinator      2      1      3  4 to 8 processors, 8192 to 16384 MiB" in lines


@pytest.mark.parametrize(
    "side,rows",
    [
        ("node", ["mugen", "majin", "total"]),
        ("category", ["coding", "business", "research", "support"]),
        ("level", ["0", "2", "3"]),
        ("team", ["team-1", "team-2", "team-3"]),
        ("kind", ["any"]),
    ],
)
def test_by_shows_one_table(side: str, rows: list[str]) -> None:
    lines = call("phase1", *REFERENCE, "--by", side).stdout.splitlines()
    assert lines[0].split()[0] == side
    assert [line.split()[0] for line in lines[1:]] == rows
    assert set(said("phase1", *REFERENCE, "--by", side)["by"]) == {side} - {"node"}


def test_a_side_that_tells_nobody_apart_is_named_as_none_when_asked_for() -> None:
    assert call("plain", "--by", "category").stdout.splitlines()[1].split() == ["(none)", "4", "4"]


def test_list_has_a_line_for_every_agent() -> None:
    lines = call("phase1", *REFERENCE, "--list").stdout.splitlines()
    assert len(lines) == 19
    assert lines[1].split()[:5] == ["#1", "chief-1", "mugen", "0", "team-1"]
    found = said("phase1", *REFERENCE, "--list")["list"]
    assert [agent["id"] for agent in found] == list(range(1, 19))
    assert {agent["node"] for agent in found} == {"mugen", "majin"}


def test_what_is_exported_is_a_roster_again(tmp_path: Path) -> None:
    text = call("phase3", "--export").stdout
    assert text == preset_text("phase3")
    assert said("phase3", "--export") == {"roster": "phase3", "text": text}
    file = tmp_path / "my.yaml"
    file.write_text(text.replace("roster: phase3", "roster: my"))
    found = said(str(file), *REFERENCE, "--agents", "40")
    assert (found["roster"], found["agents"]) == ("my", 40)
    assert {**found, "roster": "phase3"} == said("phase3", *REFERENCE, "--agents", "40")


def test_agents_and_settings_say_how_many(tmp_path: Path) -> None:
    assert said("plain", "--agents", "9")["agents"] == 9
    file = tmp_path / "small"
    file.write_text("{roster: small, reserve: 2}")
    assert said(str(file), "--node", "a=6")["nodes"] == {"a": 4}
    assert "4; the nodes take 6, 2 of which must stay free" in call(str(file), "--node", "a=6").stdout


@pytest.mark.parametrize(
    "args,field,words,hint",
    [
        (("phase9",), "roster", "there is no roster 'phase9'", "did you mean 'phase3'?"),
        (("nowhere.yaml",), "roster", "the roster nowhere.yaml cannot be read: No such file", "phase1, phase2, phase3, plain"),
        (("/",), "roster", "cannot be read: Is a directory", "name a YAML or JSON file"),
        (("phase1", "--phase", "1"), "phase", "contradict each other", "give one of them"),
        (("phase1", "--list", "--by", "node"), "by", "contradict each other", "give one of them"),
        (("phase2", "--agents", "20"), "agent_count", "meant for 50 to 100 agents, not 20", "another roster"),
        (("phase3", "--node", "a=50"), "agent_count", "200 agents do not fit: the nodes take 50 (a 50)", "add a node"),
        (("--node", "a"), "node", "'a' is not a node", "NAME=MAX"),
        (("--node", "a=0"), "node", "'a=0' is not a node", "NAME=MAX"),
        (("--node", "a=000100000"), "node", "is not a node", "NAME=MAX"),
        (("--node", "-x=3"), "node", "'-x=3' is not a node", "NAME=MAX"),
        (("--node", "a=3", "--node", "a=4"), "node", "node 'a' is given twice", "once is enough"),
    ],
)
def test_errors_name_the_field_and_what_to_do(args: tuple[str, ...], field: str, words: str, hint: str) -> None:
    result = call(*args, "--json")
    assert result.exit_code == 2
    error = json.loads(result.stderr)["error"]
    assert error["field"] == field
    assert words in error["message"]
    assert hint in error["hint"]


def test_a_kind_that_is_not_there_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("{roster: my, agents: 8, kinds: {shel: 6, any: 2}}")
    result = call(str(file), "--json")
    assert result.exit_code == 2
    error = json.loads(result.stderr)["error"]
    assert (error["field"], error["message"], error["hint"]) == ("agent", "there is no agent kind 'shel'", "did you mean 'shell'?")
    file.write_text("{roster: my, agents: 8, kinds: {shell: 6, any: 2}}")
    assert said(str(file))["agents"] == 8


def test_a_bad_file_is_told_with_every_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("roster: bad\ncategories: {coding: 0}\nspecialities: {x: 0}\n")
    result = call(str(file))
    assert result.exit_code == 2
    assert f"error: categories: {file}:2:1: no share is above 0 [and 1 more]" in result.stderr
    assert f"also: {file}:3:1: specialities: no share is above 0" in result.stderr
    assert "hint: give at least one of them a share" in result.stderr
    file.write_bytes(b"roster: \xff\n")
    assert "is not UTF-8: byte 8 cannot be read" in call(str(file)).stderr
