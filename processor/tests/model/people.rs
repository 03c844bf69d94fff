//! Who signs, and the scene in which payloads are drawn.

use std::collections::BTreeMap;

use dagger_payload::genesis::{Genesis, GenesisHost, GenesisMode, GenesisOperator};
use dagger_payload::id::HostId;
use dagger_payload::key::{PublicKey, SecretKey};
use dagger_payload::kind::KeyRole;
use dagger_payload::object::Account;
use dagger_payload::roster::Seat;

use super::members::is_present;
use super::random::Random;
use super::state::Model;

/// Someone with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Person {
    /// Of five operators: three founders, and two who may come.
    Operator(usize),
    /// The ledger of one of four founding hosts; host 3 belongs to operator 0, as host 0 does.
    Ledger(usize),
    /// An agent, of some host or other.
    Agent(usize),
    /// One of five; the last is never granted anything.
    Developer(usize),
    /// A key of nobody, at first.
    Spare(usize),
    /// A key that comes: of a new host, or in the place of another one.
    Fresh(usize),
}

/// How many fresh keys there are.
const FRESH: usize = 300;

impl Person {
    /// Anybody at all.
    pub(crate) fn any(random: &mut Random) -> Self {
        random.of(&Self::all().collect::<Vec<_>>())
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let operators = (0..5).map(Self::Operator);
        let ledgers = (0..4).map(Self::Ledger);
        let agents = (0..16).map(Self::Agent);
        let developers = (0..5).map(Self::Developer);
        let spares = (0..6).map(Self::Spare);
        operators.chain(ledgers).chain(agents).chain(developers).chain(spares)
    }

    fn secret(self) -> SecretKey {
        let (purpose, number) = match self {
            Self::Operator(number) => (1, number),
            Self::Ledger(number) => (2, number),
            Self::Agent(number) => (3, number),
            Self::Developer(number) => (4, number),
            Self::Spare(number) => (5, number),
            Self::Fresh(number) => (6, number),
        };
        let mut seed = [purpose; 32];
        [seed[0], seed[1]] = u16::try_from(number).expect("few").to_be_bytes();
        SecretKey::from_seed(&seed.into())
    }
}

/// What a draw may look at.
pub(crate) struct Scene {
    pub(crate) model: Model,
    secrets: BTreeMap<Person, SecretKey>,
    keys: BTreeMap<Person, PublicKey>,
}

impl Scene {
    pub(crate) fn new(model: Model) -> Self {
        let secrets: BTreeMap<_, _> =
            Person::all().chain((0..FRESH).map(Person::Fresh)).map(with_secret).collect();
        let keys = secrets.iter().map(|(person, key)| (*person, key.public_key())).collect();
        Self { model, secrets, keys }
    }

    pub(crate) fn key(&self, person: Person) -> PublicKey {
        self.keys[&person].clone()
    }

    pub(crate) fn secret(&self, person: Person) -> &SecretKey {
        &self.secrets[&person]
    }

    /// Someone who may change objects of an account; a developer as long as there is none.
    pub(crate) fn acting(&self, random: &mut Random) -> Person {
        let accounts = &self.model.accounts;
        if accounts.is_empty() {
            return Person::Developer(random.index(4));
        }
        self.acting_for(&accounts[random.index(accounts.len())], random)
    }

    /// Someone who may change objects of this account.
    pub(crate) fn acting_for(&self, account: &Account, random: &mut Random) -> Person {
        let keys = account.keys.iter().filter(|own| own.role != KeyRole::Read);
        let keys: Vec<_> = keys.map(|own| &own.key).collect();
        self.who(keys[random.index(keys.len())]).expect("everybody's key is known")
    }

    /// A host that is there; seldom one that is none.
    pub(crate) fn host(&self, random: &mut Random) -> HostId {
        let hosts: Vec<_> = self.model.present_seats().map(|seat| seat.host).collect();
        if random.happens(20) { HostId([6; 16]) } else { hosts[random.index(hosts.len())] }
    }

    /// Somebody whose key may be new.
    pub(crate) fn fresh(&self, random: &mut Random) -> Person {
        Person::Fresh(random.index(FRESH))
    }

    /// Mostly a present operator.
    pub(crate) fn operator_mostly(&self, random: &mut Random) -> Person {
        let operators = self.model.operators.iter();
        let signing: Vec<_> = operators.filter(|own| is_present(own)).map(|own| &own.key).collect();
        let operator = self.who(signing[random.index(signing.len())]);
        operator.filter(|_| random.happens(930)).unwrap_or_else(|| Person::any(random))
    }

    /// Mostly the operator of the host on this seat.
    pub(crate) fn owner_mostly(&self, seat: &Seat, random: &mut Random) -> Person {
        let owner = self.model.operators.iter().find(|own| own.id == seat.operator);
        let owner = owner.and_then(|owner| self.who(&owner.key));
        owner.filter(|_| random.happens(900)).unwrap_or_else(|| Person::any(random))
    }

    pub(crate) fn who(&self, key: &PublicKey) -> Option<Person> {
        self.keys.iter().find(|(_, other)| *other == key).map(|(person, _)| *person)
    }
}

fn with_secret(person: Person) -> (Person, SecretKey) {
    (person, person.secret())
}

/// Three operators; one of them has two of the four hosts.
pub(crate) fn genesis() -> Genesis {
    let name = |text: String| text.parse().expect("a name");
    let operators = (0..3).map(|number| GenesisOperator {
        name: name(format!("op{number}")),
        key: Person::Operator(number).secret().public_key(),
    });
    let hosts = (0..4).map(|number| GenesisHost {
        name: name(format!("host{number}")),
        operator: name(format!("op{}", number % 3)),
        ledger_key: Person::Ledger(number).secret().public_key(),
        address: "127.0.0.1:7400".parse().expect("an address"),
    });
    Genesis {
        dagger: 1,
        nonce: "0".repeat(32),
        name: name("model".to_owned()),
        mode: GenesisMode::Judged,
        operators: operators.collect(),
        hosts: hosts.collect(),
        collection_depth_rounds: 60,
        handover_distance_commits: 10,
        commit_bytes_max: None,
    }
}
