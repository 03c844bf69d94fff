//! Images that have to come from elsewhere: one download for all that wait, a few at a time, none
//! that nobody needs.

use std::time::Duration;

use dagger_agent::controller::{
    Controller, FetchJob, FetchPlace, Fetched, Finished, Input, LocalPolicy, Monotonic, Outcome,
    Output, Step,
};
use dagger_agent::handover::{AttestedVm, Order};
use dagger_agent::hypervisor::Inventory;
use dagger_payload::id::{AccountId, CommitIndex, Generation, HostId, ImageDigest, VmId};
use dagger_payload::kind::ReportPhase;
use dagger_payload::object::{Host, HostDuty, Image, Wanted};

use super::desk::{phases, reason, steps};
use super::sources::image;
use super::support::{ELSEWHERE, HERE, IMAGE, accepted, host, wants};

/// A controller of several VMs, and its clock.
struct Bench {
    controller: Controller,
    now: Monotonic,
    ticket: u64,
}

/// The accepted VM number `number`.
fn vm(number: u8) -> AttestedVm {
    let mut version = accepted();
    version.vm.id = VmId([number; 16]);
    version.vm.name = format!("web-{number}").parse().unwrap();
    version
}

fn neighbour(endpoint: Option<&str>) -> Host {
    let mut host = host();
    host.id = ELSEWHERE;
    host.name = "host2".parse().unwrap();
    let label = endpoint.map(|text| ("image-endpoint".parse().unwrap(), text.parse().unwrap()));
    host.labels.extend(label);
    host
}

impl Bench {
    /// Caught up with these orders, and nothing is on the host.
    fn live(orders: Vec<Order>) -> (Self, Vec<Output>) {
        let controller = Controller::new(HERE, LocalPolicy::default(), Default::default());
        let mut bench = Self { controller, now: Monotonic::default(), ticket: 1 };
        bench.order(Order::Host(Box::new(host())));
        for order in orders {
            assert_eq!(bench.order(order), []);
        }
        bench.take(Input::Inventory { ticket: 1, machines: Inventory::new() });
        let outputs = bench.order(Order::CaughtUp(CommitIndex(100)));
        (bench, outputs)
    }

    fn take(&mut self, input: Input) -> Vec<Output> {
        self.controller.handle(self.now, input)
    }

    fn order(&mut self, order: Order) -> Vec<Output> {
        self.take(Input::Order(order))
    }

    /// A VM that comes later, and a look that shows nothing of it.
    fn later(&mut self, version: AttestedVm) -> Vec<Output> {
        self.order(one(version));
        self.ticket += 1;
        self.take(Input::Inventory { ticket: self.ticket, machines: Inventory::new() })
    }

    fn finish(&mut self, vm: VmId, outcome: Outcome) -> Vec<Output> {
        self.ticket += 1;
        let (generation, step) = (Generation(1), Step::Image);
        let finished = Finished { vm, generation, step, outcome, sighting: None };
        self.take(Input::Finished(finished, self.ticket))
    }

    /// The image step says that the image is not here.
    fn misses(&mut self, vm: VmId) -> Vec<Output> {
        self.misses_one(vm, IMAGE)
    }

    /// The image step says that this image is not here.
    fn misses_one(&mut self, vm: VmId, image: ImageDigest) -> Vec<Output> {
        let reason = "image_missing: it is not here".to_owned();
        self.finish(vm, Outcome::ImageMissing(image, reason))
    }

    fn wait(&mut self, seconds: u64) -> Vec<Output> {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.take(Input::Tick)
    }
}

fn one(version: AttestedVm) -> Order {
    Order::Vm(Box::new(version))
}

pub(crate) fn fetched(outputs: &[Output]) -> Vec<FetchJob> {
    let job = |output: &Output| match output {
        Output::Fetch(job) => Some((**job).clone()),
        _ => None,
    };
    outputs.iter().filter_map(job).collect()
}

