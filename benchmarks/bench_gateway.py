"""The gateway beside a direct connection and beside the LiteLLM proxy: added latency, throughput on one core, two hundred streams, memory.

All three are asked by the same client for the same small message of the same upstream on loopback, in turns, in one run. The gateway and LiteLLM are
processes of their own with one worker each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import support

from orchestra.gateway.admin import ask_admin

LITELLM: Final = "litellm[proxy]==1.100.5"
KEY: Final = "sk-bench"
MESSAGE: Final = {"model": "claude-haiku-4-5", "max_tokens": 64, "messages": [{"role": "user", "content": "hello " * 40}]}
ROUNDS: Final = 5
STREAMS: Final = 200
CHUNKS: Final = 100
CHUNK_PAUSE_S: Final = 0.05
NAMES_EVERY: Final = 50
BARS: Final = {
    "added_p50_ms": 1.0,
    "added_p99_ms": 5.0,
    "rss_mib": 150.0,
    "soak_mib_per_10000": 1.0,
    "latency_ratio": 5.0,
    "throughput_ratio": 5.0,
}

UPSTREAM: Final = """
import asyncio, json, sys
WHOLE = json.dumps({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-haiku-4-5", "stop_reason": "end_turn",
                    "content": [{"type": "text", "text": "ok"}], "usage": {"input_tokens": 60, "output_tokens": 2}}).encode()
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(WHOLE)
SSE = b"HTTP/1.1 200 OK\\r\\nContent-Type: text/event-stream\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n"
def event(name, data):
    text = f"event: {name}\\ndata: {json.dumps({'type': name, **data})}\\n\\n".encode()
    return b"%x\\r\\n%b\\r\\n" % (len(text), text)
START = event("message_start", {"message": {"usage": {"input_tokens": 60, "output_tokens": 1}}})
DELTA = event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "some words of an answer "}})
END = event("message_delta", {"usage": {"output_tokens": 500}}) + event("message_stop", {}) + b"0\\r\\n\\r\\n"
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\\r\\n") if line.startswith(b"content-length:")), 0)
            body = await reader.readexactly(length)
            if b'"stream":true' in body.replace(b" ", b""):
                writer.write(SSE + START)
                for _ in range(CHUNKS):
                    await asyncio.sleep(PAUSE)
                    writer.write(DELTA)
                    await writer.drain()
                writer.write(END)
            else:
                writer.write(HEAD + WHOLE)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, backlog=1024)
    await server.serve_forever()
asyncio.run(main())
"""


def free_port() -> int:
    """Returns a port nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def tail_of(log: Path) -> str:
    """Returns the end of a log."""
    return log.read_text(errors="replace")[-400:]


@asynccontextmanager
async def process(
    argv: list[str], port: int, log: Path, environ: dict[str, str] | None = None, *, wait_s: float = 60
) -> AsyncIterator[int]:
    """A server of our own making, until it listens; yields its pid."""
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=output, env={**os.environ, **(environ or {})})
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                if running.returncode is not None or time.monotonic() > deadline:
                    raise support.Unavailable(f"{argv[0]} does not listen: {tail_of(log)}") from None
                await asyncio.sleep(0.1)
        yield running.pid
    finally:
        if running.returncode is None:
            running.send_signal(signal.SIGKILL)
        await running.wait()


@asynccontextmanager
async def gateway(folder: Path, upstream: str) -> AsyncIterator[tuple[str, str, int, Path]]:
    """Ours: its URL, a token, its pid and its administration."""
    port = free_port()
    accounts = {"main": {"keys": [{"env": "BENCH_KEY"}], "concurrency": 10_000}}
    config = {
        "listen": f"127.0.0.1:{port}",
        "folder": "books",
        "bounds": {"agent_in_flight": 1_000},
        "upstreams": {"api": {"kind": "anthropic", "base_url": upstream, "accounts": accounts}},
    }
    (folder / "gateway.json").write_text(json.dumps(config))
    argv = [sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(folder / "gateway.json")]
    async with process(argv, port, folder / "gateway.log", {"BENCH_KEY": KEY}) as pid:
        admin = folder / "books" / "admin.sock"
        token = (await ask_admin(admin, "issue_token", {"attempt": "bench", "agent": "bench"}))["token"]
        yield f"http://127.0.0.1:{port}", token, pid, admin


