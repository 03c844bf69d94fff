//! A commit end together with what shows a stranger that a quorum of its epoch attests it.
//!
//! Owns the walk from the genesis over handovers to an epoch, and the count of its members whose
//! signed headers name a state. Never says what is in that state: [`crate::proof`] does. Put
//! together by the ledger; checked by whoever has the genesis and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use crate::carried::Carried;
use crate::codec;
use crate::committee::Committee;
use crate::event::{Attestation, CommitEnd, EventError, Header, SignedHeader};
use crate::genesis::Genesis;
use crate::handover::Handover;
use crate::id::{AuthorIndex, ClusterId, CommitIndex, Epoch, LedgerTime, StateRoot};
use crate::key::PublicKey;
use crate::limits::{HANDOVERS_SHOWN_MAX, MEMBERS_MAX};
use crate::name::Name;
use crate::proof::StateProof;
use crate::roster::{EpochMembers, Seat};
use crate::state_tree::Subject;

/// A commit end and its witnesses.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct AttestedEnd {
    /// The end.
    #[n(0)]
    pub end: CommitEnd,
    /// Headers of different members of one epoch, at least a quorum, each of which names this
    /// state.
    #[n(1)]
    pub headers: Vec<SignedHeader>,
    /// How each epoch up to theirs began, from the second on; none in the first.
    #[n(2)]
    pub handovers: Vec<EpochBeginning>,
}

/// How an epoch began, for somebody who knows the keys of the epoch before.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct EpochBeginning {
    /// That the epoch before ended there.
    #[n(0)]
    pub handover: Handover,
    /// Who votes now: the leaf of [`Subject::Epoch`] in the state where the epoch before ended.
    /// Needed also when the same members vote as before: nobody has signed who they are.
    #[n(1)]
    pub members: Option<StateProof>,
    /// The leaves of [`Subject::Seat`] there, of those who are members for the first time.
    #[n(2)]
    pub seats: Vec<(AuthorIndex, StateProof)>,
}

/// A proof against the root of a state that a quorum attests.
#[derive(Debug, Clone, PartialEq, Eq, minicbor::Encode, minicbor::Decode)]
pub struct AttestedProof {
    /// What stands there.
    #[n(0)]
    pub state: StateProof,
    /// Who attests the state.
    #[n(1)]
    pub attested: AttestedEnd,
    /// Of a payload: the event that carried it, if whoever made the proof still has that.
    #[n(2)]
    pub carried: Option<Carried>,
}

/// Who attests an end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnesses {
    /// Members of this epoch.
    pub epoch: Epoch,
    /// Which, at least a quorum of them.
    pub authors: BTreeSet<AuthorIndex>,
    /// How many members the epoch has.
    pub members: usize,
    /// How many of them it takes.
    pub quorum: usize,
    /// The earliest and the latest time that they wrote into their headers, each by its own clock.
    pub signed_at: (LedgerTime, LedgerTime),
}

