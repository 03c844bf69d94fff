//! The state tree: a Merkle trie over the hashes of keys, whose root is the same for the same
//! contents, whatever the order in which they came.
//!
//! Owns the canonical shape: a subtree with one leaf *is* that leaf, a subtree without any is
//! empty. Changes are gathered and taken in together, sorted by place, when the root is asked for:
//! so each branch above them is visited and hashed once, which costs about log2 of the number of
//! leaves for each change. The branches are visited level by level: those of one level do not wait
//! for each other's memory, and are hashed side by side. Nodes stand in lists and name each other
//! by number: a branch keeps the hashes of both its children, so that no sibling is looked at.
//! Hashes are in `dagger_payload::state_tree`, and what a proof says in `dagger_payload::proof`.
//! Called by the state.

use std::ops::Range;

use dagger_payload::id::StateRoot;
use dagger_payload::proof::{Finding, Path, StateProof};
use dagger_payload::state_tree::{EMPTY, Hash, StateHasher, Subject, key_hash, side};

use crate::limits::TREE_CHANGES_WAITING_MAX;

/// For so many changes memory is kept; what a snapshot needed beyond that is given back.
const CHANGES_KEPT: usize = 1 << 14;

/// So many branches or leaves are fetched and hashed together; they stay near the processor.
const HASHED_TOGETHER: usize = 128;

/// So many values are hashed together; they stay near the processor, too.
const VALUES_TOGETHER: usize = 32;

/// A subtree: nothing, or the number of a leaf or a branch.
#[derive(Debug, Default, Clone, Copy)]
enum Link {
    #[default]
    Empty,
    Leaf(u32),
    Branch(u32),
}

/// A subtree and its hash.
#[derive(Debug, Default, Clone, Copy)]
struct Subtree {
    link: Link,
    hash: Hash,
}

/// A link in one word.
#[derive(Debug, Default, Clone, Copy)]
struct Packed(u32);

/// The hashes of both children of a branch; they begin where a line of the processor's cache does.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Hashes([Hash; 2]);

/// All branches, by number. Links stand apart from hashes: the way down reads links alone, and
/// those of many branches stay near the processor.
#[derive(Debug, Default)]
struct Branches {
    links: Vec<[Packed; 2]>,
    hashes: Vec<Hashes>,
    free: Vec<u32>,
}

/// A branch below which something changes.
#[derive(Debug)]
struct Visit {
    branch: u32,
    above: Above,
    /// Which changes are for it.
    changes: Range<u32>,
}

/// What a subtree hangs on.
#[derive(Debug, Clone, Copy)]
enum Above {
    Nothing,
    Left(u32),
    Right(u32),
}

/// What is kept of a leaf: enough to show that it stands where another one is looked for.
#[derive(Debug, Clone, Copy)]
struct Leaf {
    place: Hash,
    value_hash: Hash,
}

/// What is to become of the leaf at a place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change {
    place: Hash,
    /// The hash of the leaf's new value; none when it goes.
    value_hash: Option<Hash>,
}

/// Values that are not yet hashed.
#[derive(Debug, Default)]
struct ValuesWaiting {
    /// One after another.
    bytes: Vec<u8>,
    /// Of which change each is, and where its bytes end.
    of: Vec<(usize, usize)>,
}

/// All leaves, by number; numbers of those that went are given again.
#[derive(Debug, Default)]
struct Leaves {
    things: Vec<Leaf>,
    free: Vec<u32>,
}

/// The tree.
#[derive(Debug, Default)]
pub(crate) struct StateTree {
    root: Subtree,
    branches: Branches,
    leaves: Leaves,
    changes: Vec<Change>,
    /// Of the last of them values wait to be hashed side by side.
    values: ValuesWaiting,
    /// Empty between two uses, as those that follow: their memory is asked for once.
    order: Vec<(u64, u32)>,
    sorted: Vec<Change>,
    /// The first words of their places, which tell most ways: many stand in one line of the cache.
    words: Vec<u64>,
    /// The hashes of the leaves that `sorted` makes, by its indexes.
    leaf_hashes: Vec<Hash>,
    visits: Vec<Visit>,
    pairs: Vec<[Hash; 2]>,
    hashes: Vec<Hash>,
    hasher: StateHasher,
}

impl StateTree {
    /// The root, with every change up to now.
    pub(crate) fn root(&mut self) -> StateRoot {
        self.settle();
        StateRoot(self.root.hash)
    }

    /// Sets what stands under `subject`.
    pub(crate) fn set(&mut self, subject: &Subject, value: &[u8]) {
        let place = self.hasher.place(subject);
        self.set_at(place, value);
    }

