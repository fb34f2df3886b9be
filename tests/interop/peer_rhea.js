'use strict';
// An AMQP peer on rhea, worked from outside: commands on stdin, events on stdout, one JSON object a line. It is both
// the device and the hub, and speaks the language of peer_proton.py; README.md beside this file lists it.

const fs = require('fs');
const readline = require('readline');
const rhea = require('rhea');
const payload = require('./payload.js');

const HUB_MAX_FRAME = 65536;
const SND = { unsettled: 0, settled: 1, mixed: 2 };
const RCV = { first: 0, second: 1 };
const TRANSACTIONAL = 0x34;
const STATES = { 0x33: 'declared', [TRANSACTIONAL]: 'transactional' };
const OUTCOMES = ['accepted', 'rejected', 'released', 'modified'];

const container = rhea.create_container({
    id: 'hub-on-rhea',
    autoaccept: false,
    autosettle: false,
    credit_window: 0,
    treat_modified_as_released: false,
});

const connections = new Map();
const links = new Map();
let accepted = 0;
let arrived = 0;

function say(fields) {
    process.stdout.write(JSON.stringify(fields) + '\n');
}

function nameOf(modes, value) {
    const found = Object.entries(modes).find(([, mode]) => mode === value);
    return found ? found[0] : String(value);
}

/** A rhea value as something JSON can say. */
function plain(value) {
    if (value === undefined || value === null) return null;
    if (Buffer.isBuffer(value)) return value.toString('latin1');
    if (value instanceof Date) return value.getTime();
    if (Array.isArray(value)) return value.map(plain);
    if (typeof value === 'object') {
        if (value.constructor && value.constructor.name === 'Typed') return plain(value.value);
        if (rhea.types.is_ulong && value.descriptor) return plain(value.value);
        return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, plain(v)]));
    }
    return value;
}

function conditionFields(error) {
    return {
        condition: (error && error.condition) || null,
        description: (error && error.description) || null,
        info: plain(error && error.info),
    };
}

function newState(key, link) {
    const state = {
        key,
        link,
        opened: false,
        closed: false,
        // as a receiver
        window: 0,
        plan: null,
        received: 0,
        faults: [],
        presettled: 0,
        peerSettled: 0,
        waitsForDrain: false,
        // as a sender
        queue: [],
        sent: 0,
        outcomes: {},
        finished: 0,
        outcomeBeforeSettlement: 0,
        draining: false,
        timer: null,
    };
    link.interop = state;
    links.set(key, state);
    return state;
}

function stateOf(key) {
    const state = links.get(key);
    if (!state) throw new Error(`no link ${key}`);
    return state;
}

/** A terminus as it was asked for; a filter is `[descriptor, value]`, or a value that is not described. */
function terminusOf(address, { durable, expiry, distribution, capabilities, filters }) {
    const terminus = { address };
    if (durable) terminus.durable = durable;
    if (expiry) terminus.expiry_policy = expiry;
    if (distribution) terminus.distribution_mode = distribution;
    if (capabilities) terminus.capabilities = capabilities;
    if (filters) {
        terminus.filter = {};
        for (const [name, wanted] of Object.entries(filters)) {
            const described = Array.isArray(wanted);
            terminus.filter[name] = described ? rhea.types.wrap_described(wanted[1], wanted[0]) : wanted;
        }
    }
    return terminus;
}

/** A target of a kind that rhea has no name for: the other side's transactions (AMQP 1.0 part 4, §4.5.1). */
function coordinator() {
    return rhea.types.described(rhea.types.wrap_ulong(0x30), rhea.types.wrap_list([]));
}

function within(txn, ...outcome) {
    const fields = [rhea.types.wrap_binary(Buffer.from(txn, 'hex')), ...outcome];
    return rhea.types.described(rhea.types.wrap_ulong(TRANSACTIONAL), rhea.types.wrap_list(fields));
}

// The type that rhea gives to a transfer's state has no encoder there.
rhea.types.wrap_delivery_state = (state) => state;

/** rhea writes no state into a transfer: it is put in where the frame goes out. */
function postWithin(session, delivery, txn) {
    if (!session.interopPosts) {
        session.interopPosts = new Map();
        const output = session.output;
        session.output = (frame, data) => {
            const posted = session.interopPosts.get(frame.delivery_id);
            if (frame.delivery_tag && posted) {
                frame.state = within(posted);
                session.interopPosts.delete(frame.delivery_id);
            }
            output.call(session, frame, data);
        };
    }
    session.interopPosts.set(delivery.id, txn);
}

