"""Secrets in texts that are kept: what is found, what is left alone, and that the lines stay aligned."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.gateway.upstream import TOKEN_PREFIX
from orchestra.protocol.masking import MASK, Masker, is_secret_name, secret_values

BODY = "Zx81" * 10
SAMPLES = (
    f"sk-ant-api03-{BODY}_-x",
    f"sk-proj-{BODY}",
    f"ghp_{BODY[:36]}",
    f"github_pat_{BODY}",
    "AKIAABCDEFGHIJKLMNO2",
    f"AIza{BODY[:35]}",
    f"xoxb-12345-{BODY}",
    f"glpat-{BODY[:20]}",
    f"oat_{BODY}",
    f"{TOKEN_PREFIX}{BODY}",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{BODY}",
)


@pytest.mark.parametrize("sample", SAMPLES)
def test_keys_of_well_known_forms_are_found(sample: str) -> None:
    for text in (sample, f'before "{sample}", after', f"key={sample}\nnext", f'{{"k":"{sample}"}}'):
        masked = Masker().text(text)
        assert sample not in masked
        assert BODY[:12] not in masked
        assert MASK in masked
        assert masked.count("\n") == text.count("\n")


@pytest.mark.parametrize("sample", [one for one in SAMPLES if not one.startswith("eyJ")])
def test_a_key_that_goes_on_in_the_next_line_is_found(sample: str) -> None:
    for place in range(len(sample) - 12, len(sample) - 8):
        masked = Masker().text(f"a {sample[:place]}\n{sample[place:]}\nthe end")
        assert sample[place:] not in masked
        assert masked.endswith("\nthe end")
        assert masked.count("\n") == 2


@pytest.mark.parametrize(
    "text,gone",
    [
        ("Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ("authorization: bearer\n abc.def-ghi_jkl", "abc.def-ghi_jkl"),
        ("git clone https://me:hunter2@example.org/x", "hunter2"),
        ("DB_PASSWORD=correct-horse", "correct-horse"),
        ("export API_KEY='1234-5678-90'", "1234-5678-90"),
    ],
)
def test_what_stands_where_a_secret_stands(text: str, gone: str) -> None:
    assert gone not in Masker().text(text)


def test_private_keys() -> None:
    lines = ["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7", "ABCDEFGH01234567"]
    block = "\n".join(("x", "-----BEGIN RSA PRIVATE KEY-----", *lines, "-----END RSA PRIVATE KEY-----", "y"))
    for text in (
        block,
        block.replace("\n", "\\n"),
        "\n".join(block.split("\n")[:4]),
        "\n".join([*block.split("\n")[:4], "not a key: at all, is it?"]),
    ):
        masked = Masker().text(text)
        assert not any(line in masked for line in lines)
        assert masked.count("\n") == text.count("\n")
    assert Masker().text(block).endswith("-----END RSA PRIVATE KEY-----\ny")
    assert Masker().text("-----BEGIN PRIVATE KEY-----\nMIIE\nwhat comes after.").endswith("\nwhat comes after.")


@pytest.mark.parametrize(
    "text",
    [
        "a task-with-a-very-long-name-of-its-own and risk-assessment-number-1234567",
        "sk-learn and the-sk-prefix",
        "PATH=/usr/local/bin:/usr/bin",
        "TOKENS=12",
        "a bearer of bad news",
        "https://example.org:8080/a@b",
        "orc-hestra",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert Masker().text(text) == text


def test_known_values() -> None:
    masker = Masker(["correct horse", "short", 'with "quotes"', "two\nlines of it"])
    assert masker.text("a correct horse, a short one") == f"a {MASK}, a short one"
    assert masker.text('{"v": "with \\"quotes\\""}') == f'{{"v": "{MASK}"}}'
    assert masker.text("a corr\nect ho\nrse b") == f"a {MASK}\n\n b"
    assert masker.text("two\nlines of it") == f"{MASK}\n"
    assert masker.plain({"correct horse": ["correct horse", 1, None, {"a": "b"}]}) == {"correct horse": [MASK, 1, None, {"a": "b"}]}


@given(st.lists(st.text("ab\nc", max_size=12), max_size=20), st.integers(0, 11))
def test_a_known_value_is_found_wherever_it_is_broken(around: list[str], place: int) -> None:
    value = "s3cret-value"
    text = "".join(around) + value[:place] + "\n" + value[place:] + "".join(around)
    masked = Masker([value]).text(text)
    assert value not in masked.replace("\n", "")
    assert masked.count("\n") == text.count("\n")


@given(st.text(max_size=300))
def test_any_text_keeps_its_lines(text: str) -> None:
    assert Masker(["correct horse"]).text(text).count("\n") == text.count("\n")


def test_names_of_variables() -> None:
    assert all(
        map(
            is_secret_name,
            ("ANTHROPIC_API_KEY", "GH_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD_", "DB_PASSWORD", "MY_PASSWD", "OPENAI_APIKEY"),
        )
    )
    assert not any(map(is_secret_name, ("PATH", "KEYBOARD", "MONKEY", "TOKENIZER", "HOME", "PATTERN")))
    assert secret_values({"A_TOKEN": "long enough", "B_TOKEN": "short", "HOME": "/home/someone"}) == ("long enough",)