    /// Sets what stands under the subject whose place is `place`.
    pub(crate) fn set_at(&mut self, place: Hash, value: &[u8]) {
        self.values.bytes.extend_from_slice(value);
        self.values.of.push((self.changes.len(), self.values.bytes.len()));
        self.change(Change { place, value_hash: Some(EMPTY) });
        if self.values.of.len() == VALUES_TOGETHER {
            self.hash_values();
        }
    }

    /// Hashes the values that wait.
    fn hash_values(&mut self) {
        let Self { values: ValuesWaiting { bytes, of }, changes, hasher, hashes, .. } = self;
        let (mut slices, mut begin) = ([&[][..]; VALUES_TOGETHER], 0);
        for (slice, (_, end)) in slices.iter_mut().zip(&*of) {
            *slice = &bytes[std::mem::replace(&mut begin, *end)..*end];
        }
        hasher.value_hashes(&slices[..of.len()], hashes);
        for ((change, _), hash) in of.drain(..).zip(&*hashes) {
            changes[change].value_hash = Some(*hash);
        }
        bytes.clear();
    }

    /// Removes what stands under `subject`, if anything does.
    pub(crate) fn remove(&mut self, subject: &Subject) {
        let place = self.hasher.place(subject);
        self.change(Change { place, value_hash: None });
    }

    /// Sets the value of a `key` that is no subject's.
    pub(crate) fn set_key(&mut self, key: &[u8], value: &[u8]) {
        self.set_at(key_hash(key), value);
    }

    /// What stands under `key`, for whoever knows the root; `value` gives the bytes that were last
    /// set there.
    pub(crate) fn prove(&mut self, key: &[u8], value: impl FnOnce() -> Vec<u8>) -> StateProof {
        self.settle();
        let place = key_hash(key);
        let (mut path, mut link) = (Vec::new(), self.root.link);
        while let Link::Branch(number) = link {
            let turn = side(&place, path.len());
            path.push(self.branches.child(number, 1 - turn).hash);
            link = self.branches.child(number, turn).link;
        }
        let finding = match link {
            Link::Leaf(number) => {
                let leaf = self.leaves.things[index(number)];
                if leaf.place == place {
                    Finding::Value(value().into())
                } else {
                    Finding::Another { place: leaf.place, value_hash: leaf.value_hash }
                }
            }
            Link::Empty | Link::Branch(_) => Finding::Nothing,
        };
        StateProof { path: Path(path), finding }
    }

    /// Takes in one change, whoever hashed it.
    pub(crate) fn change(&mut self, change: Change) {
        self.changes.push(change);
        if self.changes.len() >= TREE_CHANGES_WAITING_MAX {
            self.settle();
        }
    }

    /// Takes in the changes that wait.
    fn settle(&mut self) {
        self.hash_values();
        self.sort();
        self.hash_leaves();
        if !matches!(self.root.link, Link::Branch(_)) {
            self.leaves.things.reserve(self.sorted.len());
            self.branches.reserve(self.sorted.len());
        }
        let all = 0..numbered(self.sorted.len());
        self.root = self.planted(self.root, all, (Above::Nothing, 0));
        let levels = self.go_down();
        levels.into_iter().rev().for_each(|level| self.hash_level(level));
        self.sorted.clear();
        self.sorted.shrink_to(CHANGES_KEPT);
        self.words.clear();
        self.words.shrink_to(CHANGES_KEPT);
        self.leaf_hashes.shrink_to(CHANGES_KEPT);
        self.visits.clear();
        self.visits.shrink_to(CHANGES_KEPT);
    }

    /// Moves the changes that wait into `sorted`, by place, the newest one of each place alone.
    /// What is sorted are words and numbers: changes themselves are long to move about.
    fn sort(&mut self) {
        let changes = &self.changes;
        let numbers = 0..numbered(changes.len());
        self.order.extend(changes.iter().map(|change| first_word(&change.place)).zip(numbers));
        self.order.sort_unstable_by_key(|(word, _)| *word);
        let place = |number: u32| &changes[index(number)].place;
        for alike in self.order.chunk_by_mut(|(one, _), (other, _)| one == other) {
            alike.sort_unstable_by(|(_, one), (_, other)| {
                place(*one).cmp(place(*other)).then_with(|| other.cmp(one))
            });
        }
        self.sorted.reserve(changes.len());
        self.words.reserve(changes.len());
        for (word, number) in self.order.drain(..) {
            let change = &changes[index(number)];
            if self.sorted.last().is_none_or(|newest| newest.place != change.place) {
                self.sorted.push(*change);
                self.words.push(word);
            }
        }
        self.order.shrink_to(CHANGES_KEPT);
        self.changes.clear();
        self.changes.shrink_to(CHANGES_KEPT);
    }

