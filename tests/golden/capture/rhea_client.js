// A rhea client: SASL PLAIN, several sessions, filters, unsettled deliveries with every outcome, errors on end and close.
const rhea = require('rhea');
const container = rhea.create_container({ id: 'rhea-client' });
const { types, filter } = rhea;

const connection = container.connect({
  host: '127.0.0.1',
  port: Number(process.argv[2]),
  username: 'device',
  password: 'golden',
  hostname: 'hub.example.org',
  reconnect: false,
  channel_max: 8191,
  idle_time_out: 120000,
  max_frame_size: 2048,
  outgoing_locales: 'en-US',
  offered_capabilities: ['cap-one', 'cap-two'],
  properties: {
    product: 'golden',
    one: types.wrap_symbol('sym'),
    byte: types.wrap_byte(-1),
    long: types.wrap_long(-5000000000),
    float: types.wrap_float(1.5),
    double: types.wrap_double(-0.1),
    char: types.wrap_char(0x20ac),
    nested: types.wrap_map({ list: types.wrap_list([1, 'two', null]) }),
  },
});

const sender = connection.open_sender({
  name: 'events é',
  target: { address: '/devices/dev1/messages/events', capabilities: ['queue', 'topic'] },
  properties: { 'com.microsoft:timeout': types.wrap_uint(60000) },
  snd_settle_mode: 0,
  rcv_settle_mode: 1,
  autosettle: false,
});
const session = connection.create_session();
session.begin({ handle_max: 255, properties: { name: 'second' } });
const receiver = session.open_receiver({
  name: 'commands',
  source: {
    address: '/devices/dev1/messages/devicebound',
    durable: 2,
    expiry_policy: 'never',
    timeout: 60,
    distribution_mode: 'move',
    filter: { ...filter.selector("colour = 'green'"), age: types.wrap_described(types.wrap_uint(5), 0x468c00000004) },
    default_outcome: types.wrap_described([false, false], 0x27),
    outcomes: ['amqp:accepted:list', 'amqp:released:list'],
  },
  target: { address: 'here' },
  max_message_size: 262144,
  credit_window: 0,
  autoaccept: false,
});
receiver.add_credit(10);

let sent = 0;
connection.on('sendable', (context) => {
  if (context.sender !== sender || sent) return;
  for (const body of ['first', 'last']) {
    sender.send({ body, application_properties: { secret: 'SharedAccessSignature sig=zzz' } }, Buffer.from([0, sent++, 0xff]));
  }
});
let received = 0;
connection.on('message', ({ delivery }) => {
  if (received++ === 0) delivery.modified({ delivery_failed: true, undeliverable_here: false });
  else {
    delivery.reject({ condition: 'amqp:precondition-failed', description: 'näh' });
    receiver.drain_credit();
  }
});
connection.on('receiver_drained', () => {
  receiver.detach();
});
connection.on('sender_error', () => {
  session.close({ condition: 'amqp:session:errant-link', description: 'x' });
});
connection.on('session_close', () => connection.close({ condition: 'amqp:connection:forced', description: 'end of test' }));
connection.on('connection_close', () => process.exit(0));
