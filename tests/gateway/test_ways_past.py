"""Whatever an agent without a budget asks for, nothing that costs is sent: each path with each method, and each word that puts the bill off."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from orchestra.testing.upstream import JSON_TYPE, Answer, Seen
from tests.gateway.support import CANARY, Stage, asking, staged

METHODS: Final = ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS")
FREE: Final = {
    "anthropic": {("GET", "/v1/models"), ("HEAD", "/v1/models"), ("GET", "/v1/models/x"), ("HEAD", "/v1/models/x")}
    | {("POST", "/v1/messages/count_tokens")},
    "openai": {
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/ft:gpt-4o:acme::x1"),
        ("HEAD", "/v1/models/ft:gpt-4o:acme::x1"),
    }
    | {("POST", "/v1/responses/input_tokens")}
    | {("GET", "/v1/models/gemini-2.5-pro:generateContent"), ("HEAD", "/v1/models/gemini-2.5-pro:generateContent")},
    "gemini": {("GET", "/v1beta/models"), ("HEAD", "/v1beta/models"), ("GET", "/v1beta/models/g"), ("HEAD", "/v1beta/models/g")}
    | {("POST", "/v1beta/models/g:countTokens"), ("POST", "/api/models/g:countTokens")},
}
"""All that is sent on with a real key although there is no money."""
PATHS: Final = {
    "anthropic": (
        "/v1/messages",
        "/v1/complete",
        "/v1/messages/batches",
        "/v1/messages/batches/b/cancel",
        "/v1/files",
        "/api/v1/messages/batches",
    ),
    "openai": (
        *("/v1/responses", "/v1/responses/r", "/v1/responses/r/cancel", "/v1/responses/compact", "/v1/chat/completions", "/v1/completions"),
        *(
            "/v1/embeddings",
            "/v1/images/generations",
            "/v1/audio/speech",
            "/v1/batches",
            "/v1/files",
            "/v1/fine_tuning/jobs",
            "/v1/moderations",
        ),
        "/api/responses",
    ),
    "gemini": (
        *(
            f"/v1beta/models/g:{verb}"
            for verb in ("generateContent", "streamGenerateContent", "batchGenerateContent", "asyncBatchEmbedContent", "embedContent")
        ),
        *(
            f"/v1beta/models/g:{verb}"
            for verb in ("batchEmbedContents", "predict", "predictLongRunning", "bidiGenerateContent", "createTunedModel")
        ),
        *("/v1beta/tunedModels/t:generateContent", "/v1beta/cachedContents", "/v1beta/batches", "/v1beta/openai/chat/completions"),
        *("/api/models/g:generateContent", "/api/models/g:predict", "/v1/models/g:predict"),
    ),
}
BODY: Final = asking("gpt-5")
WELL: Final = Answer(headers=(JSON_TYPE,), body=b'{"usage": {"input_tokens": 1, "output_tokens": 1}}')


def well(seen: Seen, n: int) -> Answer:
    return Answer() if seen.method == "HEAD" else WELL


async def ask(stage: Stage, method: str, path: str) -> int:
    headers = {"x-api-key": stage.token} | ({"anthropic-version": "1"} if stage.gateway.config.upstreams["api"].kind == "anthropic" else {})
    async with stage.http.request(
        method, stage.url + path, json=BODY if method in {"POST", "PUT", "PATCH"} else None, headers=headers
    ) as response:
        await response.read()
        return response.status


@pytest.mark.parametrize("kind", list(FREE))
async def test_without_a_budget_only_what_is_free_is_sent(tmp_path: Path, kind: str) -> None:
    upstream = {"kind": kind}
    free = FREE[kind]
    async with staged(tmp_path, well, upstream=upstream, issue={"budgets": {"task": 0}}) as stage:
        for path in dict.fromkeys([*PATHS[kind], *(path for _, path in free)]):
            for method in METHODS:
                before = len(stage.upstream.seen)
                status = await ask(stage, method, path)
                sent = len(stage.upstream.seen) - before
                assert sent == ((method, path) in free), f"{method} {path} was answered with {status}"
                assert (status == 200) == bool(sent), f"{method} {path} was answered with {status}"
        assert (await stage.totals())["requests"] == 0


async def test_no_header_makes_another_request_of_one(tmp_path: Path) -> None:
    """Google's servers take the method from a header, if there is one."""
    async with staged(tmp_path, well, upstream={"kind": "gemini"}, issue={"budgets": {"task": 0}}) as stage:
        headers = {"x-goog-api-key": stage.token, "X-HTTP-Method-Override": "DELETE", "x-http-method": "POST", "X-Method-Override": "PUT"}
        async with stage.http.get(stage.url + "/v1beta/models/g", headers=headers) as response:
            assert response.status == 200
        (seen,) = stage.upstream.seen
        assert seen.header("x-goog-api-key") == CANARY
        assert "method" not in str(seen.headers).lower()


@pytest.mark.parametrize("word", ["true", "1", '"yes"'])
async def test_what_would_be_billed_later_is_refused(tmp_path: Path, word: str) -> None:
    async with staged(tmp_path, well, upstream={"kind": "openai"}) as stage:
        body = '{"model": "gpt-5", "input": "x", "background": %s}'
        status, words, _ = await stage.post((body % word).encode(), path="/v1/responses")
        assert (status, stage.upstream.seen) == (400, [])
        assert b"background" in words
        for allowed in ("false", "null"):
            assert (await stage.post((body % allowed).encode(), path="/v1/responses"))[0] == 200


async def test_what_is_allowed_by_the_file_passes_and_is_not_counted(tmp_path: Path) -> None:
    upstream = {"kind": "gemini", "other_paths": "pass"}
    async with staged(tmp_path, well, upstream=upstream) as stage:
        assert await ask(stage, "POST", "/v1beta/models/g:predict") == 200
        assert await ask(stage, "DELETE", "/v1beta/models") == 405, "that is still only to be read"
        assert (await stage.totals())["requests"] == 0
