"""`orchestra run` and `up`, as a person and a script use them: exit codes, hostile input, and being killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.ids import AgentId, TaskId
from orchestra.testing.hosted import check_books, processes_left, processes_of
from tests.e2e.command import Shell, interrupt, shell

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        yield found


HELLO = """
name: hello
agents: {count: 2}
defaults: {retries: 0}
tasks:
  - {id: a, description: says hello, run: 'echo "hello from $ORCHESTRA_TASK"; echo made > made.txt'}
  - {id: b, needs: [a], run: 'cat made.txt', success_criteria: [{run: 'test -s made.txt', name: made}]}
"""


def test_a_plan_runs_to_its_report(sh: Shell) -> None:
    done = sh.run("run", sh.plan(HELLO))
    assert done.returncode == 0, done.stderr
    report = sh.root / "reports" / "hello.html"
    assert str(report) in done.stdout
    assert "hello/a" in report.read_text()
    assert (sh.root / "results" / "hello" / "a" / "execution.log").read_text() == "hello from hello/a\n"
    result = sh.result("hello/b")
    assert (result["status"], result["result"]["success"], result["primary_agent"]) == ("completed", True, result["assigned_agents"][0])
    assert not processes_left(sh.root), "the orchestra has gone with its plan"


def test_a_failure_is_exit_1_and_names_what_failed_and_what_it_blocked(sh: Shell) -> None:
    done = sh.run("run", sh.plan(HELLO.replace("'cat made.txt'", "'echo broken >&2; exit 3'") + "  - {id: c, needs: [b], run: 'true'}\n"))
    assert done.returncode == 1
    assert "exit code 3: broken" in done.stdout + done.stderr
    assert sh.result("hello/c")["status"] == "cancelled"
    assert "its need hello/b failed" in json.dumps(sh.result("hello/c"))


def test_work_that_fails_its_check_is_not_done(sh: Shell) -> None:
    done = sh.run("run", sh.plan(HELLO.replace("echo made > made.txt", ": > made.txt")))
    assert done.returncode == 1
    assert "verification failed: made" in json.dumps(sh.result("hello/b"))


@pytest.mark.parametrize(
    "text, said",
    [
        ("name: p\ntasks:\n  - {id: a, needs: [b], run: x}\n  - {id: b, needs: [a], run: x}\n", "cycle"),
        ("name: p\ntasks:\n  - {id: a, needs: [ghost], run: x}\n", "ghost"),
        ("name: p\ntasks:\n  - {id: a, run: x, retires: 1}\n", "retries"),
        ("name: p\ntasks:\n  - {id: ../../x, run: x}\n", "../../x"),
        ("name: p\ntasks:\n  - {id: a, run: x, retries: many}\n", "retries"),
        ("name: p\ntasks:\n  - {id: a, agent: clod, prompt: do this}\n", "clod"),
        ("name: p\ntasks: [\n", "line 3"),
    ],
)
def test_a_plan_that_cannot_be_used_is_exit_2_and_starts_nothing(sh: Shell, text: str, said: str) -> None:
    done = sh.run("run", sh.plan(text))
    assert done.returncode == 2
    assert said in done.stderr or said.replace("line ", ":") in done.stderr, done.stderr
    assert not processes_left(sh.root)
    assert not (sh.root / "nodes" / "local").exists()


def test_a_missing_plan_file_is_exit_2(sh: Shell) -> None:
    done = sh.run("run", "no-such-plan.yaml")
    assert done.returncode == 2
    assert "no-such-plan.yaml" in done.stderr


HOSTILE = 'it\'s "quoted" $(touch pwned) `touch pwned` ; touch pwned; #{pane_id} #(touch pwned) \x1b]0;t\x07 \x1b[201~ \u202e'


def test_hostile_text_is_only_ever_data(sh: Shell) -> None:
    plan = {
        "name": "h",
        "agents": {"count": 2},
        "tasks": [
            {"id": "words", "description": HOSTILE, "run": "true"},
            {
                "id": "prompt",
                "agent": "rehearsal",
                "prompt": HOSTILE,
                "requirements": {"scenario": [{"run": ["sh", "-c", "cat $ORCHESTRA_PROMPT_FILE > got.txt"]}]},
            },
        ],
    }
    done = sh.run("run", sh.plan(json.dumps(plan), "plan.json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert next(sh.folder.rglob("got.txt")).read_text() == HOSTILE
    assert not list(sh.folder.rglob("pwned"))
    assert "\x1b]0;" not in done.stdout


def test_huge_lines_binary_output_and_missing_commands(sh: Shell) -> None:
    text = """