/// Why nobody has to believe a commit end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttestationError {
    /// More headers than members, or more handovers than anybody has to check.
    #[error("there are more headers or handovers than any proof needs")]
    TooLong,
    /// A header is none, or is not signed by the member that it names.
    #[error("header {at} does not count: {why}")]
    Header {
        /// Which, from 0.
        at: usize,
        /// Why.
        why: EventError,
    },
    /// A header of another cluster.
    #[error("header {at} is of another cluster than this genesis founds")]
    AnotherCluster {
        /// Which, from 0.
        at: usize,
    },
    /// A header of another epoch than the first one.
    #[error("header {at} is of another epoch than the first")]
    AnotherEpoch {
        /// Which, from 0.
        at: usize,
    },
    /// A header whose attestation names neither this position, prefix and state root.
    #[error("header {at} attests another state")]
    AnotherState {
        /// Which, from 0.
        at: usize,
    },
    /// The headers name the state after another commit.
    #[error("the headers name this state after commit {named}")]
    AnotherCommit {
        /// After which one first.
        named: CommitIndex,
    },
    /// A header of no member of its epoch, or the second one of a member.
    #[error("header {at} adds no member: its author has none in this epoch, or is counted already")]
    NoFurtherMember {
        /// Which, from 0.
        at: usize,
    },
    /// Too few members.
    #[error("{have} members attest it, and it takes {need} of {members}")]
    TooFew {
        /// How many.
        have: usize,
        /// A quorum.
        need: usize,
        /// Of so many.
        members: usize,
    },
    /// No handover leads to the headers' epoch.
    #[error("the headers are of epoch {epoch}, and the handovers shown lead to epoch {reached}")]
    EpochNotReached {
        /// The headers'.
        epoch: Epoch,
        /// The last one reached.
        reached: Epoch,
    },
    /// A handover without the signatures of a quorum of the epoch before.
    #[error("the handover to epoch {epoch} is not certified by the epoch before")]
    Uncertified {
        /// The epoch that it should begin.
        epoch: Epoch,
    },
    /// A handover to members whom, or whose keys, nothing shown binds to the genesis.
    #[error("nothing shown proves who the members of epoch {epoch} are")]
    MembersUnproven {
        /// The epoch that it begins.
        epoch: Epoch,
    },
}

/// After which commit a header with this attestation names the state at `end`, by its newest end or
/// by its checkpoint. Commits that changed nothing may lie between, so it may be another one.
pub fn named_after(attestation: &Attestation, end: &CommitEnd) -> Option<CommitIndex> {
    let state = |end: &CommitEnd| (end.position, end.prefix_hash, end.state_root);
    let named = [Some(attestation.newest), attestation.checkpoint];
    let same = named.iter().flatten().filter(|named| state(named) == state(end));
    same.map(|named| named.index).min()
}

impl AttestedEnd {
    /// The state at `end` and headers that name it; its commit is the first that any of them names.
    pub fn of(end: CommitEnd, headers: Vec<SignedHeader>, handovers: Vec<EpochBeginning>) -> Self {
        let read = headers.iter().filter_map(|signed| codec::decode::<Header>(&signed.header).ok());
        let named = read.filter_map(|header| named_after(&header.attestation, &end)).min();
        let end = CommitEnd { index: named.unwrap_or(end.index), ..end };
        Self { end, headers, handovers }
    }

    /// Who attests the end, if a quorum of an epoch does to which the genesis leads.
    ///
    /// # Errors
    /// [`AttestationError`]: nobody has to believe it.
    pub fn verify(
        &self,
        cluster: &ClusterId,
        genesis: &Genesis,
    ) -> Result<Witnesses, AttestationError> {
        if self.headers.len() > MEMBERS_MAX || self.handovers.len() > HANDOVERS_SHOWN_MAX {
            return Err(AttestationError::TooLong);
        }
        let walk = Walk::along(cluster, genesis, &self.handovers)?;
        let mut headers = Vec::with_capacity(self.headers.len());
        for (at, signed) in self.headers.iter().enumerate() {
            let read = signed.verify(|author| walk.keys.get(&author));
            let (header, _) = read.map_err(|why| AttestationError::Header { at, why })?;
            headers.push(header);
        }
        let epoch = headers.first().map_or(Epoch(0), |header| header.epoch);
        let Some(committee) = walk.committees.get(&epoch) else {
            let reached = walk.reached.0;
            return Err(AttestationError::EpochNotReached { epoch, reached });
        };
        let authors = self.count(cluster, &headers, *committee)?;
        let times = || headers.iter().map(|header| header.timestamp);
        Ok(Witnesses {
            epoch,
            authors,
            members: committee.members(),
            quorum: committee.quorum(),
            signed_at: (times().min().unwrap_or_default(), times().max().unwrap_or_default()),
        })
    }

