"""A client that a test starts in a namespace: holds as many connections as it gets, N in all, in turn to each
target, and tries the others again. Until it is told to turn to all, it asks the first target alone.

holder.py N HOST:PORT,HOST:PORT...     "all" at its input turns it to all targets; each other line prints one of
                                       JSON: what is held of each target, and the most that was held of all of
                                       them at once
"""

import errno
import json
import os
import selectors
import socket
import sys
import time

AGAIN = 0.06
REQUEST = b"GET / HTTP/1.1\r\nHost: held\r\n\r\n"

targets = [(host, int(port)) for host, port in (t.rsplit(":", 1) for t in sys.argv[2].split(","))]
selector = selectors.DefaultSelector()
# Slots that try again, with the time at which they do.
waiting = [(0.0, n % len(targets)) for n in range(int(sys.argv[1]))]
asked = 1
held = [0] * len(targets)
peak = 0


def begin(target):
    sock = socket.socket()
    sock.setblocking(False)
    code = sock.connect_ex(targets[target])
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        waiting.append((time.monotonic() + AGAIN, target))
        return
    selector.register(sock, selectors.EVENT_WRITE, [target, "asks"])


def end(sock, slot):
    if slot[1] == "held":
        held[slot[0]] -= 1
    selector.unregister(sock)
    sock.close()
    waiting.append((time.monotonic() + AGAIN, slot[0]))


selector.register(sys.stdin, selectors.EVENT_READ, None)
while True:
    now = time.monotonic()
    due = [target for at, target in waiting if at <= now and target < asked]
    waiting = [(at, target) for at, target in waiting if at > now or target >= asked]
    for target in due:
        begin(target)
    for key, _ in selector.select(0.01):
        slot = key.data
        if slot is None:
            # Whole lines: a test writes each at once.
            lines = os.read(sys.stdin.fileno(), 65536).decode()
            if not lines:
                sys.exit(0)
            for line in lines.splitlines():
                if line == "all":
                    asked = len(targets)
                else:
                    print(json.dumps({"held": held, "peak": peak}), flush=True)
            continue
        sock = key.fileobj
        try:
            if slot[1] == "asks":
                sock.send(REQUEST)
                slot[1] = "waits"
                selector.modify(sock, selectors.EVENT_READ, slot)
                continue
            if not sock.recv(65536):
                end(sock, slot)
                continue
        except BlockingIOError:
            continue
        except OSError:
            end(sock, slot)
            continue
        if slot[1] == "waits":
            # Answered: it was let in, and stays open.
            slot[1] = "held"
            held[slot[0]] += 1
    # Ends that came in the same moment are no surplus.
    peak = max(peak, sum(held))