name: odd
agents: {count: 3}
defaults: {retries: 3, retry_backoff_seconds: 600}
tasks:
  - {id: line, run: 'head -c 10485760 /dev/zero | tr "\\0" x; echo'}
  - {id: binary, run: 'head -c 100000 /dev/urandom; printf "\\033[2J\\033]0;title\\007"'}
  - {id: missing, run: 'no-such-command-anywhere --flag'}
"""
    done = sh.run("run", sh.plan(text))
    assert done.returncode == 1
    assert sh.result("odd/line")["status"] == "completed"
    assert sh.result("odd/binary")["status"] == "completed"
    assert "\x1b" not in (sh.root / "results" / "odd" / "binary" / "execution.log").read_text()
    missing = json.dumps(sh.result("odd/missing"))
    assert "not found" in missing
    assert len(check_books(sh.root).tasks) == 3
    size = sum(path.stat().st_size for path in (sh.root / "nodes").rglob("output.jsonl*"))
    assert size < 64 << 20


def held_plan(tasks: int, held: int) -> str:
    """A plan whose first tasks wait at a named pipe."""
    lines = ["name: held", "agents: {count: 4}", "defaults: {retry_backoff_seconds: 0.01}", "tasks:"]
    for number in range(tasks):
        wait = "cat gate > /dev/null; " if number < held else ""
        begin, end = (f'printf "{word} %s %s\\n" "$ORCHESTRA_TASK" "$ORCHESTRA_ATTEMPT" >> log' for word in ("begin", "end"))
        lines += [f"  - id: t{number}", f"    run: '{begin}; {wait}{end}'"]
    return "\n".join(lines)


def wait_for_log(sh: Shell, count: int) -> None:
    """Waits until so many tasks have begun. `inotifywait` would be another package; this polls the kernel's own view of the file."""
    subprocess.run(
        ["sh", "-c", f'until [ -e log ] && [ "$(grep -c begin log)" -ge {count} ]; do sleep 0.02; done'],
        cwd=sh.folder,
        check=True,
        timeout=60,
    )