    /// The authors of the headers, all of which must count.
    fn count(
        &self,
        cluster: &ClusterId,
        headers: &[Header],
        committee: Committee,
    ) -> Result<BTreeSet<AuthorIndex>, AttestationError> {
        let mut authors = BTreeSet::new();
        let mut first = None;
        for (at, header) in headers.iter().enumerate() {
            if header.cluster != *cluster {
                return Err(AttestationError::AnotherCluster { at });
            }
            if header.epoch != headers[0].epoch {
                return Err(AttestationError::AnotherEpoch { at });
            }
            let named = named_after(&header.attestation, &self.end);
            let named = named.ok_or(AttestationError::AnotherState { at })?;
            first = Some(first.map_or(named, |first: CommitIndex| first.min(named)));
            if !committee.contains(header.author) || !authors.insert(header.author) {
                return Err(AttestationError::NoFurtherMember { at });
            }
        }
        let (have, need, members) = (authors.len(), committee.quorum(), committee.members());
        if have < need {
            return Err(AttestationError::TooFew { have, need, members });
        }
        match first {
            Some(named) if named != self.end.index => {
                Err(AttestationError::AnotherCommit { named })
            }
            Some(_) | None => Ok(authors),
        }
    }
}

/// A walk from the genesis over handovers: what is known of members on the way. Everything in it
/// was shown, nothing was believed.
#[derive(Debug, Clone)]
pub struct Walk {
    /// The epoch where it stands, and who votes in it.
    reached: (Epoch, Committee),
    committees: BTreeMap<Epoch, Committee>,
    /// A seat keeps its key for ever.
    keys: BTreeMap<AuthorIndex, PublicKey>,
    names: BTreeMap<AuthorIndex, Name>,
}

impl Walk {
    /// Before the first step: all founders vote.
    pub fn founding(genesis: &Genesis) -> Self {
        let founders = || (0..).map(AuthorIndex).zip(&genesis.hosts);
        let reached = (Epoch(0), genesis.committee());
        Self {
            reached,
            committees: BTreeMap::from([reached]),
            keys: founders().map(|(index, host)| (index, host.ledger_key.clone())).collect(),
            names: founders().map(|(index, host)| (index, host.name.clone())).collect(),
        }
    }

    /// The epoch where it stands.
    pub fn epoch(&self) -> Epoch {
        self.reached.0
    }

    /// Who votes in it.
    pub fn committee(&self) -> Committee {
        self.reached.1
    }

    /// What the host of one who votes, or voted before, was called when it got its seat.
    pub fn name(&self, author: AuthorIndex) -> Option<&Name> {
        self.names.get(&author)
    }

    /// Who voted in an epoch up to there.
    pub fn committee_of(&self, epoch: Epoch) -> Option<Committee> {
        self.committees.get(&epoch).copied()
    }

    /// The key of one who votes in it, or voted before.
    pub fn key(&self, author: AuthorIndex) -> Option<&PublicKey> {
        self.keys.get(&author)
    }

    /// Over all these handovers.
    ///
    /// # Errors
    /// [`AttestationError`]: one of them leads nowhere.
    pub fn along(
        cluster: &ClusterId,
        genesis: &Genesis,
        beginnings: &[EpochBeginning],
    ) -> Result<Self, AttestationError> {
        let mut walk = Self::founding(genesis);
        for beginning in beginnings {
            walk.step(cluster, beginning)?;
        }
        Ok(walk)
    }

