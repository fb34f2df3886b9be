'use strict';
// Devices on Microsoft's device SDK for Node, worked from outside: commands on stdin, events on stdout, one JSON object
// a line, as the other peers. The SDK is used as its documentation says, and knows nothing of a gateway but
// `GatewayHostName` in the connection string.

const fs = require('fs');
const readline = require('readline');
const { Client, Message, SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
const { Amqp } = require('azure-iot-device-amqp');
const { NoRetry } = require('azure-iot-common');

const clients = new Map();
const twins = new Map();
// Commands of the cloud that wait for their outcome, by device and body.
const pending = new Map();

function say(fields) {
    process.stdout.write(JSON.stringify(fields) + '\n');
}

function withoutMetadata(properties) {
    const { $version, ...rest } = properties;
    return rest;
}

const commands = {
    async connect({ conn, connection_string, ca, retry, token_seconds, renewal_margin_seconds }) {
        const keys = SharedAccessKeyAuthenticationProvider;
        const provider = keys.fromConnectionString(connection_string, token_seconds, renewal_margin_seconds);
        const client = Client.fromAuthenticationProvider(provider, Amqp);
        clients.set(conn, client);
        // What goes wrong shall be seen, unless it is to be mended.
        if (!retry) client.setRetryPolicy(new NoRetry());
        await client.setOptions({ ca: fs.readFileSync(ca, 'utf8') });
        client.on('error', (error) => say({ event: 'client_error', conn, error: error.name }));
        client.on('disconnect', (error) => say({ event: 'disconnected', conn, error: error ? error.name : null }));
        try {
            await client.open();
        } catch (error) {
            // The provider would renew the token of nobody.
            await commands.close({ conn });
            throw error;
        }
    },

    /** Answered when the hub has accepted all of them. */
    async telemetry({ conn, bodies, number }) {
        await Promise.all(
            bodies.map((body) => {
                const message = new Message(body);
                message.properties.add('number', number);
                return clients.get(conn).sendEvent(message);
            })
        );
    },

    async commands({ conn }) {
        clients.get(conn).on('message', (message) => {
            const body = message.data.toString();
            pending.set(`${conn} ${body}`, message);
            say({ event: 'command', conn, body, message_id: message.messageId });
        });
    },

    async settle({ conn, body, outcome }) {
        const key = `${conn} ${body}`;
        const message = pending.get(key);
        pending.delete(key);
        await clients.get(conn)[outcome](message);
    },

    async twin({ conn }) {
        const twin = await clients.get(conn).getTwin();
        twins.set(conn, twin);
        const { desired, reported } = twin.properties;
        return { desired: withoutMetadata(desired), reported: withoutMetadata(reported) };
    },

    async watch({ conn }) {
        const twin = twins.get(conn);
        // The SDK gives what it has at once, asks the hub for what is to come, and does not say when that is done.
        twin.on('properties.desired', (patch) => say({ event: 'desired', conn, patch: withoutMetadata(patch) }));
    },

    async report({ conn, patch }) {
        const { reported } = twins.get(conn).properties;
        await new Promise((done, failed) => reported.update(patch, (error) => (error ? failed(error) : done())));
    },

    async method({ conn, name, status }) {
        clients.get(conn).onDeviceMethod(name, (request, response) => {
            say({ event: 'method', conn, name, payload: request.payload });
            const answered = (error) => error && say({ event: 'fault', conn, error: String(error) });
            response.send(status, { echo: request.payload, device: conn }, answered);
        });
    },

    async close({ conn }) {
        const client = clients.get(conn);
        clients.delete(conn);
        await client.close();
    },
};

readline.createInterface({ input: process.stdin }).on('line', async (line) => {
    const { id, do: name, ...rest } = JSON.parse(line);
    try {
        say({ id, ...(await commands[name](rest)) });
    } catch (error) {
        say({ id, failed: error.name, text: error.message });
    }
}).on('close', () => process.exit(0));
