//! What a look at kept bytes says against what the whole objects say. Called by the test runner.

use dagger_payload::bridge::Bridged;
use dagger_payload::codec::encode;
use dagger_payload::id::{Generation, ImageDigest, LedgerTime, PayloadDigest, Position, VmId};
use dagger_payload::kind::{
    Apart, ApartBy, ApartStrength, Capacity, ImageFormat, Protection, RestartPolicy, StopManner,
    VmImage,
};
use dagger_payload::name::Labels;
use dagger_payload::network::VmNetwork;
use dagger_payload::object::{Cause, Vm, Wanted};
use dagger_payload::usage::Meter;

use super::*;
use crate::judge::neighbours::takes_looking;

struct Random(u64);

impl Random {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (self.0 >> 33) % count
    }

    fn labels(&mut self) -> Labels {
        let names = ["a", "a-b", "ab", "b", "c", "role", &"n".repeat(63)].map(str::to_owned);
        let count = self.below(5);
        let label = |_| {
            let name = names[usize::try_from(self.below(7)).expect("few")].parse();
            let value = "v".repeat(usize::try_from(self.below(3) * 60).expect("few")).parse();
            (name.expect("a name"), value.expect("a value"))
        };
        (0..count).map(label).collect()
    }

    fn card(&mut self) -> VmNetwork {
        let address = StaticAddress {
            address: [192, 0, 2, u8::try_from(self.below(3)).expect("few")].into(),
            prefix_length: 24,
            gateway: None,
        };
        let address = (self.below(2) == 0).then_some(address);
        let bridge = ["lan", "dmz"][usize::try_from(self.below(2)).expect("few")];
        let bridged = Bridged { bridge: bridge.parse().expect("a name"), address };
        let bridge = (self.below(3) > 0).then_some(bridged);
        VmNetwork { bridge, ..VmNetwork::default() }
    }

    fn placement(&mut self) -> Placement {
        let (host, address) = (HostId([7; 16]), [10, 0, 0, 2].into());
        match self.below(4) {
            0 => Placement::Offered { host, address, deadline: LedgerTime(u64::MAX) },
            1 => Placement::Accepted { host, address, position: Position(9) },
            2 => Placement::Lost { host },
            _ => Placement::NoHost {},
        }
    }

    fn vm(&mut self) -> Vm {
        let cause = Cause { digest: PayloadDigest([1; 32]), position: Position(300) };
        let wish = |random: &mut Self| Apart {
            from: random.labels(),
            by: ApartBy::Host,
            strength: ApartStrength::Required,
        };
        let wishes = self.below(9);
        Vm {
            id: VmId([2; 16]),
            account: AccountId([3; 16]),
            name: "web".parse().expect("a name"),
            generation: Generation(70_000),
            created: cause,
            changed: cause,
            wanted: Wanted::Running,
            image: VmImage {
                digest: ImageDigest([5; 32]),
                format: ImageFormat::Raw,
                virtual_size_bytes: 1 << 40,
            },
            size: Capacity { cpus: 1, memory_mib: 1 << 20, disk_gib: 5 },
            ssh_keys: Vec::new(),
            public_user_data: (self.below(2) == 0).then(|| "é".repeat(16 * 1024)),
            labels: self.labels(),
            region: None,
            host_labels: self.labels(),
            pinned_host: None,
            placement: self.placement(),
            tried: vec![HostId([8; 16])],
            reported: None,
            guest_host_key: None,
            protection: Protection::Unprotected,
            apart: (0..wishes).map(|_| wish(self)).collect(),
            booted_since: Generation(1),
            meter: Meter::NEW,
            stop_manner: StopManner::Graceful,
            restart: RestartPolicy::Always,
            volumes: Vec::new(),
            volumes_since: Generation(1),
            network: self.card(),
            boot: None,
            more_cards: (0..self.below(3)).map(|_| self.card()).collect(),
        }
    }
}

/// Any VM.
pub(in crate::judge::state) fn some_vm() -> Vm {
    Random(1).vm()
}

/// The same from the whole object.
fn looked_at(vm: &Vm, seeker: &Vm) -> Option<(HostId, Met)> {
    let addresses = |vm: &Vm| -> Vec<_> {
        let cards: Vec<_> = vm.cards().filter_map(|card| card.bridge.clone()).collect();
        let chosen = cards.into_iter().filter_map(|on| Some((on.bridge, on.address?.address)));
        chosen.collect()
    };
    let carries =
        |apart: &Apart| apart.from.iter().all(|(name, value)| vm.labels.get(name) == Some(value));
    let wishes = seeker.apart.iter().enumerate().filter(|(_, apart)| carries(apart));
    let wishes = wishes.fold(0, |wishes, (at, _)| wishes | 1 << at);
    let own = addresses(seeker);
    let has_address = addresses(vm).iter().any(|address| own.contains(address));
    let met = Met { wishes, has_address };
    vm.placement.host().filter(|_| met != Met::default()).map(|host| (host, met))
}

#[test]
fn what_is_read_where_it_stands_is_what_the_whole_object_says() {
    let mut random = Random(11);
    let (mut found, mut contested) = (0, 0);
    for _ in 0..3000 {
        let (vm, seeker) = (random.vm(), random.vm());
        let kept = KeptVm::new(&encode(&vm));
        let sought = Sought::of(&seeker);
        let met = kept.look(&sought);
        assert_eq!(met, looked_at(&vm, &seeker), "{vm:?} {seeker:?}");
        assert_eq!(kept.seeker(), (vm.account, takes_looking(&vm)));
        assert_eq!(sought.is_nothing(), !takes_looking(&seeker));
        found += usize::from(met.is_some_and(|(_, met)| met.wishes != 0));
        contested += usize::from(met.is_some_and(|(_, met)| met.has_address));
    }
    assert!(found > 300 && contested > 50, "{found} {contested}");
}

#[test]
fn cut_off_or_of_unknown_length_it_is_not_read() {
    let vm = some_vm();
    let bytes = encode(&vm);
    for length in 0..bytes.len().min(200) {
        assert_eq!(KeptVm::new(&bytes[..length]).seeks(), None);
    }
    for wrong in [&[0x9f_u8, 0xff][..], &[0x7f, 0xff], &[0xbb, 0xff, 0xff, 0xff, 0xff]] {
        assert_eq!(Reader(wrong).skip(), None);
    }
    let endless = [0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    assert_eq!(Reader(&endless).skip(), None);
}