    /// Into the next epoch.
    ///
    /// # Errors
    /// [`AttestationError`]; nothing has changed then but that keys of seats may be known that were
    /// shown.
    pub fn step(
        &mut self,
        cluster: &ClusterId,
        beginning: &EpochBeginning,
    ) -> Result<(), AttestationError> {
        let (before, voters) = self.reached;
        let (epoch, handover) = (before.next(), &beginning.handover);
        let is_certified = handover.is_certified_by(cluster, voters, |at| self.keys.get(&at));
        if handover.epoch != epoch || !is_certified {
            return Err(AttestationError::Uncertified { epoch });
        }
        // What a quorum signed is the end of the epoch before, not who comes next: one member
        // could write any others into a true handover, or itself where it votes no more. That
        // end's state root names them.
        let unproven = AttestationError::MembersUnproven { epoch };
        let root = &handover.founding.end.state_root;
        let proven: Option<EpochMembers> =
            beginning.members.as_ref().and_then(|proof| read(proof, root, Subject::Epoch(epoch)));
        let is_proven = proven.is_some_and(|members| {
            (members.epoch, members.committee) == (epoch, handover.committee)
        });
        if !is_proven {
            return Err(unproven);
        }
        for (index, proof) in &beginning.seats {
            let seat: Option<Seat> = read(proof, root, Subject::Seat(*index));
            let seat = seat.filter(|seat| seat.index == *index).ok_or(unproven)?;
            self.keys.entry(*index).or_insert(seat.ledger_key);
            self.names.entry(*index).or_insert(seat.name);
        }
        if !handover.committee.authors().all(|author| self.keys.contains_key(&author)) {
            return Err(unproven);
        }
        self.reached = (epoch, handover.committee);
        self.committees.insert(epoch, handover.committee);
        Ok(())
    }
}