/**
 * Asks a coordinator for something; the answer comes as an `outcome`. rhea cannot describe a value within a described
 * section, so the message is written by hand: an amqp-value section with a described list8.
 */
function control(state, code, count, fields) {
    const list = [0xc0, fields.length + 1, count, ...fields];
    const message = Buffer.from([0x00, 0x53, 0x77, 0x00, 0x53, code, ...list]);
    const delivery = state.link.send(message, Buffer.from(`control-${state.sent}`), 0);
    delivery.interop = { number: state.sent++, report: true };
}

/** What a broker keeps of a message and selects by; the rule is that of `dress` in peer_proton.py. */
function dress(stream, number) {
    return {
        durable: true,
        message_id: `${stream}-${number}`,
        subject: stream,
        application_properties: { number, parity: number % 2 ? 'odd' : 'even' },
        message_annotations: { 'x-opt-number': number },
    };
}

function faultInDress(message, stream, number) {
    const wanted = dress(stream, number);
    for (const field of ['durable', 'message_id', 'subject']) {
        if (message[field] !== wanted[field]) return `message ${number}: ${field} is ${message[field]}`;
    }
    for (const section of ['application_properties', 'message_annotations']) {
        for (const [key, value] of Object.entries(wanted[section])) {
            const seen = (message[section] || {})[key];
            if (seen !== value) return `message ${number}: ${key} is ${seen}`;
        }
    }
    return undefined;
}

// ----- commands

const commands = {
    listen({ id, port, tls, plain_auth: plainAuth, properties }) {
        const options = { host: '127.0.0.1', port, max_frame_size: HUB_MAX_FRAME, container_id: 'hub-on-rhea' };
        if (properties) options.properties = properties;
        if (tls) {
            options.transport = 'tls';
            options.cert = fs.readFileSync(tls.cert);
            options.key = fs.readFileSync(tls.key);
        }
        if (plainAuth) {
            options.require_sasl = true;
            container.sasl_server_mechanisms.enable_plain(
                (user, password) => user === plainAuth.user && password === plainAuth.password
            );
        } else {
            container.sasl_server_mechanisms.enable_anonymous();
        }
        const server = container.listen(options);
        server.on('error', (error) => say({ id, error: String(error) }));
        server.on('listening', () => say({ id }));
        return undefined;
    },

    connect({ conn, port, container: name, max_frame_size: maxFrameSize, sasl = true, user, password, tls, external, hostname }) {
        const options = { host: '127.0.0.1', port, container_id: name, reconnect: false };
        if (hostname) options.hostname = hostname;
        if (maxFrameSize) options.max_frame_size = maxFrameSize;
        if (sasl) options.username = user || 'anonymous';
        if (password) options.password = password;
        if (tls) {
            options.transport = 'tls';
            options.servername = 'localhost';
            options.cert = fs.readFileSync(tls.cert);
            options.key = fs.readFileSync(tls.key);
            options.ca = [fs.readFileSync(tls.ca)];
        }
        if (external) {
            options.enable_sasl_external = true;
            delete options.username;
        }
        const connection = container.connect(options);
        connection.interop = conn;
        connections.set(conn, connection);
        return {};
    },

    attach({ conn, link, role, address, snd = 'mixed', rcv = 'first', name, properties, terminus = {}, receive }) {
        const options = { name: name || link, snd_settle_mode: SND[snd], rcv_settle_mode: RCV[rcv] };
        if (properties) options.properties = properties;
        const connection = connections.get(conn);
        const endpoint =
            role === 'sender'
                ? connection.open_sender({ ...options, target: terminusOf(address, terminus) })
                : connection.open_receiver({ ...options, source: terminusOf(address, terminus) });
        if (terminus.coordinator) endpoint.local.attach.target = coordinator();
        newState(link, endpoint);
        if (receive) commands.receive({ link, ...receive });
        return {};
    },

    receive({ link, stream, size, count, outcome, settle = true, window = 0, report = false, ...rule }) {
        const state = stateOf(link);
        state.plan = { first: 0, step: 1, dressed: false, ...rule };
        Object.assign(state.plan, { stream, size, count, outcome: outcome || { state: 'accepted' }, settle, report });
        state.window = window;
        state.received = state.presettled = state.peerSettled = 0;
        state.faults = [];
        topUp(state);
        return {};
    },

    flow({ link, credit }) {
        stateOf(link).link.flow(credit);
        return {};
    },

    drain({ link }) {
        const state = stateOf(link);
        state.waitsForDrain = true;
        state.link.drain_credit();
        return {};
    },

    send({ link, stream, count, size, first = 0, settled = false, report = false, ...rule }) {
        const state = stateOf(link);
        state.queue.push({ stream, next: first, end: first + count, size, settled, report, ...rule });
        pump(state);
        return {};
    },

    send_sections({ link }) {
        const state = stateOf(link);
        const delivery = state.link.send(
            {
                durable: true,
                priority: 7,
                ttl: 60000,
                message_id: 'm-1',
                subject: 'a subject',
                correlation_id: 'c-1',
                reply_to: 'answers/here',
                content_type: 'text/plain',
                application_properties: { text: 'värde', number: 42, flag: true },
                message_annotations: { 'x-opt-note': 'kept' },
                delivery_annotations: { 'x-opt-hop': 'also kept' },
                body: rhea.message.data_section(Buffer.from('everything')),
            },
            Buffer.from('sections')
        );
        delivery.interop = { number: 0, report: true };
        state.sent++;
        return {};
    },

    declare({ link }) {
        control(stateOf(link), 0x31, 1, [0x40]);
        return {};
    },

    discharge({ link, txn, fail }) {
        const name = Buffer.from(txn, 'hex');
        control(stateOf(link), 0x32, 2, [0xa0, name.length, ...name, fail ? 0x41 : 0x42]);
        return {};
    },

    stats({ link }) {
        const state = stateOf(link);
        return {
            credit: state.link.credit,
            received: state.received,
            faults: state.faults,
            presettled: state.presettled,
            peer_settled: state.peerSettled,
            sent: state.sent,
            outcomes: state.outcomes,
            finished: state.finished,
            outcome_before_settlement: state.outcomeBeforeSettlement,
        };
    },

    detach({ link, closed = true }) {
        const endpoint = stateOf(link).link;
        if (closed) endpoint.close();
        else endpoint.detach();
        return {};
    },

    close({ conn }) {
        connections.get(conn).close();
        return {};
    },
};

