"""A worker in name only: as long to start and as long per recording as told. Run as a pod of the test bed, by path.

It reads the environment of `vaultml worker`, answers its probes, and leaves as it does: on SIGTERM it takes nothing
more, finishes, commits and goes. Each recording is a line of JSON on standard output: partition, offset, and when it
came and was done, in epoch seconds.
"""

import os
import signal
import time
from threading import Event, Thread


def main() -> None:
    """Work until SIGTERM."""
    began = time.monotonic()
    # Part of the start-up, as a worker's imports are: sixteen at once would take seconds longer on two cores.
    import json
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from confluent_kafka import Consumer, KafkaException, Message

    ready, stopping = Event(), Event()

    class Probe(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" or ready.is_set() else 503)
            self.end_headers()

        def log_message(self, format: str, *_args: object) -> None:  # noqa: A002 - the base class's name
            pass

    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    server = HTTPServer((os.environ["HTTP_HOST"], int(os.environ["HTTP_PORT"])), Probe)
    Thread(target=server.serve_forever, daemon=True).start()
    # What the real one gives, too.
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["KAFKA_BROKER"],
            "client.id": os.environ["HOSTNAME"],
            "group.id": os.environ["KAFKA_GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 15_000,
            "log_level": 2,
        }
    )
    stopping.wait(float(os.environ["START_S"]) - (time.monotonic() - began))
    consumer.subscribe([os.environ["QUEUE_NAME"]])
    ready.set()
    came: list[Message] = []
    while not stopping.is_set():
        message = came.pop(0) if came else consumer.poll(0.2)
        if message is None or message.error() is not None:
            continue
        time.sleep(float(os.environ["RECORDING_S"]))
        done = time.time()
        for _ in range(20):
            try:
                consumer.commit(message=message, asynchronous=False)
                break
            except KafkaException:  # while the group rebalances, which takes a poll to end
                if (another := consumer.poll(0.1)) is not None:
                    came.append(another)
        print(json.dumps([message.partition(), message.offset(), message.timestamp()[1] / 1000, done]), flush=True)
    consumer.close()


if __name__ == "__main__":
    main()