    /// Hashes the leaves that the changes make; for one that goes it is nobody's hash.
    fn hash_leaves(&mut self) {
        let Self { sorted, leaf_hashes, pairs, hasher, .. } = self;
        let pair = |change: &Change| [change.place, change.value_hash.unwrap_or(EMPTY)];
        leaf_hashes.clear();
        let mut hashes = std::mem::take(&mut self.hashes);
        for some in sorted.chunks(HASHED_TOGETHER) {
            pairs.clear();
            pairs.extend(some.iter().map(pair));
            hasher.leaves(pairs, &mut hashes);
            leaf_hashes.extend_from_slice(&hashes);
        }
        self.hashes = hashes;
    }

    /// Visits the branches below which something changes, level by level, those above first. Below
    /// each, leaves are put and taken away; says which visits are of which level.
    fn go_down(&mut self) -> Vec<Range<usize>> {
        let (mut levels, mut level, mut depth) = (Vec::new(), 0..self.visits.len(), 0);
        while !level.is_empty() {
            levels.push(level.clone());
            for at in level.clone() {
                let Visit { branch, changes: Range { start, end }, .. } = self.visits[at];
                let middle = start + self.left_of(start..end, depth);
                self.go_on((branch, 0), start..middle, depth + 1);
                self.go_on((branch, 1), middle..end, depth + 1);
            }
            (level, depth) = (level.end..self.visits.len(), depth + 1);
        }
        levels
    }

    /// Goes on to one side of a branch, for which `part` of the changes are.
    fn go_on(&mut self, (branch, side): (u32, usize), part: Range<u32>, depth: usize) {
        if part.is_empty() {
            return;
        }
        let above = if side == 0 { Above::Left(branch) } else { Above::Right(branch) };
        match self.branches.link(branch, side) {
            Link::Branch(branch) => self.visits.push(Visit { branch, above, changes: part }),
            Link::Empty | Link::Leaf(_) => {
                let child = self.branches.child(branch, side);
                let child = self.planted(child, part, (above, depth));
                self.branches.put(branch, side, child);
            }
        }
    }

    /// How many of some changes below a branch at `depth` are for its left side: they come first.
    fn left_of(&self, changes: Range<u32>, depth: usize) -> u32 {
        let changes = indexes(&changes);
        let bit = u32::try_from(depth).ok().and_then(|depth| (1_u64 << 63).checked_shr(depth));
        numbered(match bit.map(|bit| (bit, &self.words[changes.clone()])) {
            Some((bit, [word])) => usize::from(word & bit == 0),
            Some((bit, words)) => words.partition_point(|word| word & bit == 0),
            None => self.sorted[changes].partition_point(|each| side(&each.place, depth) == 0),
        })
    }

    /// What some of the changes make of `subtree`, which hangs on `above` and would branch at
    /// `depth`. If that is a branch, it is to be visited.
    fn planted(
        &mut self,
        subtree: Subtree,
        part: Range<u32>,
        (above, depth): (Above, usize),
    ) -> Subtree {
        let changes = &self.sorted[indexes(&part)];
        let visit = |branch| Visit { branch, above, changes: part.clone() };
        let standing = match subtree.link {
            _ if changes.is_empty() => return subtree,
            Link::Branch(number) => {
                self.visits.push(visit(number));
                return subtree;
            }
            Link::Leaf(number) => Some((number, self.leaves.things[index(number)].place)),
            Link::Empty => None,
        };
        if let [change] = changes
            && standing.is_none_or(|(_, place)| place == change.place)
        {
            let hash = self.leaf_hashes[index(part.start)];
            return self.leaves.replace(standing.map(|(number, _)| number), change, hash);
        }
        let mut children = [Subtree::default(); 2];
        if let Some((number, place)) = standing {
            match changes.binary_search_by(|change| change.place.cmp(&place)) {
                Ok(_) => self.leaves.free.push(number),
                Err(_) => children[side(&place, depth)] = subtree,
            }
        }
        let number = self.branches.add(children);
        self.visits.push(visit(number));
        Subtree { link: Link::Branch(number), hash: EMPTY }
    }

