"""A Proton peer that accepts what the recorded clients ask for, and settles with every outcome in turn."""
import sys

from proton import UNDESCRIBED, Array, Condition, Data, Delivery, Message, Terminus, symbol
from proton.handlers import MessagingHandler
from proton.reactor import Container

DECLARED = 0x33


class Server(MessagingHandler):
    def __init__(self, port):
        super().__init__(auto_accept=False, prefetch=100)
        self.port = port
        self.seen = 0

    def on_start(self, event):
        event.container.listen(f"127.0.0.1:{self.port}")

    def on_connection_opening(self, event):
        event.connection.offered_capabilities = Array(
            UNDESCRIBED, Data.SYMBOL, symbol("ANONYMOUS-RELAY"), symbol("com.example:two words")
        )

    def on_link_opening(self, event):
        link = event.link
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        if link.is_sender and link.remote_source.dynamic:
            link.source.address = "generated-1"

    def on_link_opened(self, event):
        link = event.link
        if link.remote_target.address == "refuse":
            info = {symbol("com.example:id"): 404, symbol("tracking"): "a/b"}
            link.condition = Condition("amqp:not-found", "No such node", info)
            link.close()
        elif link.is_sender:
            for number in range(2):
                link.send(Message(id=number, body="x" * 700, properties={"n": number}))

    def on_connection_remote_close(self, event):
        event.connection.close()

    def on_message(self, event):
        delivery = event.delivery
        if event.link.remote_target.type == Terminus.COORDINATOR:
            if event.message.body.descriptor == symbol("amqp:declare:list"):
                delivery.local.data = [b"txn\x00\x01"]
                delivery.update(DECLARED)
            else:
                delivery.update(Delivery.ACCEPTED)
            delivery.settle()
            return
        verdict = (Delivery.ACCEPTED, Delivery.REJECTED, Delivery.RELEASED, Delivery.MODIFIED)[self.seen % 4]
        self.seen += 1
        if verdict == Delivery.REJECTED:
            delivery.local.condition = Condition("amqp:decode-error", 'a "quoted" body')
        if verdict == Delivery.MODIFIED:
            delivery.local.failed = True
            delivery.local.undeliverable = True
            delivery.local.annotations = {symbol("x-opt-tries"): 2}
        delivery.update(verdict)
        delivery.settle()


Container(Server(int(sys.argv[1]))).run()
