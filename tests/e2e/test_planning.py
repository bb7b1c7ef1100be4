"""Plans that agents return and reviews that send work back, with the installed command, real windows, and agents that need no model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Shell, shell

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        yield found


RETURNED = {
    "tasks": [
        {"id": "one", "run": "echo one > one.txt"},
        {"id": "two", "needs": ["one"], "run": "cat one.txt > two.txt", "success_criteria": ["File exists: two.txt"]},
    ]
}
FIRST_WRONG = {"tasks": [{"id": "one", "run": "true", "needs": ["ghost"], "workspace": "/"}, {"id": "../x", "run": "true"}]}
PLANNING = f"""
name: grows
agents: {{count: 2}}
defaults: {{retries: 1, retry_backoff_seconds: 0.01}}
tasks:
  - id: plan
    description: plans the rest
    returns: plan
    run: |
      case $ORCHESTRA_ATTEMPT in
        1) cat > "$ORCHESTRA_RETURN" <<'END'
      {json.dumps(FIRST_WRONG)}
      END
        ;;
        *) cat > "$ORCHESTRA_RETURN" <<'END'
      {json.dumps(RETURNED)}
      END
        ;;
      esac
  - {{id: after, needs: [plan], run: cat two.txt}}
"""


def test_a_plan_that_cannot_be_used_is_repaired_and_what_was_planned_is_done_before_what_comes_after(sh: Shell) -> None:
    done = sh.run("run", sh.plan(PLANNING))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (sh.root / "results" / "grows" / "after" / "execution.log").read_text() == "one\n"
    plan = sh.result("grows/plan")
    assert plan["status"] == "completed"
    assert any("the returned plan cannot be used" in warning for warning in plan["warnings"]), plan["warnings"]
    assert sh.result("grows/plan.two")["planned_by"] == "grows/plan"
    report = (sh.root / "reports" / "grows.html").read_text()
    assert "planned by grows/plan" in report
    assert "what is planned works where the planning task does" in report, "the complaints of the first attempt"


REVIEWED = """
name: judged
agents: {count: 2}
defaults: {retries: 1, retry_backoff_seconds: 0.01}
tasks:
  - {id: work, run: 'echo "draft $ORCHESTRA_ATTEMPT" > work.txt'}
  - id: check
    reviews: work
    run: |
      if grep -q 'draft 1' work.txt; then
        echo '{"verdict": "refuse", "summary": "a draft", "findings": [{"severity": "major", "file": "work.txt", "line": 1, "text": "is a draft"}]}'
      else
        echo '{"verdict": "approve", "summary": "better"}'
      fi > "$ORCHESTRA_RETURN"
  - {id: use, needs: [work], run: cat work.txt}
"""


def test_a_refused_review_sends_the_work_back_once_and_is_then_approved(sh: Shell) -> None:
    done = sh.run("run", sh.plan(REVIEWED))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (sh.root / "results" / "judged" / "use" / "execution.log").read_text() == "draft 2\n"
    assert sh.result("judged/check")["review"]["verdict"] == "approve"
    report = (sh.root / "reports" / "judged.md").read_text()
    assert "sent back by a review once" in report
    assert "attempt 1 refused: a draft" in report


def test_a_second_refusal_fails_the_review_and_is_shown_with_its_findings(sh: Shell) -> None:
    done = sh.run("run", sh.plan(REVIEWED.replace("'draft 1'", "draft")))
    assert done.returncode == 1
    assert "it refuses judged/work, again: a draft" in done.stdout + done.stderr
    assert sh.result("judged/work")["status"] == "completed"
    assert sh.result("judged/use")["status"] == "cancelled"
    assert sh.result("judged/check")["review"]["findings"] == [{"severity": "major", "file": "work.txt", "line": 1, "text": "is a draft"}]
    assert "major work.txt:1: is a draft" in (sh.root / "reports" / "judged.md").read_text()


def test_a_coordinator_that_dies_between_refusal_and_repair_is_followed_by_one_that_goes_on(sh: Shell) -> None:
    """The second attempt at the work waits for a file; the coordinator is killed before that file is there."""
    text = """
name: cut
workspace: work
agents: {count: 2}
defaults: {retries: 1, retry_backoff_seconds: 0.01}
tasks:
  - {id: plan, returns: plan, run: 'cat ../planned.json > "$ORCHESTRA_RETURN"'}
  - {id: end, needs: [plan], run: cat work.txt}