    /// Hashes branches below which all is as it is to be. Some at a time are fetched before the
    /// first is hashed: one fetch does not wait for another.
    fn hash_level(&mut self, level: Range<usize>) {
        let Self { root, branches, visits, pairs, hashes, hasher, .. } = self;
        for some in visits[level].chunks(HASHED_TOGETHER) {
            pairs.clear();
            pairs.extend(some.iter().map(|visit| branches.hashes[index(visit.branch)].0));
            hasher.nodes(pairs, hashes);
            for (visit, (pair, hash)) in some.iter().zip(pairs.iter().zip(hashes.iter())) {
                let subtree = branches.settled(visit.branch, pair, *hash);
                match visit.above {
                    Above::Nothing => *root = subtree,
                    Above::Left(above) => branches.put(above, 0, subtree),
                    Above::Right(above) => branches.put(above, 1, subtree),
                }
            }
        }
    }
}

impl Change {
    /// That `value` stands under `subject`.
    pub(crate) fn set(subject: &Subject, value: &[u8], hasher: &mut StateHasher) -> Self {
        Self { place: hasher.place(subject), value_hash: Some(hasher.value_hash(value)) }
    }
}

/// The one of two children that takes the place of their branch, if less than two leaves are left.
fn only(children: [Link; 2]) -> Option<(usize, Link)> {
    match children {
        [Link::Empty, right @ (Link::Empty | Link::Leaf(_))] => Some((1, right)),
        [left @ Link::Leaf(_), Link::Empty] => Some((0, left)),
        _ => None,
    }
}

impl Branches {
    fn link(&self, number: u32, side: usize) -> Link {
        self.links[index(number)][side].into()
    }

    fn child(&self, number: u32, side: usize) -> Subtree {
        Subtree { link: self.link(number, side), hash: self.hashes[index(number)].0[side] }
    }

    fn put(&mut self, number: u32, side: usize, child: Subtree) {
        self.links[index(number)][side] = child.link.into();
        self.hashes[index(number)].0[side] = child.hash;
    }

    /// The subtree of a branch both of whose children stand and have `hashes`, and itself `hash`;
    /// if it is needed no more its number is free.
    fn settled(&mut self, number: u32, hashes: &[Hash; 2], hash: Hash) -> Subtree {
        match only(self.links[index(number)].map(Link::from)) {
            Some((side, link)) => {
                self.free.push(number);
                Subtree { link, hash: hashes[side] }
            }
            None => Subtree { link: Link::Branch(number), hash },
        }
    }

    /// Room for so many more.
    fn reserve(&mut self, count: usize) {
        self.links.reserve(count);
        self.hashes.reserve(count);
    }

    fn add(&mut self, children: [Subtree; 2]) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.links.push([Packed::default(); 2]);
            self.hashes.push(Hashes([EMPTY; 2]));
            numbered(self.links.len() - 1)
        });
        children.into_iter().enumerate().for_each(|(side, child)| self.put(number, side, child));
        number
    }
}

/// Nothing is 0, leaves are odd.
impl From<Link> for Packed {
    fn from(link: Link) -> Self {
        Self(match link {
            Link::Empty => 0,
            Link::Leaf(number) => number << 1 | 1,
            Link::Branch(number) => (number + 1) << 1,
        })
    }
}

impl From<Packed> for Link {
    fn from(Packed(word): Packed) -> Self {
        match (word, word & 1) {
            (0, _) => Self::Empty,
            (_, 1) => Self::Leaf(word >> 1),
            _ => Self::Branch((word >> 1) - 1),
        }
    }
}

impl Leaves {
    /// What a change makes of the leaf `number` at its place, or of none; a leaf has `hash` then.
    fn replace(&mut self, number: Option<u32>, change: &Change, hash: Hash) -> Subtree {
        let Some(value_hash) = change.value_hash else {
            self.free.extend(number);
            return Subtree::default();
        };
        let leaf = Leaf { place: change.place, value_hash };
        let number = number.or_else(|| self.free.pop()).unwrap_or_else(|| {
            self.things.push(leaf);
            numbered(self.things.len() - 1)
        });
        self.things[index(number)] = leaf;
        Subtree { link: Link::Leaf(number), hash }
    }
}

/// The number of the thing at `index`; half of them remain for what a link says besides.
fn numbered(index: usize) -> u32 {
    let number = u32::try_from(index).ok().filter(|number| *number < u32::MAX >> 1);
    number.expect("memory ends before 2^31 nodes")
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("memory holds what has a number")
}

fn indexes(numbers: &Range<u32>) -> Range<usize> {
    index(numbers.start)..index(numbers.end)
}

/// The first word of a hash, in the order of hashes.
fn first_word(hash: &Hash) -> u64 {
    hash.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests;
