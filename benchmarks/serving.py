"""`clinkd serve`: from the start to the first answer, many clients at once, three minutes of too many, and attackers.

    python -m benchmarks.serving RUN [--json] [--clients 16] [--rounds 3] [--soak-seconds 180] [--only start,load,soak]
    python -m benchmarks.serving RUN --only hostile [--hostile-minutes 10] [--rate QUESTIONS_PER_SECOND]

start: seconds until the page is up, and from the start of the process to the first answer, beside those that a bare
`import torch` and the import of the model's class take, taken in turns.
load: so many clients, each asking again as soon as it has an answer, against a server that answers up to 16 questions
together and against one that answers them one by one.
soak: questions come at twice the rate that the load found, whatever became of those before. Every one must be answered
or refused as the API says, and the server's memory must stay as it is.
hostile (only where it is named): questions at twice the rate of the load, for a tenth of the time alone and then beside
attackers: idle connections, heads and bodies that drip, clients that hang up while their image is opened, questions at
the limits of tokens, malformed requests and image bombs. All but the first two kinds hold the token.
All questions are about different pictures.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import itertools
import json
import os
import re
import struct
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import httpx2
import numpy as np
from benchmarks.report import Row, add_outputs, show
from PIL import Image

TOKEN = "a-token-of-this-benchmark"
THEIRS = "127.0.0.2"  # the address of the hostile clients, which have the token, too
BARE = "import torch\nfrom transformers import Qwen2VLForConditionalGeneration"
PROPER = (200, 429, 503, 504)  # answered, or refused as the API says


@contextmanager
def served(run: str, *more: str) -> Iterator[tuple[str, int, float]]:
    """A server's address, its process, and when that was started."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "clinkd", "serve", run, "--port", "0", *more],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, "CLINKD_TOKEN": TOKEN},
    )  # fmt: skip
    try:
        assert process.stdout
        found = re.match(r"page     (http://\S+?)/", process.stdout.readline())
        assert found, "the server did not start"
        yield found[1], process.pid, start
    finally:
        process.terminate()
        process.wait()


def questions(count: int) -> list[dict[str, object]]:
    """Bodies for /v1/ground, each about a picture of its own."""
    made, noise = [], np.random.default_rng(0)
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(noise.integers(0, 255, (96, 96, 3), np.uint8)).save(file, "PNG")
        image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        made.append({"image": image, "phrase": "liver"})
    return made


def client(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=256)
    return httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120, limits=limits)


# ---- start ----------------------------------------------------------------------------------------------------------


def starts(run: str, rounds: int) -> list[Row]:
    bare, page, answer = [], [], []
    [body] = questions(1)
    for _ in range(rounds):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", BARE], check=True)
        bare.append(time.monotonic() - start)
        with served(run) as (url, _, start):
            page.append(until_up(url, start))
            told = httpx2.post(f"{url}/v1/ground", json=body, headers={"authorization": f"Bearer {TOKEN}"}, timeout=120)
            assert told.status_code == 200, told.text
            answer.append(time.monotonic() - start)
    rival = median(bare), "bare import of torch and the model class", "s"
    return [Row("start to the page", median(page), *rival), Row("start to the first answer", median(answer), *rival)]


def until_up(url: str, start: float) -> float:
    headers = {"authorization": f"Bearer {TOKEN}"}
    while True:
        try:
            assert httpx2.get(url, headers=headers).status_code == 200
            return time.monotonic() - start
        except httpx2.TransportError:
            time.sleep(0.01)


# ---- load -----------------------------------------------------------------------------------------------------------


async def ready(asking: httpx2.AsyncClient) -> None:
    while (await asking.get("/healthz")).json()["status"] == "loading":
        await asyncio.sleep(0.05)


async def closed(url: str, clients: int, each: int) -> tuple[float, list[float], Counter[int]]:
    """Answers a second, seconds of each, and the statuses."""
    bodies = questions(clients * each)
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    async with client(url) as asking:
        await ready(asking)
        for body in questions(4):  # warm
            await asking.post("/v1/ground", json=body)

        async def one(own: list[dict[str, object]]) -> None:
            for body in own:
                start = time.monotonic()
                statuses[(await asking.post("/v1/ground", json=body)).status_code] += 1
                seconds.append(time.monotonic() - start)

        start = time.monotonic()
        await asyncio.gather(*(one(bodies[n::clients]) for n in range(clients)))
        return len(seconds) / (time.monotonic() - start), seconds, statuses


