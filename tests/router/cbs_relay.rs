//! The CBS relay, seen from both sides: requests and answers, what is carried and what is not, and all that can end
//! between the two.

use linkrouterd::amqp::value::Value;

use crate::cbs_hub::{
    ASKS, CbsDevice, CbsHub, HEARS, answers_on, audience, cbs_settings, cbs_world, put_token, replying_to,
    seconds, token,
};
use crate::wire::string;

#[test]
fn a_request_is_sent_on_and_its_answer_comes_back_under_the_id_that_it_had() {
    let mut world = cbs_world(cbs_settings());
    let device = CbsDevice::new(&mut world, "d1");
    let mut hub = CbsHub::new(&world);
    device.ask(&mut world, &put_token("d1", Value::Ulong(0)));
    let request = hub.request(&mut world);
    assert_eq!(request.text("operation"), "put-token");
    assert_eq!(request.text("name"), audience("d1"));
    assert_eq!(request.token(), token("d1"));
    assert_eq!(device.answers(&mut world), [], "not before the hub has spoken");
    hub.answer(&mut world, &request, 200, "OK");
    let answers = device.answers(&mut world);
    assert_eq!(answers.len(), 1);
    let answer = answers.first().expect("one");
    assert_eq!((answer.id.clone(), answer.code()), (Some(Value::Ulong(0)), 200));
    assert_eq!(answer.description, Some(string("OK")));
    assert_eq!(hub.attached(&mut world), (1, 1));
    let asked = world.peer(device.peer).link(0, ASKS);
    assert_eq!(asked.settled, [(0, Some(crate::wire::ACCEPTED))]);
}
