"""A Proton client that uses filters, properties, a dynamic node, a refused link, transactions and an error close."""
import sys
import uuid

from proton import Array, Condition, Data, Message, UNDESCRIBED, int32, symbol, timestamp, ubyte, ulong
from proton.handlers import MessagingHandler, TransactionHandler
from proton.reactor import AtLeastOnce, AtMostOnce, Container, DynamicNodeProperties, LinkOption, Selector


class Plain(LinkOption):
    """Link properties of every kind."""

    def apply(self, link):
        link.properties = {
            symbol("com.microsoft:client-version"): "py/1",
            symbol("com.microsoft:timeout"): ulong(60000),
            symbol("odd name"): ubyte(7),
            symbol("numbers"): Array(UNDESCRIBED, Data.INT, int32(1), int32(-2)),
            symbol("when"): timestamp(1479772800000),
            symbol("who"): uuid.UUID("01234567-89ab-cdef-0123-456789abcdef"),
            symbol("list"): [None, True, 1.5, -1, b"\x00bin", {"k": "v"}],
        }
        link.max_message_size = 65536
        link.desired_capabilities = [symbol("queue"), symbol("com.example:two words")]


class Client(MessagingHandler, TransactionHandler):
    def __init__(self, port):
        super().__init__(prefetch=0)
        self.url = f"amqp://127.0.0.1:{port}"
        self.sent = self.settled = self.received = 0
        self.transaction = None

    def on_start(self, event):
        container = event.container
        container.container_id = "proton-client"
        self.connection = container.connect(
            self.url,
            reconnect=False,
            heartbeat=60,
            properties={"product": "golden"},
            desired_capabilities=[symbol("ANONYMOUS-RELAY")],
            sasl_enabled=True,
            allowed_mechs="ANONYMOUS",
            max_frame_size=512,
        )
        self.sender = container.create_sender(
            self.connection, "devices/dev1/messages/events", name="events", options=[Plain(), AtLeastOnce()]
        )
        container.create_sender(self.connection, "settled", name="pre-settled", options=AtMostOnce())

    def on_sendable(self, event):
        if event.link.name == "events" and self.sent < 4:
            for number in range(4):
                body = "y" * 1200 if number == 0 else f"message {number}"
                event.link.send(Message(id=f"m{number}", body=body))
                self.sent += 1
        elif event.link.name == "pre-settled" and not event.link.drained():
            event.link.send(Message(body="fire and forget"))
            event.link.close()

    def on_settled(self, event):
        if event.link.name == "events":
            self.settled += 1
            if self.settled == 4:
                options = [
                    Selector("colour = 'green'"),
                    DynamicNodeProperties({symbol("lifetime-policy"): "delete-on-close"}),
                ]
                self.receiver = event.container.create_receiver(
                    self.connection, None, name="", dynamic=True, options=options
                )
                self.receiver.flow(2)

    def on_message(self, event):
        self.received += 1
        if self.received == 2:
            self.receiver.drain(5)
            event.container.create_sender(self.connection, "refuse", name="refused")

    def on_link_error(self, event):
        event.container.declare_transaction(self.connection, handler=self, settle_before_discharge=True)

    def on_transaction_declared(self, event):
        self.transaction = event.transaction
        self.transaction.send(self.sender, Message(body="in a transaction"))
        self.transaction.commit()

    def on_transaction_committed(self, event):
        self.finish()

    def on_transaction_commit_failed(self, event):
        self.finish()

    def on_transport_closed(self, event):
        event.container.stop()

    def finish(self):
        self.connection.condition = Condition("amqp:connection:forced", "done")
        self.connection.close()


Container(Client(int(sys.argv[1]))).run()