def loads(run: str, clients: int, rounds: int) -> list[Row]:
    found: dict[str, list[tuple[float, list[float], Counter[int]]]] = {"together": [], "one by one": []}
    for _ in range(rounds):
        for kind, batch, each in (("together", 16, 40), ("one by one", 1, 10)):
            with served(run, "--batch", str(batch)) as (url, _, _):
                found[kind].append(asyncio.run(closed(url, clients, each)))
    rate, alone = (median(rate for rate, _, _ in found[kind]) for kind in ("together", "one by one"))
    rows = [Row(f"{clients} clients, answers a second", rate, alone, "one by one", "1/s")]
    slow = {kind: np.concatenate([s for _, s, _ in runs]) for kind, runs in found.items()}
    for part in (0.5, 0.99):
        ours, theirs = (1000 * float(np.quantile(slow[kind], part)) for kind in ("together", "one by one"))
        rows.append(Row(f"{clients} clients, p{100 * part:g} of the time", ours, theirs, "one by one", "ms"))
    failed = sum(n for runs in found.values() for _, _, told in runs for status, n in told.items() if status != 200)
    asked = sum(map(len, slow.values()))
    rows.append(Row(f"{clients} clients, errors", failed, asked, "questions asked", ""))
    return rows


# ---- soak -----------------------------------------------------------------------------------------------------------


def tree_mb(pid: int) -> float:
    """Memory of a process and all below it that is not shared among them (PSS)."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    todo, total = [pid], 0
    while todo:
        own = todo.pop()
        todo += children.get(own, [])
        try:
            text = Path(f"/proc/{own}/smaps_rollup").read_text()
            total += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])
        except (OSError, TypeError):
            continue
    return total / 1024


async def soaked(
    url: str, pid: int, rate: float, seconds: float
) -> tuple[Counter[int | str], list[float], list[float]]:
    """Statuses, seconds of those answered, and the memory once a second."""
    bodies = questions(256)
    statuses: Counter[int | str] = Counter()
    took: list[float] = []
    memory: list[float] = []
    dice = np.random.default_rng(1)
    async with client(url) as asking:
        await ready(asking)

        async def one(body: dict[str, object]) -> None:
            start = time.monotonic()
            try:
                told = await asking.post("/v1/ground", json=body)
            except httpx2.HTTPError as error:
                statuses[type(error).__name__] += 1
                return
            statuses[told.status_code] += 1
            if told.status_code == 200:
                took.append(time.monotonic() - start)
            elif told.status_code == 429:
                assert int(told.headers["retry-after"]) >= 1

        async def look() -> None:
            while True:
                memory.append(await asyncio.to_thread(tree_mb, pid))
                await asyncio.sleep(1)

        looking = asyncio.create_task(look())
        going: set[asyncio.Task[None]] = set()
        start = due = time.monotonic()
        number = 0
        while time.monotonic() < start + seconds:
            due += float(dice.exponential(1 / rate))
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(one(bodies[number % len(bodies)]))
            number += 1
            going.add(task)
            task.add_done_callback(going.discard)
        await asyncio.gather(*going)
        looking.cancel()
    return statuses, took, memory


def soak(run: str, rate: float, seconds: float) -> list[Row]:
    with served(run) as (url, pid, _):
        statuses, took, memory = asyncio.run(soaked(url, pid, rate, seconds))
    print(f"statuses: {dict(statuses)}; MB: {', '.join(f'{m:.0f}' for m in memory[::15])}", file=sys.stderr)
    asked = sum(statuses.values())
    improper = sum(n for status, n in statuses.items() if status not in PROPER)
    # the first fifth is left out: caches fill, and decoders are still being started
    settled = memory[len(memory) // 5 :]
    third = max(1, len(settled) // 3)
    name = f"{seconds:g} s at {rate:.0f} questions/s"
    return [
        Row(f"{name}, memory at the end", median(settled[-third:]), median(settled[:third]), "at the start", "MB"),
        Row(f"{name}, answered", statuses[200], asked, "questions asked", ""),
        Row(f"{name}, neither answered nor refused as described", improper, asked, "questions asked", ""),
        Row(f"{name}, p99 of the time", 1000 * float(np.quantile(took, 0.99)), 60_000, "deadline", "ms"),
    ]


# ---- hostile --------------------------------------------------------------------------------------------------------


def chunky_png(chunks: int, side: int = 8) -> bytes:
    """A picture of so many chunks without meaning."""
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, "PNG")
    empty = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    return file.getvalue()[:33] + empty * chunks + file.getvalue()[33:]


def request_of(body: object, length: int | None = None, path: str = "/v1/ground") -> bytes:
    """A request as bytes; `length` is what it says of its body."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content) if length is None else length}\r\n\r\n".encode() + content


def uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


class Attack(NamedTuple):
    """What a hostile client sends, its bytes that follow one by one, and the seconds until it hangs up."""

    first: bytes
    drip: bytes = b""
    seconds: float = 60.0


def attacks(run: str) -> dict[str, tuple[int, list[Attack]]]:
    """For each kind the clients that go on with it at once, and what they send in turn."""
    [plain] = questions(1)
    slow_image = {"image": uri(chunky_png(45_000, 5000)), "phrase": "liver"}
    talk = [{"type": "text", "text": "a b " * 900}, {"type": "image_url", "image_url": {"url": plain["image"]}}]
    large = {
        "model": Path(run).name, "messages": [{"role": "user", "content": talk}],
        "clinkd": {"beams": 8, "candidates": 8, "max_new_tokens": 512},
    }  # fmt: skip
    longest = {**large, "messages": [*large["messages"], *[{"role": r, "content": "c d " * 999}
               for _ in range(15) for r in ("assistant", "user")]]}  # fmt: skip
    surrogate = json.dumps({**plain, "phrase": "@"}).replace("@", "\\ud800").encode()
    malformed = [b"\0\xff" * 200, request_of(b"[" * 10**6), request_of(surrogate), request_of(b"{", 10**15),
                 request_of(plain).replace(b"Host: x", b"Origin: http://[\r\nHost: [")]  # fmt: skip
    bombs = [chunky_png(2_000_000), chunky_png(0, 20_000), b"GIF89a" + bytes(7) + b"!\xfe" + b"\1a" * 10**6]
    return {
        "idle": (600, [Attack(b"")]),
        "slow head": (50, [Attack(b"GET / HTTP/1.1\r\nHost: x\r\nX-", b"a" * 100)]),
        "slow body": (50, [Attack(request_of(b"{", 10**6), b" " * 100)]),
        "hang-up": (8, [Attack(request_of(slow_image), seconds=0.5)]),
        "large": (2, [Attack(request_of(large, path="/v1/chat/completions"), seconds=90),
                      Attack(request_of(longest, path="/v1/chat/completions"))]),
        "malformed": (4, [Attack(sent, seconds=3) for sent in malformed]),
        "bomb": (2, [Attack(request_of({"image": uri(bomb), "phrase": "a"})) for bomb in bombs]),
    }  # fmt: skip


async def attack(url: str, kind: str, turn: Iterator[Attack], outcomes: Counter[str]) -> None:
    """One hostile client, which comes again as soon as it is refused or disconnected."""
    host, _, port = url.rpartition("/")[2].partition(":")
    for one in turn:
        first = b""
        try:
            async with asyncio.timeout(one.seconds):
                reader, writer = await asyncio.open_connection(host, int(port), local_addr=(THEIRS, 0))
                try:
                    writer.write(one.first)
                    for byte in one.drip:
                        await asyncio.sleep(1)
                        writer.write(bytes([byte]))
                        await writer.drain()
                    first = await reader.read(12)
                finally:
                    writer.transport.abort()
        except (OSError, TimeoutError):
            pass
        outcomes[f"{kind} {first[9:12].decode('latin-1') or 'no reply'}"] += 1
        await asyncio.sleep(1 if kind == "idle" else 0.2)  # a flood of new connections is for a firewall