readline.createInterface({ input: process.stdin }).on('line', (line) => {
    const command = JSON.parse(line);
    try {
        const reply = commands[command.do](command);
        if (reply) say({ id: command.id, ...reply });
    } catch (error) {
        console.error(error);
        say({ id: command.id, error: String(error) });
    }
}).on('close', () => process.exit(0));

// ----- connections

function keyOf(connection) {
    if (!connection.interop) {
        connection.interop = `accepted-${++accepted}`;
        connections.set(connection.interop, connection);
    }
    return connection.interop;
}

container.on('connection_open', ({ connection }) => {
    const sasl = connection.sasl_transport;
    say({
        event: 'connection_opened',
        conn: keyOf(connection),
        container: connection.container_id,
        hostname: connection.hostname || null,
        max_frame_size: connection.max_frame_size || 0,
        user: (sasl && sasl.username) || null,
    });
});
container.on('connection_error', () => {});
container.on('connection_close', ({ connection }) => {
    say({ event: 'connection_closed', conn: keyOf(connection), ...conditionFields(connection.error) });
});
container.on('disconnected', ({ connection, error }) => {
    say({
        event: 'connection_lost',
        conn: keyOf(connection),
        condition: null,
        description: error ? String(error.message || error) : null,
        info: null,
    });
});
for (const name of ['error', 'protocol_error']) {
    container.on(name, (error) => {
        console.error(error);
        say({ event: 'stack_error', error: String(error) });
    });
}
container.on('session_error', () => {});
container.on('session_close', ({ connection, session }) => {
    say({ event: 'session_closed', conn: keyOf(connection), ...conditionFields(session.error) });
});

// ----- links

