"""A client that a test starts in a namespace; ends when its input does, and says what it saw.

probe HOST:PORT     a new connection and request every 5 ms; prints one JSON line: requests, failures,
                    and the longest time between two good answers, milliseconds
keep HOST:PORT      one kept connection with a request every 10 ms; says "open" when it stands, and in
                    the end answers, the longest wait for one, and whether the connection was lost
"""

import json
import socket
import sys
import threading
import time

REQUEST = b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: %s\r\n\r\n"
PROBES = 100_000

stopped = threading.Event()


def wait_for_end():
    sys.stdin.read()
    stopped.set()


def answer(sock):
    """One answer with a Content-Length; what it says of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise OSError("closed")
        data += more
    head, body = data.split(b"\r\n\r\n", 1)
    fields = head.lower().split(b"\r\n")
    length = next(int(f.split(b":")[1]) for f in fields if f.startswith(b"content-length:"))
    while len(body) < length:
        more = sock.recv(65536)
        if not more:
            raise OSError("closed")
        body += more
    if b" 200 " not in fields[0] + b" ":
        raise OSError(fields[0].decode())
    return b"connection: close" in fields


def one(address, results, began):
    try:
        with socket.create_connection(address, timeout=2) as sock:
            sock.settimeout(2)
            sock.sendall(REQUEST % b"close")
            answer(sock)
        results.append((began, time.monotonic(), None))
    except OSError as error:
        results.append((began, time.monotonic(), str(error)))


def probe(address):
    wall = time.time() - time.monotonic()
    results, threads = [], []
    due = time.monotonic()
    print("open", flush=True)
    for _ in range(PROBES):
        if stopped.is_set():
            break
        thread = threading.Thread(target=one, args=(address, results, time.monotonic()))
        thread.start()
        threads.append(thread)
        due += 0.005
        time.sleep(max(0.0, due - time.monotonic()))
    end = time.monotonic()
    for thread in threads:
        thread.join(5)
    # What was answered after the end came late, and says nothing of those that were not asked.
    good = sorted(ended for _, ended, error in results if error is None and ended <= end)
    gaps = [b - a for a, b in zip(good, good[1:])]
    failed = [f"at {time.strftime('%H:%M:%S', time.gmtime(wall + began))}.{int((wall + began) % 1 * 1000):03}: {error}"
              for began, _, error in results if error is not None]
    longest = max(zip(gaps, good), default=(0, 0))
    print(json.dumps({
        "requests": len(results),
        "failed": len(failed),
        "errors": failed[:3],
        "outage_ms": round(1000 * max(gaps, default=1e9)),
        "outage_at": time.strftime("%H:%M:%S", time.gmtime(wall + longest[1])) + f".{int((wall + longest[1]) % 1 * 1000):03}",
    }))


def keep(address):
    answers, longest, lost, told = 0, 0.0, None, False
    with socket.create_connection(address, timeout=5) as sock:
        sock.settimeout(5)
        print("open", flush=True)
        while not stopped.is_set() and answers < PROBES:
            asked = time.monotonic()
            try:
                sock.sendall(REQUEST % b"keep-alive")
                told = answer(sock)
            except OSError as error:
                lost = str(error)
                break
            answers += 1
            longest = max(longest, time.monotonic() - asked)
            if told:
                break
            time.sleep(0.01)
    print(json.dumps({
        "answers": answers,
        "longest_ms": round(1000 * longest),
        "lost": lost,
        "told_to_go": told,
    }))


threading.Thread(target=wait_for_end, daemon=True).start()
host, port = sys.argv[2].rsplit(":", 1)
{"probe": probe, "keep": keep}[sys.argv[1]]((host.strip("[]"), int(port)))
