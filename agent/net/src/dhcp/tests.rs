//! Every question of RFC 2131, put by a client that shares no code with the answers.

use std::net::Ipv4Addr;

use super::answer::{Answer, answer};
use super::limits::{ANSWER_BYTES_MAX, CLIENT_NAME_BYTES_MAX};
use super::message::{Kind, Question};
use crate::offer::Offer;
use crate::offer::tests::offer;

#[allow(dead_code, reason = "the tests in namespaces say more")]
#[path = "../../tests/namespaces/client.rs"]
mod client;

use client::{
    ACKNOWLEDGED, DECLINE, DISCOVER, INFORM, OFFER, REFUSED, RELEASE, REQUEST, Told, discover,
    question, remember, renew, select,
};

const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 5);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 6);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const EVERYBODY: Ipv4Addr = Ipv4Addr::BROADCAST;

fn ask(bytes: &[u8]) -> Option<(Told, Ipv4Addr)> {
    let question = Question::read(bytes).expect("in form");
    let Answer { kind, to } = answer(&question, &offer())?;
    let bytes = question.answer(kind, &offer()).expect("short enough");
    Some((Told::read(&bytes), to))
}

/// What the guest's seed says, and nothing else.
fn as_in_the_seed(kind: u8) -> Told {
    Told {
        kind,
        address: OWN,
        server: Some(GATEWAY),
        mask: Some([255, 255, 255, 0].into()),
        router: Some(GATEWAY),
        nameservers: vec![[9, 9, 9, 9].into(), [192, 0, 2, 53].into()],
        hostname: Some("web-1".to_owned()),
        lease_seconds: Some(6 * 60 * 60),
        client_name: None,
    }
}

#[test]
fn a_client_is_offered_and_given_its_address_and_told_what_the_seed_says() {
    let client_name = Some(b"\x01RT\0\0\0\x05".to_vec());
    let offered = Told { client_name, ..as_in_the_seed(OFFER) };
    assert_eq!(ask(&discover()), Some((offered, EVERYBODY)));
    let given = as_in_the_seed(ACKNOWLEDGED);
    assert_eq!(ask(&select(OWN, GATEWAY)), Some((given.clone(), EVERYBODY)));
    assert_eq!(ask(&remember(OWN)), Some((given.clone(), EVERYBODY)));
    // Who goes on with its address may hear nothing but what is for it alone.
    assert_eq!(ask(&renew(OWN)), Some((given, OWN)));
}

#[test]
fn another_address_is_refused_however_it_is_asked_for() {
    let with = |has, requested: Ipv4Addr| question(REQUEST, has, &[(50, &requested.octets())]);
    for question in [
        select(OTHER, GATEWAY),
        remember(OTHER),
        renew(OTHER),
        with(OTHER, OWN),
        with(OWN, OTHER),
        remember(EVERYBODY),
    ] {
        let (told, to) = ask(&question).expect("an answer");
        assert_eq!((told.kind, told.address, to), (REFUSED, NONE, EVERYBODY));
        assert_eq!((told.mask, told.router, told.lease_seconds), (None, None, None));
    }
    // An offer is no promise: nothing but its own address is offered.
    let wishes = question(DISCOVER, NONE, &[(50, &OTHER.octets())]);
    assert_eq!(ask(&wishes).map(|(told, _)| told.address), Some(OWN));
}

#[test]
fn who_asks_for_nothing_or_another_server_hears_nothing() {
    let named = [(54, &GATEWAY.octets()[..])];
    for question in [
        question(RELEASE, OWN, &named),
        question(DECLINE, NONE, &[(50, &OWN.octets()), named[0]]),
        select(OWN, OTHER),
        select(OTHER, OTHER),
        question(REQUEST, NONE, &[]),
    ] {
        assert_eq!(ask(&question), None);
    }
}

#[test]
fn who_has_an_address_is_told_the_rest_without_one() {
    let (told, to) = ask(&question(INFORM, OWN, &[])).expect("an answer");
    let expected = Told { address: NONE, lease_seconds: None, ..as_in_the_seed(ACKNOWLEDGED) };
    assert_eq!((told, to), (expected, OWN));
    let (_, to) = ask(&question(INFORM, OTHER, &[])).expect("an answer");
    assert_eq!(to, EVERYBODY, "only its own address is ever answered at");
}

#[test]
fn what_is_not_in_form_is_no_question() {
    let whole = discover();
    let changed = |at: usize, value: u8| {
        let mut bytes = whole.clone();
        bytes[at] = value;
        bytes
    };
    for (what, bytes) in [
        ("an answer", changed(0, 2)),
        ("no Ethernet", changed(1, 6)),
        ("a longer MAC address", changed(2, 16)),
        ("a relay's", changed(24, 10)),
        ("BOOTP", changed(236, 0)),
        ("an unknown kind", changed(242, 99)),
        ("a server's kind", changed(242, 5)),
        ("no option at all", whole[..240].to_vec()),
        ("no fixed part", whole[..239].to_vec()),
        ("nothing", Vec::new()),
        ("a short address", question(REQUEST, NONE, &[(50, &[10, 77, 0])])),
        ("a long address", question(REQUEST, NONE, &[(54, &[10, 77, 0, 1, 0])])),
        ("a long name", question(DISCOVER, NONE, &[(61, &[1; CLIENT_NAME_BYTES_MAX + 1])])),
        ("too long", [whole.clone(), vec![0; 1500]].concat()),
    ] {
        assert_eq!(Question::read(&bytes), None, "{what}");
    }
    for length in 0..whole.len() {
        // Cut anywhere: read or not, it ends.
        let _ = Question::read(&whole[..length]);
    }
}

#[test]
fn the_longest_answer_is_one_that_every_client_takes() {
    let longest = Offer {
        hostname: "a".repeat(63).parse().expect("a name"),
        nameservers: vec![[192, 168, 100, 200].into(); 8],
        ..offer()
    };
    let name = [7; CLIENT_NAME_BYTES_MAX];
    let question = Question::read(&question(DISCOVER, NONE, &[(61, &name)])).expect("in form");
    let bytes = question.answer(Kind::Offer, &longest).expect("it fits");
    assert!(bytes.len() <= ANSWER_BYTES_MAX);
    let told = Told::read(&bytes);
    assert_eq!((told.nameservers.len(), told.client_name), (8, Some(name.to_vec())));
    assert_eq!(told.hostname.map(|name| name.len()), Some(63));
}