@asynccontextmanager
async def litellm(folder: Path, upstream: str) -> AsyncIterator[tuple[str, str, int]]:
    """The peer: one worker, no database, no logging."""
    python = support.peer_python(LITELLM)
    port = free_port()
    model = {"model": "anthropic/claude-haiku-4-5", "api_base": upstream, "api_key": KEY}
    config = {
        "model_list": [{"model_name": "claude-haiku-4-5", "litellm_params": model}],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": "sk-master"},
    }
    (folder / "litellm.yaml").write_text(json.dumps(config))
    argv = [
        str(python.parent / "litellm"),
        "--config",
        str(folder / "litellm.yaml"),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--num_workers",
        "1",
    ]
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "HTTPS_PROXY": "", "NO_PROXY": "*"}
    async with process(argv, port, folder / "litellm.log", offline, wait_s=180) as pid:
        yield f"http://127.0.0.1:{port}", "sk-master", pid


async def ask(http: aiohttp.ClientSession, url: str, token: str) -> None:
    """One small message."""
    async with http.post(url + "/v1/messages", json=MESSAGE, headers={"x-api-key": token, "anthropic-version": "2023-06-01"}) as response:
        body = await response.read()
        if response.status != 200:
            raise support.Unavailable(f"{url} answered {response.status}: {body[:300]!r}")


async def latencies(http: aiohttp.ClientSession, url: str, token: str, count: int) -> list[float]:
    """Milliseconds of one request after the other."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        await ask(http, url, token)
        found.append((time.perf_counter() - begun) * 1000)
    return found


async def throughput(http: aiohttp.ClientSession, url: str, token: str, count: int, at_once: int = 32) -> float:
    """Requests a second with many at once."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await ask(http, url, token)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return count / (time.perf_counter() - begun)


async def streams(http: aiohttp.ClientSession, url: str, token: str) -> dict[str, float]:
    """Two hundred answers at once, each in a hundred pieces; all have to be whole."""

    async def one() -> bool:
        headers = {"x-api-key": token, "anthropic-version": "2023-06-01"}
        async with http.post(url + "/v1/messages", json={**MESSAGE, "stream": True}, headers=headers) as response:
            text = await response.read()
            return text.count(b"event: content_block_delta") == CHUNKS and text.endswith(b"\n\n") and b"message_stop" in text

    begun = time.perf_counter()
    whole = await asyncio.gather(*(one() for _ in range(STREAMS)))
    return {"whole": sum(whole), "seconds": round(time.perf_counter() - begun, 3)}


