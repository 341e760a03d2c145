"""A gRPC server, or a client of it, of a test's own: messages are plain bytes, so nothing is generated.

    grpc_peer.py serve             prints its port and serves until it is ended; knows grpc.health.v1
    grpc_peer.py calls TARGET [CA [HOST]] makes calls of all four kinds and prints what came of each
"""

import sys
import time
from concurrent import futures

import grpc

SERVICE = "test.Echo"
KINDS = {
    "Unary": (grpc.unary_unary_rpc_method_handler, lambda m, c: m.upper()),
    "Slow": (grpc.unary_unary_rpc_method_handler, lambda m, c: (time.sleep(30), m)[1]),
    "Fails": (grpc.unary_unary_rpc_method_handler, lambda m, c: c.abort(grpc.StatusCode.NOT_FOUND, "no such thing")),
    "Split": (grpc.unary_stream_rpc_method_handler, lambda m, c: (bytes([b]) for b in m)),
    "Join": (grpc.stream_unary_rpc_method_handler, lambda ms, c: b"".join(ms)),
    "Chat": (grpc.stream_stream_rpc_method_handler, lambda ms, c: (m.upper() for m in ms)),
}


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    handlers = {name: kind(answer) for name, (kind, answer) in KINDS.items()}
    health = grpc.unary_unary_rpc_method_handler(lambda m, c: b"\x08\x01" if m in (b"", b"\x0a\x04echo") else b"\x08\x03")
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, handlers),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": health}),
        )
    )
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def calls(target, ca, host):
    if ca:
        credentials = grpc.ssl_channel_credentials(open(ca, "rb").read())
        options = [("grpc.ssl_target_name_override", host), ("grpc.default_authority", host)]
        channel = grpc.secure_channel(target, credentials, options)
    else:
        channel = grpc.insecure_channel(target)

    def say(name, call):
        try:
            print(name, call(), flush=True)
        except grpc.RpcError as error:
            print(name, error.code().name, error.details(), flush=True)

    method = lambda name: f"/{SERVICE}/{name}"
    say("unary", lambda: channel.unary_unary(method("Unary"))(b"abc", timeout=20))
    say("split", lambda: b"|".join(channel.unary_stream(method("Split"))(b"abc", timeout=20)))
    say("join", lambda: channel.stream_unary(method("Join"))(iter([b"a", b"b", b"c"]), timeout=20))

    def chat():
        # Each message is sent only after the answer to the one before it.
        answers = []
        turn = [b"one"]

        def messages():
            while turn[0] is not None:
                message, turn[0] = turn[0], b""
                yield message
                while turn[0] == b"":
                    time.sleep(0.001)

        for answer in channel.stream_stream(method("Chat"))(messages(), timeout=20):
            answers.append(answer)
            turn[0] = b"two" if len(answers) == 1 else None
        return b"|".join(answers)

    say("chat", chat)
    say("fails", lambda: channel.unary_unary(method("Fails"))(b"", timeout=20))
    say("unknown", lambda: channel.unary_unary("/test.Echo/Nothing")(b"", timeout=20))
    say("deadline", lambda: channel.unary_unary(method("Slow"))(b"", timeout=0.5))

    def cancelled():
        call = channel.unary_unary(method("Slow")).future(b"", timeout=20)
        time.sleep(0.2)
        call.cancel()
        return call.cancelled()

    say("cancelled", cancelled)
    large = b"x" * 3_000_000
    say("large", lambda: len(channel.unary_unary(method("Unary"))(large, timeout=20)))


if sys.argv[1] == "serve":
    serve()
else:
    ca, host = (sys.argv[3:] + [None, "grpc.test"][len(sys.argv) - 3 :])[:2]
    calls(sys.argv[2], ca, host)
