// A rhea peer with SASL PLAIN that lets a client send and receive, and closes one link and the session with an error.
const rhea = require('rhea');
const container = rhea.create_container({ id: 'rhea-server' });
const { types } = rhea;

container.sasl_server_mechanisms.enable_plain((user, password) => user === 'device' && password === 'golden');

container.on('receiver_open', ({ receiver }) => {
  receiver.set_target(receiver.target);
  receiver.add_credit(1000);
});
container.on('sender_open', ({ sender }) => sender.set_source(sender.source));
container.on('sendable', ({ sender }) => {
  if (sender.sent) return;
  sender.sent = true;
  setImmediate(() => {
    sender.send({
      message_id: types.wrap_ulong(7),
      to: '/devices/dev1/messages/devicebound',
      body: rhea.message.data_section(Buffer.from('command')),
    });
    sender.send({ correlation_id: rhea.generate_uuid(), body: 'z'.repeat(3000) });
  });
});
container.on('session_close', () => {});
container.on('message', ({ receiver, message }) => {
  if (message.body === 'last') {
    receiver.close({
      condition: 'amqp:link:detach-forced',
      description: 'Server Busy. Please retry operation',
      info: { 'com.microsoft:tracking': types.wrap_symbol('t-1'), retries: types.wrap_uint(3) },
    });
  }
});

container.listen({ host: '127.0.0.1', port: Number(process.argv[2]), idle_time_out: 240000, max_frame_size: 1024 });