function linkOpened({ connection, sender, receiver }) {
    const link = sender || receiver;
    let state = link.interop;
    const isArrival = !state;
    if (isArrival) {
        state = newState(`arrived-${++arrived}`, link);
        link.local.attach.source = link.remote.attach.source.described();
        link.local.attach.target = link.remote.attach.target.described();
        link.local.attach.snd_settle_mode = link.snd_settle_mode;
        link.local.attach.rcv_settle_mode = link.rcv_settle_mode;
        link.local.attach.properties = { 'hub-stack': 'rhea' };
    }
    state.opened = true;
    // Each peer reads its own terminus of the other's attach, the one that an address was asked for with.
    const terminus = receiver ? (isArrival ? link.target : link.source) : isArrival ? link.source : link.target;
    say({
        event: 'link_opened',
        link: state.key,
        conn: keyOf(connection),
        name: link.name,
        role: receiver ? 'receiver' : 'sender',
        address: (terminus && terminus.address) || null,
        snd: nameOf(SND, link.snd_settle_mode),
        rcv: nameOf(RCV, link.rcv_settle_mode),
        properties: plain(link.properties),
        filter: plain((link.source && link.source.filter) || null),
    });
    pump(state);
}

function linkClosed({ sender, receiver }) {
    const link = sender || receiver;
    link.interop.closed = true;
    const detach = link.remote.detach;
    say({
        event: 'link_closed',
        link: link.interop.key,
        closed: Boolean(detach && detach.closed),
        ...conditionFields(link.error),
    });
    // Answered in kind; rhea by itself closes.
    if (detach && !detach.closed && !link.is_closed()) link.detach();
}

container.on('sender_open', linkOpened);
container.on('receiver_open', linkOpened);
container.on('sender_error', () => {});
container.on('receiver_error', () => {});
container.on('sender_close', linkClosed);
container.on('receiver_close', linkClosed);

container.on('receiver_drained', ({ receiver }) => {
    const state = receiver.interop;
    receiver.drain = false;
    if (state.waitsForDrain) {
        state.waitsForDrain = false;
        say({ event: 'drained', link: state.key, credit: receiver.credit, received: state.received });
    }
});
container.on('sender_draining', ({ sender }) => {
    sender.interop.draining = true;
    pump(sender.interop);
});
container.on('sender_flow', ({ sender }) => pump(sender.interop));
container.on('sendable', ({ sender }) => pump(sender.interop));

// ----- sending

/** Deliveries that rhea has been given on this session and has not yet written, so not taken off the credit. */
function unwritten(link) {
    return link.session.outgoing.next_delivery_id - link.session.outgoing.next_pending_delivery;
}

/** Sends what is queued, as far as the credit goes, and then answers a drain. */
function pump(state) {
    const link = state.link;
    if (!state.opened || state.closed || link.is_receiver()) return;
    let budget = link.credit - unwritten(link);
    while (state.queue.length && budget > 0 && link.session.outgoing.available()) {
        const job = state.queue[0];
        const body = rhea.message.data_section(payload.make(job.stream, job.next, job.size));
        const worn = job.dressed ? dress(job.stream, job.next) : {};
        const delivery = link.send({ ...worn, body }, Buffer.from(`${state.key}-${state.sent}`));
        delivery.interop = { number: job.next, report: job.report };
        if (job.txn) postWithin(link.session, delivery, job.txn);
        if (job.settled) delivery.settled = true;
        state.sent++;
        budget--;
        job.next++;
        if (job.next === job.end) {
            state.queue.shift();
            say({ event: 'sent', link: state.key, sent: state.sent });
        }
    }
    if (state.queue.length && link.credit > 0 && !state.timer) {
        // rhea says nothing when it has written what it held; look again after its turn.
        state.timer = setTimeout(() => {
            state.timer = null;
            pump(state);
        }, 1);
    }
    if (!state.queue.length && state.draining) {
        state.draining = false;
        const returned = link.credit - unwritten(link);
        link.set_drained(true);
        link.connection._register();
        if (returned > 0) say({ event: 'draining', link: state.key, returned });
    }
}

function kindOf(remote) {
    if (!remote) return 'none';
    return remote.constructor.composite_type || STATES[remote.descriptor.value] || 'unknown';
}