fn discarded(outputs: &[Output]) -> Vec<ImageDigest> {
    let image = |output: &Output| match output {
        Output::DiscardFetched(image) => Some(*image),
        _ => None,
    };
    outputs.iter().filter_map(image).collect()
}

fn stopped(outputs: &[Output]) -> Vec<ImageDigest> {
    let image = |output: &Output| match output {
        Output::StopFetching(image) => Some(*image),
        _ => None,
    };
    outputs.iter().filter_map(image).collect()
}

/// One host besides this one has an endpoint, and the image is registered with one source.
pub(crate) fn surroundings() -> Vec<Order> {
    vec![
        Order::Host(Box::new(neighbour(Some("192.0.2.7:7481")))),
        Order::Image(Box::new(image("op1/small", &["/a", "https://example.org/small"]))),
    ]
}

fn unavailable() -> Fetched {
    Fetched::Unavailable("image_missing: connect_failed: nobody answers".to_owned())
}

#[test]
fn fifty_vms_that_lack_one_image_wait_for_one_download_and_go_on_with_its_end() {
    let numbers = 10..60_u8;
    let orders = surroundings().into_iter().chain(numbers.clone().map(|number| one(vm(number))));
    let (mut bench, outputs) = Bench::live(orders.collect());
    assert_eq!(steps(&outputs), vec![Step::Image; 50]);
    let jobs: Vec<_> =
        numbers.clone().flat_map(|number| fetched(&bench.misses(VmId([number; 16])))).collect();
    let Image { size_bytes, .. } = image("op1/small", &[]);
    let places = vec![
        FetchPlace::Host {
            host: ELSEWHERE,
            name: "host2".parse().unwrap(),
            address: "192.0.2.7:7481".parse().unwrap(),
        },
        FetchPlace::Https("https://example.org/small".parse().unwrap()),
    ];
    assert_eq!(jobs, [FetchJob { image: IMAGE, size_bytes, places }]);
    assert_eq!(bench.controller.next_wake(), None);
    let shown = bench.controller.sights();
    assert!(shown.values().all(|sight| sight.awaits_image));

    let outputs = bench.take(Input::Fetched(IMAGE, Fetched::Here));
    assert_eq!(steps(&outputs), vec![Step::Image; 50]);
    for number in numbers {
        let outputs = bench.finish(VmId([number; 16]), Outcome::Done);
        assert_eq!(steps(&outputs), [Step::Disk]);
    }
}

#[test]
fn what_cannot_be_had_now_is_tried_again_later_and_later_and_told_when_it_lasts() {
    let mut orders = surroundings();
    orders.push(one(vm(10)));
    let (mut bench, _) = Bench::live(orders);
    let mut told = Vec::new();
    for wait in [2, 4, 8, 16] {
        assert_eq!(fetched(&bench.misses(VmId([10; 16]))).len(), 1);
        told.push(phases(&bench.take(Input::Fetched(IMAGE, unavailable()))).len());
        assert_eq!(steps(&bench.wait(wait - 1)), []);
        // What somebody has brought meanwhile is found first.
        assert_eq!(steps(&bench.wait(1)), [Step::Image]);
    }
    assert_eq!(told, [0, 0, 1, 0]);
}

#[test]
fn a_vm_that_comes_after_a_failure_waits_like_the_others() {
    let mut orders = surroundings();
    orders.push(one(vm(10)));
    let (mut bench, _) = Bench::live(orders);
    bench.misses(VmId([10; 16]));
    bench.take(Input::Fetched(IMAGE, unavailable()));
    assert_eq!(steps(&bench.later(vm(11))), [Step::Image]);
    assert_eq!(fetched(&bench.misses(VmId([11; 16]))), []);
    assert_eq!(steps(&bench.wait(2)).len(), 2);
}

#[test]
fn an_image_that_all_places_have_otherwise_is_given_up() {
    let mut orders = surroundings();
    orders.push(one(vm(10)));
    let (mut bench, _) = Bench::live(orders);
    bench.misses(VmId([10; 16]));
    let refused = Fetched::Refused("image_refused: digest_differs: another file".to_owned());
    let outputs = bench.take(Input::Fetched(IMAGE, refused));
    assert_eq!(phases(&outputs), [ReportPhase::Degraded]);
    assert_eq!(reason(&outputs), "image_refused: digest_differs: another file");
    assert_eq!(bench.wait(10_000), []);
}

