//! What a definition says of network cards.

use dagger_payload::id::{Generation, HostId, PayloadDigest, VmId};

use super::*;

const HERE: HostId = HostId([1; 16]);
const VM: VmId = VmId([7; 16]);

fn xml(cards: u8) -> String {
    let tags =
        Tags { host: HERE, vm: VM, generation: Generation(1), payload: PayloadDigest([2; 32]) };
    let machine = MachineSpecification {
        tags,
        title: "web-1".to_owned(),
        cpus: 1,
        memory_mib: 256,
        disk: "/disks/a".into(),
        image: "/images/b".into(),
        image_format: ImageFormat::Raw,
        seed: "/disks/c".into(),
        volumes: Vec::new(),
        console: "/consoles/d".into(),
        cards,
        boot: None,
    };
    let names = HostNames::of(HERE);
    domain(&machine, &names, Flavour::Test, Console::TerminalOnly).unwrap()
}

#[test]
fn every_card_is_an_interface_on_the_tap_that_was_made_for_it() {
    let (names, xml) = (HostNames::of(HERE), xml(2));
    let places = [0, 1].map(|card| {
        let element = format!(
            "<interface type=\"ethernet\"><mac address=\"{}\"/><target dev=\"{}\" managed=\"no\"/>\
             <model type=\"virtio\"/></interface>",
            names.mac(VM, card),
            names.tap(VM, card)
        );
        xml.find(&element).unwrap_or_else(|| panic!("{element} is not in {xml}"))
    });
    assert!(places[0] < places[1], "the first card comes first");
    assert_eq!(xml.matches("<interface").count(), 2);
}

#[test]
fn a_guest_without_cards_has_no_interface() {
    assert!(!xml(0).contains("interface"));
}
