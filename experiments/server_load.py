"""A served base under load: many streams with mixed proxies and random disconnects, beside the same server unguided.

    python -m experiments.server_load [--streams 200 --seconds 300] [--model_name_or_path M --proxies safe=DIR terse=DIR]

Every client opens one stream after another, under a mixture of its own, and leaves one in ten of them early. The server runs in a process of its
own, so its memory is its own. Prints p50 and p95 of the first token and of the next ones, tokens per second, and the server's memory through time;
then the same unguided. Every answer that is complete is compared with the same request sent alone afterwards. With --out, a JSON file too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

PROMPTS = [
    "Give me a jar to cure the cough of my aunt.",
    "i want a balm for my knee",
    "Sell me a curse for my neighbour, quickly!",
    "What helps against a headache?",
]


@dataclass
class Seen:
    """What the clients saw: seconds, and the complete answers by their request."""

    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)
    tokens: int = 0
    finished: int = 0
    left: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)


def toy_proxies(model: str, folder: Path) -> list[str]:
    """Two proxies with random weights, which reject a good deal."""
    from frugalign.engines.fingerprints import fingerprint
    from frugalign.engines.loading import load_model
    from frugalign.proxy.network import new_proxy

    base, found = load_model(model), []
    for seed, name in enumerate(("safe", "terse")):
        proxy = new_proxy(base.model, {}, seed=seed)
        with torch.no_grad():
            for number, parameter in enumerate(proxy.parameters()):
                generator = torch.Generator().manual_seed(100 * seed + number)
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        proxy.config.base = fingerprint(base.model, base.tokenizer, name=model).to_dict()
        proxy.save_pretrained(folder / name)
        found.append(f"{name}={folder / name}")
    return found


def request(number: int, names: list[str], length: int, guided: bool, is_chat: bool) -> dict[str, Any]:
    """The request of a number, always the same."""
    drawn = random.Random(number)
    mixture = drawn.sample(names, drawn.randint(1, len(names))) if guided and names else []
    named = "+".join(f"{name}:{drawn.choice([0.3, 0.7, 1.0, 1.5])}" for name in mixture)
    prompt = drawn.choice(PROMPTS)
    body: dict[str, Any] = {
        "model": f"base@{named}" if named else "base",
        **({"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}),
        "max_tokens": drawn.randint(length // 4, length),
        "seed": number,
        "stream": True,
    }
    return body | ({"max_kl": 2.0} if drawn.random() < 0.2 else {})


async def exchange(port: int, body: dict[str, Any], seen: Seen, leave_after: int | None) -> str | None:
    """One stream, token by token. The text if it was read to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + content)
    started = last = time.monotonic()
    text, n = "", 0
    try:
        status = (await reader.readline()).split()[1].decode()
        if status != "200":
            seen.refused += status == "429"
            if status != "429":
                seen.errors.append(f"status {status}")
            return None
        while line := await reader.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                seen.errors.append(event["error"]["message"])
                return None
            for choice in event["choices"]:
                if "kl" not in choice:
                    continue
                now, n = time.monotonic(), n + 1
                (seen.first if n == 1 else seen.following).append(now - (started if n == 1 else last))
                last, text = now, text + (choice["delta"].get("content") or "" if "delta" in choice else choice["text"])
                seen.tokens += 1
                if choice["finish_reason"] is not None:
                    seen.finished += 1
                    return text
                if leave_after is not None and n >= leave_after:
                    seen.left += 1
                    return None
        seen.errors.append("the stream ended early")
        return None
    finally:
        writer.close()


async def client(place: int, port: int, until: float, ask: Any, seen: Seen) -> None:
    """One stream after another, each under its own mixture."""
    number = 1_000_000 * place
    while time.monotonic() < until:
        number += 1
        body, drawn = ask(number), random.Random(-number)
        text = await exchange(port, body, seen, drawn.randint(1, 8) if drawn.random() < 0.1 else None)
        if text is not None:
            seen.answers[json.dumps(body)] = text