#[test]
fn a_vm_is_deleted_at_once_and_with_the_last_one_its_download_ends() {
    let mut orders = surroundings();
    orders.extend([one(vm(10)), one(vm(11))]);
    let (mut bench, _) = Bench::live(orders);
    bench.misses(VmId([10; 16]));
    bench.misses(VmId([11; 16]));
    let outputs = bench.order(one(wants(&vm(10), Wanted::Deleted)));
    assert_eq!((steps(&outputs), stopped(&outputs)), (vec![Step::Destroy], vec![]));
    let outputs = bench.order(one(wants(&vm(11), Wanted::Deleted)));
    assert_eq!((steps(&outputs), stopped(&outputs)), (vec![Step::Destroy], vec![IMAGE]));
    // Another one comes while it is being stopped, and gets a download of its own after that.
    assert_eq!(steps(&bench.later(vm(12))), [Step::Image]);
    assert_eq!(fetched(&bench.misses(VmId([12; 16]))), []);
    let outputs = bench.take(Input::Fetched(IMAGE, Fetched::Stopped));
    assert_eq!(steps(&outputs), [Step::Image]);
    assert_eq!(fetched(&bench.misses(VmId([12; 16]))).len(), 1);
}

#[test]
fn a_few_images_are_fetched_at_a_time_and_the_next_when_one_has_ended() {
    let mut orders = vec![Order::Host(Box::new(neighbour(Some("192.0.2.7:7481"))))];
    for number in 10..20 {
        let mut version = vm(number);
        version.vm.account = AccountId([number; 16]);
        version.vm.image.digest = ImageDigest([number; 32]);
        orders.push(one(version));
    }
    let (mut bench, _) = Bench::live(orders);
    let missed = |bench: &mut Bench, number: u8| {
        fetched(&bench.misses_one(VmId([number; 16]), ImageDigest([number; 32]))).len()
    };
    let begun: Vec<_> = (10..20).map(|number| missed(&mut bench, number)).collect();
    assert_eq!(begun, [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]);
    let outputs = bench.take(Input::Fetched(ImageDigest([10; 32]), Fetched::Here));
    assert_eq!(fetched(&outputs).len(), 1);
    assert_eq!(fetched(&outputs)[0].image, ImageDigest([16; 32]));
}

#[test]
fn without_any_place_to_fetch_from_it_is_as_if_somebody_may_bring_it() {
    let mut gone = neighbour(Some("192.0.2.7:7481"));
    gone.duty = HostDuty::Left;
    let orders = vec![
        Order::Host(Box::new(neighbour(Some("192.0.2.7:7481")))),
        Order::Host(Box::new(gone)),
        Order::Image(Box::new(image("op1/small", &["/a"]))),
        one(vm(10)),
    ];
    for hosts in [orders, vec![Order::Host(Box::new(neighbour(Some("nowhere")))), one(vm(10))]] {
        let (mut bench, _) = Bench::live(hosts);
        for wait in [1, 2, 4] {
            assert_eq!(fetched(&bench.misses(VmId([10; 16]))), []);
            assert_eq!(steps(&bench.wait(wait)), [Step::Image]);
        }
    }
}

#[test]
fn what_came_of_an_image_is_removed_when_the_last_vm_that_needs_it_goes() {
    let mut orders = surroundings();
    orders.extend([one(vm(10)), one(vm(11))]);
    let (mut bench, _) = Bench::live(orders);
    bench.misses(VmId([10; 16]));
    bench.misses(VmId([11; 16]));
    assert_eq!(discarded(&bench.take(Input::Fetched(IMAGE, unavailable()))), []);
    // They wait for the next try, which goes on with it.
    assert_eq!(discarded(&bench.order(one(wants(&vm(10), Wanted::Deleted)))), []);
    assert_eq!(discarded(&bench.order(one(wants(&vm(11), Wanted::Deleted)))), [IMAGE]);
    assert_eq!(discarded(&bench.wait(1000)), [], "once");
}