def open_gate(sh: Shell) -> None:
    """Lets through who waits at the gate, and everybody after them."""
    os.rename(sh.folder / "gate", sh.folder / "gate.old")
    (sh.folder / "gate").write_text("")
    try:
        os.close(os.open(sh.folder / "gate.old", os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return


def check_exactly_once(sh: Shell, tasks: int) -> None:
    state = check_books(sh.root)
    ended = Counter(line for line in (sh.folder / "log").read_text().splitlines() if line.startswith("end"))
    assert set(ended.values()) == {1}
    assert [task.status.value for task in state.tasks.values()] == ["completed"] * tasks
    assert all(ended[f"end {task.id} {task.primary}"] == 1 for task in state.tasks.values())


def test_kill_the_run_and_resume_it(sh: Shell) -> None:
    os.mkfifo(sh.folder / "gate")
    path = sh.plan(held_plan(20, 2))
    process = sh.start("run", path)
    wait_for_log(sh, 2)
    process.kill()
    process.communicate(timeout=60)
    workers = {pid for pid, command in processes_of(sh.root).items() if "orchestra_stage.worker" in command}
    assert workers, "agents live on without their coordinator"
    open_gate(sh)
    done = sh.run("run", path, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    check_exactly_once(sh, 20)
    state = check_books(sh.root)
    assert all(len(task.attempts) == 1 for task in state.tasks.values())


def test_ctrl_c_lets_running_tasks_finish_and_resume_goes_on(sh: Shell) -> None:
    os.mkfifo(sh.folder / "gate")
    path = sh.plan(held_plan(6, 6))
    process = sh.start("run", path)
    wait_for_log(sh, 4)
    interrupt(process)
    open_gate(sh)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    assert "--resume" in out + err
    done = sh.run("run", path, "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    check_exactly_once(sh, 6)


def test_ctrl_c_twice_stops_what_runs(sh: Shell) -> None:
    os.mkfifo(sh.folder / "gate")
    path = sh.plan(held_plan(2, 2))
    process = sh.start("run", path)
    wait_for_log(sh, 2)
    interrupt(process)
    assert process.stderr is not None
    assert any("press Ctrl-C again" in line for line in iter(process.stderr.readline, ""))
    interrupt(process)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, out + err
    assert not processes_left(sh.root)
    open_gate(sh)
    assert sh.run("run", path, "--resume").returncode == 0
    state = check_books(sh.root)
    assert {task.attempts[0].outcome.kind.value for task in state.tasks.values() if task.attempts[0].outcome} == {"stopped"}


def test_resume_of_a_changed_plan_is_refused(sh: Shell) -> None:
    path = sh.plan(HELLO.replace("'cat made.txt'", "'exit 3'"))
    assert sh.run("run", path).returncode == 1
    done = sh.run("run", sh.plan(HELLO), "--resume")
    assert done.returncode == 2
    assert "another version" in done.stderr


def test_resume_retries_what_failed(sh: Shell) -> None:
    path = sh.plan(HELLO.replace("'cat made.txt'", "'test -e unlocked'"))
    assert sh.run("run", path).returncode == 1
    (sh.folder / "unlocked").touch()
    assert sh.run("run", path, "--resume").returncode == 0


def test_after_the_run_everything_can_still_be_read(sh: Shell) -> None:
    assert sh.run("run", sh.plan(HELLO)).returncode == 0
    assert [line["text"] for line in sh.json("task", "logs", "a")["lines"]] == ["hello from hello/a"]
    assert sh.json("task", "list")["total"] == 2
    assert sh.run("run", sh.plan("name: quiet\ntasks:\n  - {id: q, run: 'true'}\n", "quiet.yaml")).returncode == 0
    assert sh.json("task", "logs", "quiet/q")["lines"] == []
    assert sh.json("task", "show", "hello/b")["task"]["status"] == "completed"
    assert "no coordinator is running" in sh.run("status").stdout
    assert sh.json("status")["health"] == "healthy", "it ended as it was to"
    assert sh.run("report").returncode == 0
    refused = sh.run("scale", "3")
    assert refused.returncode == 69
    assert "orchestra up" in refused.stderr


def test_resume_of_a_completed_plan_does_nothing(sh: Shell) -> None:
    path = sh.plan(HELLO.replace("echo made >", "echo made >>"))
    assert sh.run("run", path).returncode == 0
    assert sh.run("run", path, "--resume").returncode == 0
    assert (sh.folder / "made.txt").read_text() == "made\n"


def test_every_mistake_in_a_plan_is_named_at_once(sh: Shell) -> None:
    done = sh.run("run", sh.plan("name: p\ntasks:\n  - {id: a, runn: x}\n  - {id: b, run: x, retries: many}\n"))
    assert done.returncode == 2
    assert "runn" in done.stderr
    assert "retries" in done.stderr


def test_a_setting_on_the_command_line_is_obeyed(sh: Shell) -> None:
    path = sh.plan(HELLO.replace("defaults: {retries: 0}\n", "").replace("'cat made.txt'", "'exit 3'"))
    assert sh.run("run", path, "--set", "tasks.retries=0").returncode == 1
    assert len(check_books(sh.root).tasks[TaskId("hello/b")].attempts) == 1
    wrong = sh.run("run", path, "--set", "tasks.retires=0")
    assert wrong.returncode == 2
    assert "tasks.retries" in wrong.stderr


def test_a_setting_that_a_call_cannot_use_is_told(sh: Shell) -> None:
    assert sh.run("run", sh.plan(HELLO)).returncode == 0
    looked = sh.run("status", "--set", "tasks.retries=0")
    assert (looked.returncode, "keeps the settings it has" in looked.stderr) == (0, True)
    wrong = sh.run("status", "--set", "tasks.retires=0")
    assert wrong.returncode == 2
    assert "tasks.retries" in wrong.stderr


def test_settings_that_change_while_it_runs_are_told_and_hold_from_the_next_start(sh: Shell) -> None:
    assert sh.run("up", "--agents", "1").returncode == 0
    assert sh.json("status")["warnings"] == []
    file = sh.root / "config" / "orchestra.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text("orchestra: {tasks: {retries: 7}}\n")
    status = sh.json("status")
    assert status["warnings"] == ["orchestra.yaml was changed after the start, and holds from the next one: tasks.retries"]
    assert status["health"] == "healthy"
    assert sh.run("down").returncode == 0
    assert sh.run("up", "--agents", "1").returncode == 0
    assert sh.json("status")["warnings"] == []


def test_down_ends_what_a_kept_run_has_left(sh: Shell) -> None:
    assert sh.run("run", sh.plan(HELLO), "--keep").returncode == 0
    assert sh.result("hello/b")["status"] == "completed", "results are there before it lets go"
    assert processes_of(sh.root)
    assert sh.run("down").returncode == 0
    assert not processes_left(sh.root)


def test_a_damaged_ledger_is_refused_at_once_and_nothing_goes_on_trying(sh: Shell) -> None:
    assert sh.run("run", sh.plan(HELLO)).returncode == 0
    database = sh.root / "ledger" / "ledger.db"
    content = bytearray(database.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    database.write_bytes(bytes(content))
    done = sh.run("up", "--agents", "1")
    assert done.returncode != 0
    assert "repair" in done.stderr
    assert not processes_left(sh.root)


def test_resume_of_a_plan_that_never_began_starts_it(sh: Shell) -> None:
    assert sh.run("run", sh.plan(HELLO), "--resume").returncode == 0


def test_two_hundred_tasks_on_fifty_windows(sh: Shell) -> None:
    tasks = "".join(f"  - {{id: t{number}, run: 'echo {number} >> log'}}\n" for number in range(200))
    done = sh.run("--json", "run", sh.plan(f"name: many\nagents: {{count: 50}}\ntasks:\n{tasks}"))
    assert done.returncode == 0, done.stderr
    assert sorted(map(int, (sh.folder / "log").read_text().split())) == list(range(200))
    assert json.loads(done.stdout.splitlines()[-1])["type"] == "result"
    used = {attempt.agent for task in check_books(sh.root).tasks.values() for attempt in task.attempts}
    assert len(used) > 25


def test_two_hundred_agents_come_up_and_are_listed(sh: Shell) -> None:
    assert sh.run("up", "--agents", "200").returncode == 0
    agents = sh.json("agent", "list")["agents"]
    assert [agent["agent"] for agent in agents] == list(range(1, 201))
    assert {agent["status"] for agent in agents} == {"idle"}
    assert len({agent["pid"] for agent in agents}) == 200
    assert sh.run("down").returncode == 0
    assert not processes_left(sh.root)


def coordinator_pid(sh: Shell) -> int:
    holder = json.loads((sh.root / "ledger" / "coordinator.lock").read_text())
    return int(holder["pid"])


def test_a_second_coordinator_is_refused_with_the_pid_of_the_first(sh: Shell) -> None:
    assert sh.run("up", "--agents", "1").returncode == 0
    done = sh.run("up", "--agents", "1")
    assert done.returncode != 0
    second = sh.run("coordinator")
    assert second.returncode == 75
    assert str(coordinator_pid(sh)) in second.stderr


def test_a_killed_coordinator_is_started_again_and_finds_its_agents(sh: Shell) -> None:
    assert sh.run("up", "--agents", "3").returncode == 0
    before = {agent["agent"]: agent["pid"] for agent in sh.json("agent", "list")["agents"]}
    first = coordinator_pid(sh)
    os.kill(first, signal.SIGKILL)
    done = _submit_until_up(sh)
    assert done.returncode == 0, done.stderr
    assert coordinator_pid(sh) != first
    after = {agent["agent"]: agent["pid"] for agent in sh.json("agent", "list")["agents"]}
    assert after == before
    assert AgentId(1) in after


def _submit_until_up(sh: Shell) -> subprocess.CompletedProcess[str]:
    """Submits as soon as somebody listens again."""
    done = sh.run("task", "submit", "prints a word", "--run", "echo word")
    for _ in range(200):
        if done.returncode != 69:
            break
        done = sh.run("task", "submit", "prints a word", "--run", "echo word")
    return done
