"""Asks an https server without a pause, on kept connections and on new ones, until its input ends.

    tls_load.py HOST PORT

Prints, as JSON, how many requests were answered with 200, what went wrong, how many certificates were seen,
and how many kept connections ended.
"""

import hashlib
import http.client
import json
import ssl
import sys
import threading

host, port = sys.argv[1], int(sys.argv[2])
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
stop = threading.Event()
told = {"served": 0, "failures": [], "certificates": 0, "ended": 0}
certificates = set()
lock = threading.Lock()


def ask(kept):
    connection = None
    while not stop.is_set():
        try:
            if connection is None:
                connection = http.client.HTTPSConnection(host, port, context=context, timeout=20)
                connection.connect()
                shown = hashlib.sha256(connection.sock.getpeercert(binary_form=True)).digest()
                with lock:
                    certificates.add(shown)
            connection.request("GET", "/")
            response = connection.getresponse()
            response.read()
            ends = response.will_close or not kept
            with lock:
                if response.status == 200:
                    told["served"] += 1
                else:
                    told["failures"].append(f"status {response.status}")
                told["ended"] += kept and ends
            if ends:
                connection.close()
                connection = None
        except OSError as error:
            with lock:
                told["failures"].append(f"kept: {kept}, {error!r}")
            connection = None
        except http.client.HTTPException as error:
            with lock:
                told["failures"].append(f"kept: {kept}, {error!r}")
            connection = None


threads = [threading.Thread(target=ask, args=(kept,)) for kept in (True, False)]
for thread in threads:
    thread.start()
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
told["certificates"] = len(certificates)
print(json.dumps(told))