async def soak(http: aiohttp.ClientSession, url: str, admin: Path, pid: int, count: int) -> dict[str, float]:
    """As many requests, by an attempt, task and agent of their own for every fifty; the memory after a tenth, after half, and at the end."""
    found: dict[str, float] = {"requests": count}
    marks = {count // 10: "rss_mib_tenth", count // 2: "rss_mib_half", count: "rss_mib_end"}
    for sent in range(0, count, NAMES_EVERY):
        who = {"attempt": f"try-{sent}", "task": f"task-{sent}", "agent": f"agent-{sent}"}
        token = (await ask_admin(admin, "issue_token", {**who, "budgets": {"task": 10**9}}))["token"]
        await throughput(http, url, token, NAMES_EVERY)
        await ask_admin(admin, "revoke", {"attempt": who["attempt"]})
        if (mark := marks.get(sent + NAMES_EVERY)) is not None:
            found[mark] = round(support.resident_bytes(pid) / 2**20, 1)
    return found


def judge_soak(result: dict[str, Any]) -> None:
    """Adds whether memory is flat: at most a MiB more for ten thousand requests once a tenth of them is over."""
    found = result["soak"]
    found["mib_per_10000"] = round((found["rss_mib_end"] - found["rss_mib_tenth"]) / (found["requests"] * 0.9) * 10_000, 3)
    result["bars"] |= {
        "soak_rss": found["rss_mib_end"] <= BARS["rss_mib"],
        "soak_flat": found["mib_per_10000"] <= BARS["soak_mib_per_10000"],
    }


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs all of it."""
    result: dict[str, Any] = {"busy_before": support.wait_quiet()}
    with support.scratch() as folder:
        port = free_port()
        script = folder / "upstream.py"
        script.write_text(UPSTREAM.replace("CHUNKS", str(CHUNKS)).replace("PAUSE", str(CHUNK_PAUSE_S)).replace("PORT", str(port)))
        async with (
            process([sys.executable, str(script)], port, folder / "upstream.log"),
            gateway(folder, f"http://127.0.0.1:{port}") as (ours, token, pid, admin),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        ):
            direct = f"http://127.0.0.1:{port}"
            rivals = {"direct": (direct, KEY), "ours": (ours, token)}
            result["peer"] = await with_peer(folder, direct, options, rivals, http, result, pid)
            if options.soak:
                result["soak"] = await soak(http, ours, admin, pid, options.soak)
                judge_soak(result)
    return result


async def with_peer(
    folder: Path,
    direct: str,
    options: argparse.Namespace,
    rivals: dict[str, tuple[str, str]],
    http: aiohttp.ClientSession,
    result: dict[str, Any],
    pid: int,
) -> str:
    """Measures with the peer if it can be run, else without; returns what the peer is, or why there is none."""
    if not options.no_peer:
        try:
            async with litellm(folder, direct) as (url, token, _):
                await ask(http, url, token)
                await figures({**rivals, "litellm": (url, token)}, http, options, result, pid)
                return LITELLM
        except support.Unavailable as error:
            result["peer_missing"] = str(error)[:300]
    await figures(rivals, http, options, result, pid)
    return ""


async def figures(
    rivals: dict[str, tuple[str, str]], http: aiohttp.ClientSession, options: argparse.Namespace, result: dict[str, Any], pid: int
) -> None:
    """Measures everybody in turns."""
    count = 400 if options.quick else 2_000
    every: dict[str, list[float]] = {name: [] for name in rivals}
    rates: dict[str, list[float]] = {name: [] for name in rivals}
    for url, token in rivals.values():
        await latencies(http, url, token, 50)
    for _ in range(ROUNDS):
        for name, (url, token) in rivals.items():
            every[name] += await latencies(http, url, token, count // ROUNDS)
    for name in rivals:
        result[f"{name}_p50_ms"] = support.percentile(every[name], 0.5)
        result[f"{name}_p99_ms"] = support.percentile(every[name], 0.99)
    for _ in range(3):
        for name, (url, token) in rivals.items():
            begun = support.cpu_seconds(pid)
            rates[name].append(await throughput(http, url, token, count // (4 if name == "litellm" else 1)))
            if name == "ours":
                result["ours_cpu_ms_a_request"] = (support.cpu_seconds(pid) - begun) * 1000 / count
    for name in rivals:
        result[f"{name}_requests_a_second"] = support.median(rates[name])
    result["ours_streams"] = await streams(http, *rivals["ours"])
    result["direct_streams"] = await streams(http, *rivals["direct"])
    result["rss_mib"] = support.resident_bytes(pid) / 2**20
    judge(result, rivals)


def judge(result: dict[str, Any], rivals: dict[str, tuple[str, str]]) -> None:
    """Adds what follows from the figures, and whether the bars are met."""
    for share in ("p50", "p99"):
        result[f"added_{share}_ms"] = result[f"ours_{share}_ms"] - result[f"direct_{share}_ms"]
    met = {name: result[name] <= BARS[name] for name in ("added_p50_ms", "added_p99_ms", "rss_mib")}
    met["streams"] = result["ours_streams"]["whole"] == STREAMS
    if "litellm" in rivals:
        result["latency_ratio"] = (result["litellm_p50_ms"] - result["direct_p50_ms"]) / max(0.001, result["added_p50_ms"])
        result["throughput_ratio"] = result["ours_requests_a_second"] / result["litellm_requests_a_second"]
        met |= {name: result[name] >= BARS[name] for name in ("latency_ratio", "throughput_ratio")}
    result["bars"] = met


def main() -> None:
    options = support.arguments(
        __doc__ or "",
        ("--soak", {"type": int, "default": 0, "help": "requests to send for the growth of memory"}),
        ("--no-peer", {"action": "store_true", "help": "without LiteLLM"}),
    )
    result = support.run(lambda: measure(options))
    bars = result["bars"]
    support.show(
        "gateway",
        "ms",
        "added p50 <= 1, p99 <= 5, RSS <= 150 MiB, 200 streams whole, 1/5 of LiteLLM's latency, 5 x its throughput",
        all(bars.values()) if result["peer"] else None if all(bars.values()) else False,
        {"ours": "orchestra gateway run", "direct": "the upstream itself", "peer": f"litellm proxy, {LITELLM}"},
        **result,
    )


if __name__ == "__main__":
    main()
