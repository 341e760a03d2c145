"""Connections with byte streams that both sides check.

    flows.py serve NAME ADDRESS PORT      a member: echoes records, and sends its own; says `open` when it listens
    flows.py hold COUNT TARGET...         a client: COUNT connections over the targets (`ADDRESS PORT` each);
                                          says `open` when all are answered, and what it saw when stdin ends

A record is a letter and a number of four bytes: `E` the client's, echoed; `S` the member's own. Each counts
from 0 without a gap, so a byte that is lost, doubled or of another connection shows.
"""

import asyncio
import json
import socket
import struct
import sys
import time

EVERY = 0.05


async def serve(name, address, port):
    async def one(reader, writer):
        async def own():
            number = 0
            while True:
                writer.write(b"S" + struct.pack("!I", number))
                await writer.drain()
                number += 1
                await asyncio.sleep(EVERY)

        writer.write(name.encode().ljust(8))
        sender = asyncio.create_task(own())
        try:
            while True:
                writer.write(b"E" + await reader.readexactly(4))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            sender.cancel()
            writer.close()

    server = await asyncio.start_server(one, address or None, port, family=socket.AF_UNSPEC)
    print("open", flush=True)
    async with server:
        await server.serve_forever()


class Flow:
    def __init__(self, target):
        self.target, self.member, self.broken = target, None, None
        self.echoed, self.heard, self.longest = 0, 0, 0.0

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
                kind, number = struct.unpack("!cI", await self.reader.readexactly(5))
                now = time.monotonic()
                self.longest = max(self.longest, now - last)
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
        while not stop.is_set():
            self.writer.write(struct.pack("!I", number))
            number += 1
            await asyncio.sleep(EVERY)


async def hold(count, targets):
    flows = [Flow(targets[n % len(targets)]) for n in range(count)]
    await asyncio.gather(*(flow.open() for flow in flows))
    stop = asyncio.Event()
    tasks = [asyncio.create_task(flow.hold(stop)) for flow in flows]
    while not all(flow.echoed or flow.broken for flow in flows):
        await asyncio.sleep(0.02)
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
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
