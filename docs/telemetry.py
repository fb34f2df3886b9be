#!/usr/bin/python3
"""A device that sends one message of telemetry to Azure IoT Hub through a gateway, and says what became of it.

    telemetry.py GATEWAY CONNECTION_STRING [TEXT]

GATEWAY is where linkrouterd listens, HOST or HOST:PORT. CONNECTION_STRING is the device's, as the hub shows it:
`HostName=HUB;DeviceId=ID;SharedAccessKey=KEY`. Needs Debian's package python3-qpid-proton.
"""

import base64
import hashlib
import hmac
import sys
import time
from urllib.parse import quote

from proton import Message, ProtonException
from proton.utils import BlockingConnection

TOKEN_SECONDS = 3600


def sas_token(resource, key):
    """A token for `resource`, signed with the device's key. The key itself stays here."""
    expiry = int(time.time()) + TOKEN_SECONDS
    resource = quote(resource, safe="")
    digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = quote(base64.b64encode(digest), safe="")
    return f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"


def put_token(connection, resource, token):
    """Shows the hub who this device is."""
    answers = connection.create_receiver("$cbs", credit=1)
    requests = connection.create_sender("$cbs")
    properties = {"operation": "put-token", "type": "azure-devices.net:sastoken", "name": resource}
    requests.send(Message(id="token", reply_to="$cbs", properties=properties, body=token))
    answer = answers.receive()
    answers.accept()
    status = answer.properties["status-code"]
    if status != 200:
        raise SystemExit(f"token refused: {int(status)} {answer.properties.get('status-description', '')}")
    print("token accepted")


def main(gateway, connection_string, text='{"temperature": 21.5}'):
    facts = dict(part.split("=", 1) for part in connection_string.split(";"))
    hub, device = facts["HostName"], facts["DeviceId"]
    connection = BlockingConnection(f"amqp://{gateway}", timeout=30)
    put_token(connection, f"{hub}/devices/{device}", sas_token(f"{hub}/devices/{device}", facts["SharedAccessKey"]))
    telemetry = connection.create_sender(f"/devices/{device}/messages/events")
    # `inferred`: bytes go as a data section, the only kind of body that the hub takes.
    body = text.encode()
    telemetry.send(Message(inferred=True, body=body, content_type="application/json", content_encoding="utf-8"))
    print(f"telemetry of {device} accepted by {hub}")
    connection.close()


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        raise SystemExit(__doc__.strip())
    try:
        main(*sys.argv[1:])
    except ProtonException as error:
        raise SystemExit(f"failed: {error}")