"""
    planned = {
        "tasks": [
            {
                "id": "work",
                "run": 'test "$ORCHESTRA_ATTEMPT" = 1 || { echo began > ../began; read x < ../gate; }; echo "draft $ORCHESTRA_ATTEMPT" > work.txt',
            },
            {
                "id": "check",
                "reviews": "work",
                "run": 'if grep -q "draft 1" work.txt; then v=refuse; else v=approve; fi; printf \'{"verdict": "%s", "summary": "s", "findings": [{"severity": "minor", "text": "t"}]}\' $v > "$ORCHESTRA_RETURN"',
            },
        ]
    }
    (sh.folder / "planned.json").write_text(json.dumps(planned))
    for name in ("began", "gate"):
        os.mkfifo(sh.folder / name)
    path = sh.plan(text)
    process = sh.start("run", path)
    with (sh.folder / "began").open() as began:  # opens when the second attempt writes
        assert began.read() == "began\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = sh.start("run", path, "--resume")
    with (sh.folder / "gate").open("w") as gate:
        gate.write("go\n")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, out + err
    assert (sh.root / "results" / "cut" / "end" / "execution.log").read_text() == "draft 2\n"
    assert sh.result("cut/plan.check")["review"]["verdict"] == "approve"


JUDGED = """
name: words
workspace: work
agents: [{count: 1, kind: shell}, {count: 1, kind: rehearsal}]
defaults: {retries: 0}
tasks:
  - {id: text, run: 'echo hello > text.txt', success_criteria: ['It sounds friendly', 'File exists: text.txt']}
  - {id: send, needs: [text], run: cat text.txt}
"""
BY_REHEARSAL = ("--set", "routing.review=rehearsal")


def test_a_criterion_that_no_program_can_check_is_judged_and_marked_so(sh: Shell) -> None:
    """The rehearsal approves of everything and says that nobody looked."""
    done = sh.run("run", sh.plan(JUDGED), *BY_REHEARSAL)
    assert done.returncode == 0, done.stdout + done.stderr
    judged = {
        "criterion": "It sounds friendly",
        "met": True,
        "evidence": "Rehearsed: nobody looked.",
        "by": "words/text.judge",
        "agent": "rehearsal",
    }
    assert sh.result("words/text")["judged"] == [judged]
    assert "It sounds friendly (judged)" in (sh.root / "reports" / "words.md").read_text()
    assert "It sounds friendly (judged)" in (sh.root / "reports" / "words.html").read_text()


def test_strictly_it_is_refused_before_anything_starts(sh: Shell) -> None:
    done = sh.run("run", sh.plan(JUDGED), "--strict", *BY_REHEARSAL)
    assert done.returncode == 2
    assert "'It sounds friendly' cannot be checked by a machine" in done.stderr
    assert not (sh.root / "nodes" / "local").exists()


def test_where_nobody_can_judge_it_is_refused_with_what_to_do(sh: Shell) -> None:
    done = sh.run("run", sh.plan(JUDGED))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "tasks[0].success_criteria[0]" in done.stderr
    assert "'It sounds friendly' cannot be checked by a machine, and nobody can judge it" in done.stderr
    assert "no agent of the fleet takes tasks of kind claude" in done.stderr
    assert "have such an agent (claude, codex), or name one that is there in routing.review" in done.stderr
    off = sh.run("run", sh.plan(JUDGED), "--set", "tasks.judge_criteria=false")
    assert (off.returncode, "`judge: true` in the plan" in off.stderr) == (2, True)


REHEARSED = """
name: dry
agents: {count: 2, kind: rehearsal}
tasks:
  - {id: plan, returns: plan, prompt: Plan it., estimated_seconds: 0.01}
  - {id: work, needs: [plan], prompt: Do it., estimated_seconds: 0.01}
  - {id: look, reviews: work, prompt: Look at it., estimated_seconds: 0.01}
"""


def test_planning_and_reviews_are_rehearsed_without_a_model(sh: Shell) -> None:
    done = sh.run("run", sh.plan(REHEARSED))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sh.result("dry/plan.rehearsed")["status"] == "completed"
    assert sh.result("dry/look")["review"]["summary"] == "Rehearsed: nobody looked."


HYBRID = """
name: hybrid
agents: {count: 2}
tasks:
  - {id: code, prompt: Write it., workspace: work, isolation: shared}
"""


def test_what_codex_should_do_goes_to_who_stands_in_and_the_result_says_so(sh: Shell) -> None:
    settings = ("--set", "routing.coding=aider", "--set", "routing.alternatives=aider=rehearsal")
    done = sh.run("run", sh.plan(HYBRID), *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    said = "moved from aider to rehearsal: aider is not installed on any node that may have the task; expected to take 50 % longer"
    assert said in done.stderr
    assert said in sh.result("hybrid/code")["warnings"]
    assert said in (sh.root / "reports" / "hybrid.html").read_text()
