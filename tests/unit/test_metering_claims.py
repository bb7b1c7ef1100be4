"""Who waits for a budget that others hold: in turn, in nobody else's way, and never beyond it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.metering.books import Books, BudgetSet, Closed, Opened, Who
from orchestra.metering.claims import Claim, Claims
from orchestra.metering.usage import Usage


def books_of(**budgets: int) -> Books:
    books = Books()
    for name, amount in budgets.items():
        books.apply(BudgetSet("plan", name, amount))
    return books


def claim(agent: str, usd_micros: int, since_ms: int = 0, *, plan: str = "p", priority: int = 3) -> Claim:
    return Claim(Who(f"try-{agent}", agent=agent, plan=plan, priority=priority), agent, usd_micros, since_ms)


def opened(books: Books, who: Who, usd_micros: int) -> int:
    number = books.state.next_id
    books.apply(Opened(number, 0, who, "api", "main", "m", usd_micros, Usage()))
    return number


def closed(books: Books, number: int, usd_micros: int) -> None:
    books.apply(Closed(number, 0, 200, Usage(), usd_micros))


def test_a_large_request_is_passed_by_no_small_one_of_its_budget() -> None:
    books = books_of(p=100, q=100)
    on_way = opened(books, Who("x", plan="p"), 60)
    claims = Claims(books)
    large, small, other = claim("a", 90), claim("b", 11, 1), claim("c", 90, 2, plan="q")
    for each in (large, small, other):
        claims.wait(each)
    assert claims.admit(0) == [other]
    late = claim("d", 10)
    short = claims.refusal(late.who, 10, 0)
    assert short is not None, "who comes later waits behind"
    assert not short.for_good
    closed(books, on_way, 0)
    assert claims.admit(0) == [large]
    assert claims.refusal(large.who, 90, 0, large) is None
    assert claims.refusal(late.who, 20, 0) is not None, "it is promised to the large one"


def test_what_was_promised_is_free_again_when_it_is_given_up() -> None:
    books = books_of(p=100)
    claims = Claims(books)
    first, second = claim("a", 90), claim("b", 90)
    claims.wait(first)
    assert claims.admit(0) == [first]
    claims.wait(second)
    assert claims.admit(0) == []
    claims.drop(first)
    claims.drop(first)
    assert claims.admit(0) == [second]


def test_what_can_never_fit_is_told_at_once() -> None:
    books = books_of(p=100)
    on_way = opened(books, Who("x", plan="p"), 50)
    claims = Claims(books)
    waiting = claim("a", 60)
    claims.wait(waiting)
    assert claims.admit(0) == []
    closed(books, on_way, 50)
    assert claims.admit(0) == [waiting]
    short = claims.refusal(waiting.who, 60, 0, waiting)
    assert short is not None
    assert short.for_good


def served(*claimed: Claim) -> list[str]:
    """In which order those of one budget that bears one at a time get their turns."""
    books = books_of(p=10)
    claims = Claims(books)
    on_way = opened(books, Who("x", plan="p"), 10)
    for each in claimed:
        claims.wait(each)
    order = []
    while claims.waiting:
        assert claims.admit(0) == []
        closed(books, on_way, 0)
        (turn,) = claims.admit(0)
        claims.drop(turn)
        on_way = opened(books, turn.who, 10)
        order.append(turn.flow)
    return order


def test_who_asks_for_much_waits_for_those_who_ask_for_little() -> None:
    assert served(*(claim("a", 10, n) for n in range(3)), claim("b", 10, 5), claim("c", 10, 6)) == ["a", "b", "c", "a", "a"]


def test_the_next_priority_gets_twice_as_much() -> None:
    order = served(*(claim("a", 10, 0) for _ in range(6)), *(claim("b", 10, 1, priority=2) for _ in range(6)))
    assert order[:6].count("b") == 4


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "close", "give up"]), st.integers(0, 9), st.integers(1, 60), st.sampled_from("pq")), max_size=60
)


@settings(max_examples=200)
@given(STEPS)
def test_no_budget_is_ever_passed_and_nobody_waits_for_nothing(steps: list[tuple[str, int, int, str]]) -> None:
    """Requests that come, wait, are settled for less than reserved, and give up, in any order."""
    books = books_of(p=100, q=80)
    claims = Claims(books)
    on_way: list[tuple[int, int]] = []
    waiting: list[Claim] = []
    agents = 0

    def ask(each: Claim) -> None:
        found = claims.refusal(each.who, each.usd_micros, 0, each)
        if found is None:
            on_way.append((opened(books, each.who, each.usd_micros), each.usd_micros))
            claims.drop(each)
        elif not found.for_good:
            waiting.append(each)
            claims.wait(each)
        else:
            claims.drop(each)

    def pump() -> None:
        while admitted := claims.admit(0):
            for each in admitted:
                waiting.remove(each)
                ask(each)

    for what, index, amount, plan in steps:
        if what == "ask":
            agents += 1
            ask(claim(str(agents), amount, agents, plan=plan))
        elif what == "close" and on_way:
            number, reserved = on_way.pop(index % len(on_way))
            closed(books, number, amount % (reserved + 1))
        elif what == "give up" and waiting:
            claims.drop(waiting.pop(index % len(waiting)))
        pump()
        for name, budget in (("p", 100), ("q", 80)):
            assert books.settled("plan", name) + books.reserved("plan", name) <= budget
    while on_way:
        closed(books, on_way.pop()[0], 0)
        pump()
    assert not waiting