async def load(port: int, streams: int, seconds: float, ask: Any, process: psutil.Process) -> tuple[Seen, list[float]]:
    """Run all clients, and note the server's memory in MiB ten times."""
    seen, until, memory = Seen(), time.monotonic() + seconds, []

    async def watch() -> None:
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            memory.append(process.memory_info().rss / 2**20)

    await asyncio.gather(watch(), *(client(place, port, until, ask, seen) for place in range(streams)))
    return seen, memory


async def mixed_up(port: int, seen: Seen, most: int) -> int:
    """How many of the answers under load differ from the same request sent alone."""
    wrong = 0
    for body, text in random.Random(0).sample(sorted(seen.answers.items()), min(most, len(seen.answers))):
        wrong += await exchange(port, json.loads(body), Seen(), None) != text
    return wrong


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return 1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def row(seen: Seen, memory: list[float], seconds: float) -> dict[str, Any]:
    """The numbers of one run."""
    return {
        "first_token_ms": [round(quantile(seen.first, share), 1) for share in (0.5, 0.95)],
        "next_token_ms": [round(quantile(seen.following, share), 1) for share in (0.5, 0.95)],
        "tokens_per_second": round(seen.tokens / seconds, 1),
        "finished": seen.finished,
        "left": seen.left,
        "refused": seen.refused,
        "errors": len(seen.errors),
        "memory_mib": [round(value) for value in memory],
    }


def main() -> int:
    """Start the server, load it guided and unguided, and print both."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.server_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model_name_or_path", default="frugalign.sandbox:model")
    parser.add_argument("--proxies", nargs="*")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--max_batch_size", type=int, default=256)
    parser.add_argument("--length", type=int, default=64, help="Longest answer, in tokens.")
    parser.add_argument("--checked", type=int, default=200, help="Answers that are asked for again, alone.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        proxies = args.proxies if args.proxies is not None else toy_proxies(args.model_name_or_path, Path(folder))
        command = [sys.executable, "-m", "frugalign.cli", "serve", "--model_name_or_path", args.model_name_or_path]
        command += ["--proxies", *proxies, "--served_model_name", "base", "--port", "0"]
        command += ["--max_batch_size", str(args.max_batch_size), "--max_queue", str(2 * args.streams)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            found = re.search(r"on http://127\.0\.0\.1:(\d+)", server.stdout.readline())
            assert found is not None, "the server did not start"
            results = measured(int(found[1]), [each.partition("=")[0] for each in proxies], server.pid, args)
        finally:
            server.terminate()
            status = server.wait(60)
    print(f"the server stopped with status {status}")
    if args.out is not None:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def measured(port: int, names: list[str], pid: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both loads, and the ratio of their throughputs."""
    process, results = psutil.Process(pid), {}
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models") as response:
        is_chat = json.load(response)["data"][0]["chat_template"]
    for guided in (True, False):

        def ask(number: int, guided: bool = guided) -> dict[str, Any]:
            return request(number, names, args.length, guided, is_chat)

        asyncio.run(load(port, min(4, args.streams), 2.0, ask, process))  # warm
        seen, memory = asyncio.run(load(port, args.streams, args.seconds, ask, process))
        own = row(seen, memory, args.seconds)
        own["mixed_up"] = asyncio.run(mixed_up(port, seen, args.checked))
        results["guided" if guided else "unguided"] = own
        print("guided  " if guided else "unguided", json.dumps(own), *sorted(set(seen.errors))[:3], flush=True)
    ratio = results["guided"]["tokens_per_second"] / max(results["unguided"]["tokens_per_second"], 1e-9)
    results["throughput_ratio"] = round(ratio, 3)
    print(f"throughput, guided over unguided: {ratio:.2f}")
    return results


if __name__ == "__main__":
    sys.exit(main())
