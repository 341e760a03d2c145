"""Connections with byte streams that both sides check.

    flows.py serve NAME ADDRESS PORT      a member: echoes records, and sends its own; says `open` when it listens
    flows.py hold COUNT TARGET...         a client: COUNT connections over the targets (`ADDRESS PORT` each);
                                          says `open` when all are answered, and what it saw when stdin ends

A record is a letter, a number of four bytes, when it was sent, and how long its sender was held up lately: `E` the
client's, echoed; `S` the member's own. Each counts from 0 without a gap, so a byte that is lost, doubled or of
another connection shows. Both ends have one clock, so how late each one comes shows as well, however seldom records
are sent: every FLOWS_EVERY seconds.

What a client saw is a line of JSON: connections `open` and `broken`; of the connection on which it was longest the
time without any record (`longest_ms`) and the way of a record (`late_ms`: there and back for `E`, one way for `S`);
`slow` connections had a record that took more than 50 ms. `lag_ms` is the longest that client and members were held up
by a busy machine: what is late by no more than that was not late on its way.
"""

import asyncio
import json
import os
import random
import socket
import struct
import sys
import time

EVERY = float(os.environ.get("FLOWS_EVERY", "0.05"))
RECORD = struct.Struct("!cIdd")
# A record of which this much is exceeded was held up on its way.
SLOW = 0.05


class Lag:
    """How much later than it should this process goes on."""

    def __init__(self):
        self.longest, self.before, self.turned = 0.0, 0.0, time.monotonic()

    async def watch(self):
        while True:
            due = time.monotonic() + 0.01
            await asyncio.sleep(0.01)
            now = time.monotonic()
            if now - self.turned > 2:
                self.longest, self.before, self.turned = 0.0, self.longest, now
            self.longest = max(self.longest, now - due)

    def lately(self):
        """The longest of the last seconds, two at least."""
        return max(self.longest, self.before)


async def serve(name, address, port):
    lag = Lag()

    async def one(reader, writer):
        async def own():
            number = 0
            # Not all at once.
            await asyncio.sleep(random.random() * EVERY)
            while True:
                writer.write(RECORD.pack(b"S", number, time.monotonic(), lag.lately()))
                await writer.drain()
                number += 1
                await asyncio.sleep(EVERY)

        writer.write(name.encode().ljust(8))
        sender = asyncio.create_task(own())
        try:
            while True:
                writer.write(await reader.readexactly(RECORD.size))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            sender.cancel()
            writer.close()

    watch = asyncio.create_task(lag.watch())
    server = await asyncio.start_server(one, address or None, port, family=socket.AF_UNSPEC)
    print("open", flush=True)
    async with server:
        await server.serve_forever()
    watch.cancel()


class Flow:
    def __init__(self, target):
        self.target, self.member, self.broken = target, None, None
        self.echoed, self.heard = 0, 0
        self.longest, self.late, self.lag = 0.0, 0.0, 0.0

    async def open(self):
        host, port = self.target
        until = time.monotonic() + 20
        while True:
            # Where a machine is so busy that a VIP is on its way just now.
            try:
                self.reader, self.writer = await asyncio.wait_for(asyncio.open_connection(host, port), 10)
                self.member = (await self.reader.readexactly(8)).decode().strip()
                return
            except (OSError, TimeoutError, asyncio.IncompleteReadError):
                if time.monotonic() > until:
                    raise
                await asyncio.sleep(0.1)

    async def hold(self, stop):
        sender = asyncio.create_task(self.send(stop))
        last = time.monotonic()
        try:
            while not stop.is_set():
                kind, number, sent, lag = RECORD.unpack(await self.reader.readexactly(RECORD.size))
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
                self.late = max(self.late, now - sent)
                self.lag = max(self.lag, lag)
                last = now
                expected = self.echoed if kind == b"E" else self.heard
                if kind not in b"ES" or number != expected:
                    self.broken = f"{kind} {number} for {expected}"
                    return
                if kind == b"E":
                    self.echoed += 1
                else:
                    self.heard += 1
        except (asyncio.IncompleteReadError, OSError) as error:
            self.broken = repr(error)
        finally:
            sender.cancel()

    async def send(self, stop):
        number = 0
        await asyncio.sleep(random.random() * EVERY)
        while not stop.is_set():
            self.writer.write(RECORD.pack(b"E", number, time.monotonic(), 0.0))
            number += 1
            await asyncio.sleep(EVERY)


async def hold(count, targets):
    flows = [Flow(targets[n % len(targets)]) for n in range(count)]
    for at in range(0, count, 100):
        await asyncio.gather(*(flow.open() for flow in flows[at:at + 100]))
    stop = asyncio.Event()
    tasks = [asyncio.create_task(flow.hold(stop)) for flow in flows]
    while not all(flow.echoed or flow.broken for flow in flows):
        await asyncio.sleep(0.02)
    # Opening them all is not what is looked at.
    for flow in flows:
        flow.longest, flow.late, flow.lag = 0.0, 0.0, 0.0
    lag, held_up = Lag(), 0.0
    tasks.append(asyncio.create_task(lag.watch()))
    print("open", flush=True)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    while not ended.done():
        await asyncio.wait([ended], timeout=1)
        held_up = max(held_up, lag.lately())
    # Whoever still waits after a fault shows it now.
    before = [flow.echoed for flow in flows]
    for _ in range(200):
        if all(flow.broken or flow.echoed > at for flow, at in zip(flows, before)):
            break
        await asyncio.sleep(0.05)
    for flow, at in zip(flows, before):
        if not flow.broken and flow.echoed == at:
            flow.broken = "silent"
    stop.set()
    members = {}
    for flow in flows:
        of = members.setdefault(flow.member, {"open": 0, "broken": 0})
        of["broken" if flow.broken else "open"] += 1
    print(json.dumps({
        "open": sum(not flow.broken for flow in flows),
        "broken": sum(bool(flow.broken) for flow in flows),
        "why": sorted({flow.broken for flow in flows if flow.broken})[:5],
        "records": sum(flow.echoed + flow.heard for flow in flows),
        "longest_ms": round(1000 * max(flow.longest for flow in flows)),
        "late_ms": round(1000 * max(flow.late for flow in flows)),
        "slow": sum(flow.late > SLOW for flow in flows),
        "lag_ms": round(1000 * max(held_up, lag.lately(), *(flow.lag for flow in flows))),
        "members": members,
    }), flush=True)
    for task in tasks:
        task.cancel()


def main():
    what, *args = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(args[0], args[1], int(args[2])))
    else:
        targets = list(zip(args[1::2], map(int, args[2::2])))
        asyncio.run(hold(int(args[0]), targets))


if __name__ == "__main__":
    main()