/// What the proof shows under a subject, if it shows anything.
fn read<T>(proof: &StateProof, root: &StateRoot, subject: Subject) -> Option<T>
where
    T: for<'b> minicbor::Decode<'b, ()> + minicbor::Encode<()>,
{
    codec::decode(proof.verify(root, &subject).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{EVENT_VERSION, Event};
    use crate::genesis::{GenesisHost, GenesisMode, GenesisOperator};
    use crate::handover::Founding;
    use crate::id::{
        EventDigest, HostId, MerkleRoot, OperatorId, Position, PrefixHash, ProtocolVersion, Round,
    };
    use crate::key::{Domain, SecretKey, Signature};

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_seed(&[byte; 32].into())
    }

    fn genesis() -> (Genesis, ClusterId) {
        let name = |text: String| text.parse().expect("a name");
        let host = |number: u8| GenesisHost {
            name: name(format!("host{number}")),
            operator: name("op".into()),
            ledger_key: key(number).public_key(),
            address: "127.0.0.1:7400".parse().expect("an address"),
        };
        let genesis = Genesis {
            dagger: 1,
            nonce: "0".repeat(32),
            name: name("test".into()),
            mode: GenesisMode::Judged,
            operators: vec![GenesisOperator { name: name("op".into()), key: key(99).public_key() }],
            hosts: (0..4).map(host).collect(),
            collection_depth_rounds: 60,
            handover_distance_commits: 10,
            commit_bytes_max: None,
        };
        let cluster = ClusterId::of(&genesis.to_bytes());
        (genesis, cluster)
    }

    fn end(index: u64, root: u8) -> CommitEnd {
        CommitEnd {
            index: CommitIndex(index),
            position: Position(5),
            prefix_hash: PrefixHash([1; 32]),
            state_root: StateRoot([root; 32]),
        }
    }

    fn header(author: u8, epoch: u64, attestation: Attestation) -> SignedHeader {
        let header = Header {
            version: EVENT_VERSION,
            cluster: genesis().1,
            epoch: Epoch(epoch),
            round: Round(1),
            author: AuthorIndex(author.into()),
            parents: Vec::new(),
            payload_root: MerkleRoot::ZERO,
            payload_count: 0,
            timestamp: LedgerTime(100 + u64::from(author)),
            attestation,
        };
        let sign = |digest: &EventDigest| key(author).sign_in(Domain::Event, digest.as_bytes());
        Event::make(header, Vec::new(), sign).signed_header()
    }

    fn newest(author: u8, epoch: u64, newest: CommitEnd) -> SignedHeader {
        header(author, epoch, Attestation { newest, checkpoint: None })
    }

    fn verify(
        headers: Vec<SignedHeader>,
        handovers: Vec<EpochBeginning>,
    ) -> Result<Witnesses, AttestationError> {
        let (genesis, cluster) = genesis();
        AttestedEnd { end: end(7, 2), headers, handovers }.verify(&cluster, &genesis)
    }

    #[test]
    fn a_quorum_that_names_the_state_attests_it_and_every_header_must_count() {
        let checkpoint = Some(end(100, 2));
        let later = Attestation { newest: end(120, 9), checkpoint };
        let good = [newest(0, 0, end(7, 2)), newest(1, 0, end(9, 2)), header(3, 0, later)];
        let witnesses = verify(good.to_vec(), Vec::new()).expect("attested");
        assert_eq!(witnesses.authors, [0, 1, 3].map(AuthorIndex).into());
        assert_eq!((witnesses.epoch, witnesses.members), (Epoch(0), 4));
        assert_eq!(witnesses.signed_at, (LedgerTime(100), LedgerTime(103)));

        let with = |third: SignedHeader| {
            verify([&good[..2], &[third]].concat(), Vec::new()).expect_err("refused")
        };
        let at = 2;
        assert_eq!(with(newest(2, 0, end(7, 3))), AttestationError::AnotherState { at });
        assert_eq!(with(good[0].clone()), AttestationError::NoFurtherMember { at });
        assert_eq!(with(newest(2, 1, end(7, 2))), AttestationError::AnotherEpoch { at });
        let why = EventError::UnknownAuthor;
        assert_eq!(with(newest(4, 0, end(7, 2))), AttestationError::Header { at, why });
        let mut forged = good[2].clone();
        forged.signature = Signature([0; 64]);
        let why = EventError::BadSignature;
        assert_eq!(with(forged), AttestationError::Header { at, why });
        let (genesis, cluster) = genesis();
        let moved = |index| AttestedEnd::of(end(index, 2), good.to_vec(), Vec::new());
        assert!(moved(8).verify(&cluster, &genesis).is_ok());
        let moved = AttestedEnd { end: end(8, 2), ..moved(8) }.verify(&cluster, &genesis);
        assert_eq!(moved, Err(AttestationError::AnotherCommit { named: CommitIndex(7) }));
        let few = AttestationError::TooFew { have: 2, need: 3, members: 4 };
        assert_eq!(verify(good[..2].to_vec(), Vec::new()), Err(few));
        let none = AttestationError::TooFew { have: 0, need: 3, members: 4 };
        assert_eq!(verify(Vec::new(), Vec::new()), Err(none));
    }

    fn beginning(
        committee: &[u16],
        certifiers: u8,
        root: StateRoot,
        members: Option<StateProof>,
    ) -> EpochBeginning {
        let end = CommitEnd { state_root: root, ..end(3, 8) };
        let handover = Handover {
            epoch: Epoch(1),
            committee: Committee::of(committee.iter().copied().map(AuthorIndex)).expect("some"),
            founding: Founding { end, ledger_time: LedgerTime(9) },
            headers: (0..certifiers).map(|author| newest(author, 0, end)).collect(),
        };
        EpochBeginning { handover, members, seats: Vec::new() }
    }

    #[test]
    fn a_later_epoch_counts_only_when_certified_handovers_lead_there_and_prove_its_members() {
        let headers = || (0..3).map(|author| newest(author, 1, end(7, 2))).collect::<Vec<_>>();
        let unreached = AttestationError::EpochNotReached { epoch: Epoch(1), reached: Epoch(0) };
        assert_eq!(verify(headers(), Vec::new()), Err(unreached));
        let (root, members, _) = two_leaves(&[0, 1, 2, 3]);
        let begun = |certifiers, members| vec![beginning(&[0, 1, 2, 3], certifiers, root, members)];
        let same = |certifiers| begun(certifiers, Some(members.clone()));
        let reached = verify(headers(), same(3));
        assert_eq!(reached.map(|witnesses| witnesses.epoch), Ok(Epoch(1)));
        let uncertified = AttestationError::Uncertified { epoch: Epoch(1) };
        assert_eq!(verify(headers(), same(2)), Err(uncertified));
        let unproven = Err(AttestationError::MembersUnproven { epoch: Epoch(1) });
        assert_eq!(verify(headers(), begun(3, None)), unproven);
        // A true end with members of the teller's choice: he alone would be their quorum.
        for members in [None, Some(members.clone())] {
            let alone = vec![beginning(&[0], 3, root, members)];
            assert_eq!(verify(headers()[..1].to_vec(), alone), unproven);
        }
    }

    /// A state with two leaves: who votes in epoch 1, and the seat of author 4; and the proofs.
    fn two_leaves(committee: &[u16]) -> (StateRoot, StateProof, StateProof) {
        use crate::proof::{Finding, Path};
        use crate::state_tree::{key_hash, leaf, node, side};
        let members = EpochMembers {
            epoch: Epoch(1),
            committee: Committee::of(committee.iter().copied().map(AuthorIndex)).expect("some"),
            begins_after: CommitIndex(3),
            protocol: ProtocolVersion::FIRST,
        };
        let seat = Seat {
            index: AuthorIndex(4),
            host: HostId::of(&key(4).public_key()),
            name: "host4".parse().expect("a name"),
            operator: OperatorId([1; 16]),
            ledger_key: key(4).public_key(),
            address: "192.0.2.1:7400".parse().expect("an address"),
            standing: crate::roster::SeatStanding::Present,
        };
        let leaves = [
            (key_hash(&Subject::Epoch(Epoch(1)).key()), codec::encode(&members)),
            (key_hash(&Subject::Seat(AuthorIndex(4)).key()), codec::encode(&seat)),
        ];
        let hashes = leaves.each_ref().map(|(place, value)| leaf(place, value));
        let common = (0..).take_while(|at| side(&leaves[0].0, *at) == side(&leaves[1].0, *at));
        let depth = common.count();
        let fold = |own: usize| {
            let mut path = vec![crate::state_tree::EMPTY; depth];
            path.push(hashes[1 - own]);
            let hash =
                (0..depth + 1).zip(&path).rev().fold(hashes[own], |hash, (at, beside)| match side(
                    &leaves[own].0,
                    at,
                ) {
                    0 => node(&hash, beside),
                    _ => node(beside, &hash),
                });
            let finding = Finding::Value(leaves[own].1.clone().into());
            (StateRoot(hash), StateProof { path: Path(path), finding })
        };
        let ((root, members), (same, seat)) = (fold(0), fold(1));
        assert_eq!(root, same);
        (root, members, seat)
    }

    #[test]
    fn new_members_count_with_the_keys_that_the_state_gave_them_where_the_epoch_before_ended() {
        let (root, members, seat) = two_leaves(&[1, 2, 3, 4]);
        let unproven = Err(AttestationError::MembersUnproven { epoch: Epoch(1) });
        let headers = [1, 3, 4].map(|author| newest(author, 1, end(7, 2))).to_vec();
        let with = |seats: Vec<(AuthorIndex, StateProof)>| {
            let begun = beginning(&[1, 2, 3, 4], 3, root, Some(members.clone()));
            verify(headers.clone(), vec![EpochBeginning { seats, ..begun }])
        };
        let witnesses = with(vec![(AuthorIndex(4), seat.clone())]).expect("attested");
        assert_eq!(witnesses.authors, [1, 3, 4].map(AuthorIndex).into());
        assert_eq!(with(Vec::new()), unproven);
        assert_eq!(with(vec![(AuthorIndex(5), seat.clone())]), unproven);
        // Other members than the state names, or another state than the epoch before ended with.
        let seats = || vec![(AuthorIndex(4), seat.clone())];
        for (committee, root) in [(&[1, 2, 4][..], root), (&[1, 2, 3, 4][..], StateRoot([1; 32]))] {
            let begun = beginning(committee, 3, root, Some(members.clone()));
            let begun = EpochBeginning { seats: seats(), ..begun };
            assert_eq!(verify(headers.clone(), vec![begun]), unproven);
        }
    }
}