function finish(state, delivery, kind, settled) {
    const fields = { state: kind, settled };
    const remote = delivery.remote_state;
    if (kind === 'rejected') Object.assign(fields, conditionFields(remote.error));
    if (kind === 'declared' || kind === 'transactional') fields.txn = remote.value[0].value.toString('hex');
    if (kind === 'modified') {
        fields.delivery_failed = Boolean(remote.delivery_failed);
        fields.undeliverable_here = Boolean(remote.undeliverable_here);
        fields.annotations = plain(remote.message_annotations);
    }
    delivery.finished = true;
    state.outcomes[kind] = (state.outcomes[kind] || 0) + 1;
    state.finished++;
    if (delivery.interop.report) {
        say({ event: 'outcome', link: state.key, number: delivery.interop.number, ...fields });
    }
    if (state.finished === state.sent && !state.queue.length) {
        say({
            event: 'finished',
            link: state.key,
            count: state.finished,
            outcomes: state.outcomes,
            outcome_before_settlement: state.outcomeBeforeSettlement,
        });
    }
}

for (const kind of OUTCOMES) {
    container.on(kind, ({ sender, delivery }) => {
        if (delivery.remote_settled || delivery.finished) return;
        // The receiver left settling to us (rcv-settle-mode second).
        sender.interop.outcomeBeforeSettlement++;
        finish(sender.interop, delivery, kind, false);
        delivery.update(true);
    });
}
container.on('settled', ({ sender, receiver, delivery }) => {
    if (sender) {
        delivery.settled = true;
        if (delivery.finished) return;
        const remote = delivery.remote_state;
        finish(sender.interop, delivery, kindOf(remote), true);
        pump(sender.interop);
    } else {
        const state = receiver.interop;
        delivery.settled = true;
        state.peerSettled++;
        if (state.plan && state.peerSettled === state.plan.count) {
            say({ event: 'peer_settled', link: state.key, count: state.peerSettled });
        }
    }
});

// ----- receiving

function topUp(state) {
    if (state.window && state.link.credit <= state.window / 2) {
        state.link.flow(state.window - state.link.credit);
    }
}

function note(state, fault) {
    if (state.faults.length < 5) {
        state.faults.push(fault);
        say({ event: 'fault', link: state.key, fault });
    }
}

function answer(delivery, plan) {
    const outcome = plan ? plan.outcome : { state: 'accepted' };
    let state;
    switch (outcome.state) {
        case 'none':
            return;
        case 'rejected':
            state = rhea.message.rejected({
                error: { condition: outcome.condition, description: outcome.description, info: outcome.info },
            });
            break;
        case 'modified':
            state = rhea.message.modified({
                delivery_failed: outcome.delivery_failed,
                undeliverable_here: outcome.undeliverable_here,
                message_annotations: outcome.annotations,
            });
            break;
        default:
            state = rhea.message[outcome.state]();
    }
    state = state.described();
    delivery.update(!plan || plan.settle, plan && plan.txn ? within(plan.txn, state) : state);
}

container.on('message', ({ receiver, delivery, message }) => {
    const state = receiver.interop;
    const plan = state.plan;
    let number = state.received++;
    if (!plan || plan.stream === null) {
        say({ event: 'message', link: state.key, message: sectionsOf(message) });
    } else if (number >= plan.count) {
        note(state, `message beyond the ${plan.count} that were due`);
    } else {
        const body = message.body && message.body.content;
        number = plan.first + number * plan.step;
        // With `report` the runner compares the numbers itself: after a restart a stream does not begin at 0.
        if (plan.report) {
            number = Number(body.subarray(0, 60).toString('latin1').split(':')[1]);
            say({ event: 'delivery', link: state.key, number, settled: delivery.remote_settled });
        }
        let fault = payload.fault(body, plan.stream, number, plan.size);
        if (!fault && plan.dressed) fault = faultInDress(message, plan.stream, number);
        if (fault) note(state, fault);
    }
    if (delivery.remote_settled) {
        state.presettled++;
        delivery.settled = true;
    } else {
        answer(delivery, plan);
    }
    if (plan && state.received === plan.count) {
        say({
            event: 'received',
            link: state.key,
            count: state.received,
            presettled: state.presettled,
            faults: state.faults,
        });
    }
    topUp(state);
});

function sectionsOf(message) {
    return {
        durable: Boolean(message.durable),
        priority: message.priority,
        ttl: message.ttl,
        id: plain(message.message_id),
        subject: message.subject,
        correlation_id: plain(message.correlation_id),
        reply_to: message.reply_to,
        content_type: message.content_type,
        application_properties: plain(message.application_properties),
        message_annotations: plain(message.message_annotations),
        delivery_annotations: plain(message.delivery_annotations),
        body: plain(message.body && message.body.content),
    };
}