async def besieged(
    run: str, url: str, pid: int, rate: float, seconds: float
) -> tuple[dict[str, list[tuple[int | str, float]]], list[float]]:
    """Status and seconds of each honest question, alone and beside attackers, and the memory meanwhile, by second."""
    bodies, number = questions(256), itertools.count()
    results: dict[str, list[tuple[int | str, float]]] = {"alone": [], "attacked": []}
    memory: list[float] = []
    outcomes: Counter[str] = Counter()
    dice = np.random.default_rng(1)
    async with client(url) as asking:
        await ready(asking)

        async def one(part: str) -> None:
            start, status = time.monotonic(), 0
            try:
                status = (await asking.post("/v1/ground", json=bodies[next(number) % len(bodies)])).status_code
                results[part].append((status, time.monotonic() - start))
            except httpx2.HTTPError as error:
                results[part].append((type(error).__name__, time.monotonic() - start))

        async def phase(part: str, length: float) -> None:
            going: set[asyncio.Task[None]] = set()
            start = due = time.monotonic()
            while time.monotonic() < start + length:
                due += float(dice.exponential(1 / rate))
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                going.add(asyncio.create_task(one(part)))
                going = {task for task in going if not task.done()}
            await asyncio.gather(*going)

        async def look() -> None:
            while True:
                memory.append(await asyncio.to_thread(tree_mb, pid))
                await asyncio.sleep(1)

        await phase("alone", seconds / 10)
        hostile = [
            asyncio.create_task(attack(url, kind, itertools.cycle(sent), outcomes))
            for kind, (count, sent) in attacks(run).items()
            for _ in range(count)
        ]
        looking = asyncio.create_task(look())
        await phase("attacked", seconds)
        for task in (*hostile, looking):
            task.cancel()
        await asyncio.gather(*hostile, looking, return_exceptions=True)
    print(f"attackers: {dict(sorted(outcomes.items()))}", file=sys.stderr)
    return results, memory


def hostile(run: str, rate: float, seconds: float) -> list[Row]:
    with served(run) as (url, pid, _):
        results, memory = asyncio.run(besieged(run, url, pid, rate, seconds))
    for part, asked in results.items():
        print(f"{part}: {dict(Counter(status for status, _ in asked))}", file=sys.stderr)
    print(f"MB: {', '.join(f'{m:.0f}' for m in memory[:: max(1, len(memory) // 12)])}", file=sys.stderr)
    minute = max(1, min(60, len(memory) // 4))
    alone, attacked = (
        1000 * float(np.quantile([s for status, s in results[part] if status == 200], 0.99)) for part in results
    )
    others = [(status, s) for status, s in results["attacked"] if status != 200]
    prompt = sum(status == 429 and s < 1 for status, s in others)
    name = f"{seconds:g} s at {rate:.0f} questions/s with attackers"
    return [
        Row(f"{name}, memory in the last minute", median(memory[-minute:]), median(memory[:minute]), "the first", "MB"),
        Row(f"{name}, p99 of the answered", attacked, alone, "without attackers", "ms"),
        Row(f"{name}, answered", len(results["attacked"]) - len(others), len(results["attacked"]), "asked", ""),
        Row(f"{name}, 429 within 1 s", prompt, len(others), "not answered", ""),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak-seconds", type=float, default=180.0)
    parser.add_argument(
        "--rate", type=float, help="questions a second that the soak doubles; those of the load by default"
    )
    parser.add_argument("--hostile-minutes", type=float, default=10.0)
    parser.add_argument("--only", default="start,load,soak", help="a list of start, load, soak and hostile")
    add_outputs(parser)
    args = parser.parse_args()
    wanted = args.only.split(",")
    rows: list[Row] = []
    if "start" in wanted:
        rows += starts(args.run, args.rounds)
    if "load" in wanted:
        rows += loads(args.run, args.clients, args.rounds)
    if {"soak", "hostile"} & {*wanted}:
        known = args.rate or next((r.ours for r in rows if r.unit == "1/s"), None)
        if known is None:
            with served(args.run) as (url, _, _):
                known, _, _ = asyncio.run(closed(url, args.clients, 40))
    if "soak" in wanted:
        rows += soak(args.run, 2 * known, args.soak_seconds)
    if "hostile" in wanted:
        rows += hostile(args.run, 2 * known, 60 * args.hostile_minutes)
    show(rows, args)


if __name__ == "__main__":
    main()