#[test]
fn no_more_is_fetched_for_a_vm_than_fits_the_disk_by_which_it_is_judged() {
    let large =
        Image { size_bytes: 256 << 30, ..image("op1/small", &["https://example.org/small"]) };
    let orders = vec![Order::Image(Box::new(large)), one(vm(10))];
    let (mut bench, _) = Bench::live(orders);
    let jobs = fetched(&bench.misses(VmId([10; 16])));
    let size_bytes = jobs[0].size_bytes;
    // A full qcow2 file of that size fits, with its tables.
    let virtual_size_bytes = vm(10).vm.image.virtual_size_bytes;
    assert!(size_bytes > virtual_size_bytes + virtual_size_bytes / 32, "{size_bytes}");
    assert!(size_bytes < virtual_size_bytes * 9 / 8, "{size_bytes}");
}

#[test]
fn who_calls_an_image_smaller_than_it_is_takes_it_from_nobody_else() {
    let honest =
        Image { size_bytes: 1 << 30, ..image("op1/small", &["https://example.org/small"]) };
    let mut little = vm(10);
    little.vm.image.virtual_size_bytes = 1 << 20;
    let orders = vec![Order::Image(Box::new(honest)), one(little), one(vm(11))];
    let (mut bench, _) = Bench::live(orders);
    let first = fetched(&bench.misses(VmId([10; 16])));
    assert!(first[0].size_bytes < 32 << 20, "{first:?}");
    bench.misses(VmId([11; 16]));
    let refused = Fetched::Refused("image_refused: too_large: more than it may have".to_owned());
    let outputs = bench.take(Input::Fetched(IMAGE, refused));
    assert_eq!(phases(&outputs), [ReportPhase::Degraded], "the first alone gives up");
    assert_eq!(steps(&bench.wait(2)), [Step::Image]);
    let second = fetched(&bench.misses(VmId([11; 16])));
    assert_eq!(second[0].size_bytes, 1 << 30);
}

#[test]
fn one_account_with_many_images_keeps_no_other_from_its_own() {
    let mut orders = vec![Order::Host(Box::new(neighbour(Some("192.0.2.7:7481"))))];
    for number in 10..14 {
        let mut version = vm(number);
        version.vm.image.digest = ImageDigest([number; 32]);
        if number == 13 {
            version.vm.account = AccountId([99; 16]);
        }
        orders.push(one(version));
    }
    let (mut bench, _) = Bench::live(orders);
    let missed = |bench: &mut Bench, number: u8| {
        fetched(&bench.misses_one(VmId([number; 16]), ImageDigest([number; 32]))).len()
    };
    let begun: Vec<_> = (10..14).map(|number| missed(&mut bench, number)).collect();
    assert_eq!(begun, [1, 1, 0, 1]);
    let outputs = bench.take(Input::Fetched(ImageDigest([11; 32]), Fetched::Here));
    assert_eq!(fetched(&outputs)[0].image, ImageDigest([12; 32]));
}

#[test]
fn with_each_try_another_host_is_asked_first_also_where_there_are_few() {
    let mut hosts = Vec::new();
    for number in 1..=2_u8 {
        let mut host = neighbour(Some(&format!("192.0.2.{number}:7481")));
        host.id = HostId([100 + number; 16]);
        hosts.push(Order::Host(Box::new(host)));
    }
    hosts.push(one(vm(10)));
    let (mut bench, _) = Bench::live(hosts);
    let mut first = Vec::new();
    for wait in [2, 4] {
        first.push(fetched(&bench.misses(VmId([10; 16])))[0].places[0].clone());
        bench.take(Input::Fetched(IMAGE, unavailable()));
        bench.wait(wait);
    }
    assert_ne!(first[0], first[1]);
}
